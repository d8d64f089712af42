"""What reads each kind of file, and what has to be true of what comes out."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from rca_lightning.backbones.weights import load_weights
from rca_lightning.checkpoints.reading import read_checkpoint
from rca_lightning.data.classes import ClassIndex
from rca_lightning.data.coco import COCOSource
from rca_lightning.data.dataset import Reader
from rca_lightning.data.folder import FolderSource
from rca_lightning.data.images import image_size, read_image, read_mask, read_saliency
from rca_lightning.data.records import Record, RecordTable
from rca_lightning.data.seed_maps import SeedMaps
from rca_lightning.data.tag_files import read_id_list, read_tag_file
from rca_lightning.data.voc import read_xml_tags
from rca_lightning.errors import RCAError
from rca_lightning.evaluation.breakdown import background_confusion, scores_by_size, trimap_miou
from rca_lightning.evaluation.comparison import compare_files
from rca_lightning.evaluation.image_counts import ImageCounts
from rca_lightning.evaluation.intervals import paired_difference
from rca_lightning.pseudo_labels.files import read_maps, read_qualities
from rca_lightning.pseudo_labels.proposals import read_proposals
from tests.fuzz import seeds
from tests.fuzz.mutations import BYTES, TEXT, Mutation, mutate, mutate_inside
from tests.fuzz.tiny import Tiny

_CLASSES = ClassIndex(seeds.CLASSES)


@dataclass(frozen=True)
class Target:
    """One kind of file.

    Attributes:
        file: its path in the folder of a case.
        make_seeds: sound files.
        kinds: how it is damaged.
        readers: what reads it; each returns for sound files, or raises an `RCAError`.
        archive: whether it is a zip archive, to be damaged from the inside too.
    """

    file: str
    make_seeds: Callable[[], list[bytes]]
    kinds: list[Mutation]
    readers: tuple[Callable[[Path], None], ...]
    archive: bool = False

    @cached_property
    def seeds(self) -> list[bytes]:
        return self.make_seeds()

    def case(self, seed: int, number: int) -> bytes:
        """The file of one case, the same for the same numbers."""
        rng = random.Random(f"{seed} {self.file} {number}")
        content = rng.choice(self.seeds)
        if self.archive and content[:2] == b"PK" and rng.random() < 0.7:
            try:
                return mutate_inside(content, rng, self.seeds)
            except (zipfile.BadZipFile, ValueError):  # what was damaged cannot be packed again
                pass
        return mutate(content, rng, self.seeds, self.kinds)


def _photograph(path: Path) -> None:
    pixels = read_image(path)
    assert pixels.dtype == np.uint8
    assert (*image_size(path), 3) == pixels.shape
    assert min(read_image(path, reduction=4).shape[:2]) >= 1


def _saliency(path: Path) -> None:
    saliency = read_saliency(path)
    assert saliency.ndim == 2
    assert 0 <= saliency.min() <= saliency.max() <= 1


def _mask(path: Path) -> None:
    assert set(np.unique(read_mask(path, num_classes=20)).tolist()) <= {*range(21), 255}


def _annotation(path: Path) -> None:
    read_xml_tags(path, _CLASSES)


def _instances(path: Path) -> None:
    _write_photographs(path.parent / "images")
    source = COCOSource(path.parent, year=2017, annotation_file=path.name, image_dir="images")
    failed = None
    for record in source.records("train", with_masks=True):
        assert record.image.parent == path.parent / "images"
        assert record.image.is_file()
        try:
            mask = Reader(80).mask(record, size=image_size(record.image))
        except RCAError as error:
            failed = error
        else:
            assert (mask is None) == (record.mask is None)  # a field that masks are drawn from is missing
            assert mask is None or mask.shape == seeds.SIZE
    if failed is not None:
        raise failed


def _tags(path: Path) -> None:
    read_tag_file(path, _CLASSES)


def _tag_table(path: Path) -> None:
    table = path.with_suffix(".csv")
    if not table.exists():
        table.symlink_to(path.name)
    read_tag_file(table, _CLASSES)


def _ids(path: Path) -> None:
    read_id_list(path)


def _folder(path: Path) -> None:
    _write_photographs(path.parent / "images")
    source = FolderSource(
        path.parent, classes=seeds.CLASSES, tags_file=path.name, image_dir="images", split_files={"train": path.name}
    )
    for record in source.records("train", with_masks=False):
        assert record.image.parent == path.parent / "images"


def _maps(path: Path) -> None:
    found = read_maps(path, size=seeds.SIZE, num_classes=len(seeds.CLASSES))
    assert found.maps.shape == (len(found.classes), *seeds.SIZE)


def _seed_maps(path: Path) -> None:
    _write_photographs(path.parent / "images")
    record = Record(path.stem, path.parent / "images" / "1.jpg", tags=(0, 2))
    found = SeedMaps(path.parent, RecordTable.of([record]), num_classes=len(seeds.CLASSES)).read(path.stem)
    if found is not None:
        cells = found.on_grid((5, 6))
        assert cells.shape == (len(found.classes), 5, 6)
        assert 0 <= float(cells.min()) <= float(cells.max()) <= 1


def _proposals(path: Path) -> None:
    scores = torch.rand(2, *seeds.SIZE)
    merged = read_proposals(path, size=seeds.SIZE).merge(scores)
    assert scores.min() <= merged.min() <= merged.max() <= scores.max()


def _quality(path: Path) -> None:
    for quality in read_qualities([("a", path)], num_classes=len(seeds.CLASSES)):
        quality.reasons(seeds.CLASSES)


def _read_checkpoint(path: Path) -> None:
    read_checkpoint(path)


def _load_checkpoint(path: Path) -> None:
    assert Tiny.load_from_checkpoint(path, map_location="cpu").network[0].weight.shape == (3, 4)


def _weights(path: Path) -> None:
    load_weights(Tiny(num_classes=3), str(path))


def _scores(path: Path) -> None:
    printed = io.StringIO()
    compare_files(path, path, anyway=True, console=Console(file=printed))
    assert "b - a" in printed.getvalue()
    printed.getvalue().encode()


def _image_counts(path: Path) -> None:
    counts = ImageCounts.load(path)
    for threshold in counts.thresholds or (None,):
        found = paired_difference(counts, counts, (threshold, threshold), draws=2)
        assert found.low == found.high == 0 or np.isnan(found.low)
        scores_by_size(counts, threshold)
        background_confusion(counts, threshold)
        trimap_miou(counts, threshold)


def _write_photographs(folder: Path) -> None:
    for name in ("1.jpg", "2.jpg"):
        if not (folder / name).exists():
            folder.mkdir(exist_ok=True)
            Image.new("RGB", seeds.SIZE[::-1]).save(folder / name)


TARGETS = {
    "photograph": Target("photograph.jpg", seeds.photographs, BYTES, (_photograph, _saliency)),
    "mask": Target("mask.png", seeds.masks, BYTES, (_mask,)),
    "annotation": Target("annotation.xml", seeds.annotations, TEXT, (_annotation,)),
    "instances": Target("instances.json", seeds.instances, TEXT, (_instances,)),
    "tags": Target("tags.txt", seeds.tag_files, TEXT, (_tags, _tag_table, _ids, _folder)),
    "maps": Target("maps.npz", seeds.stored_maps, BYTES, (_maps, _quality, _seed_maps), archive=True),
    "array": Target("array.npy", seeds.arrays, BYTES, (_seed_maps,)),
    "proposals": Target("proposals.json", seeds.proposals, TEXT, (_proposals,)),
    "segments": Target("segments.png", seeds.segments, BYTES, (_proposals,)),
    "scores": Target("scores.json", seeds.scores, TEXT, (_scores,)),
    "counts": Target("scores_images.npz", seeds.image_counts, BYTES, (_image_counts,), archive=True),
    "checkpoint": Target(
        "last.ckpt", seeds.checkpoints, BYTES, (_read_checkpoint, _load_checkpoint, _weights), archive=True
    ),
}
