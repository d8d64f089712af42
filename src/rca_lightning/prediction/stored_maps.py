"""Pseudo labels of stored class maps, without the network that drew them."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rca_lightning.arguments import check_arguments
from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.data.images import image_size, read_image, read_saliency
from rca_lightning.data.records import Record, RecordTable
from rca_lightning.data.sample import SkippedImage
from rca_lightning.data.transforms import Pixels, normalise
from rca_lightning.errors import (
    ArgumentError,
    DataError,
    DatasetNotFoundError,
    refuse_other_classes,
    refuse_removed,
)
from rca_lightning.evaluation.auto_threshold import Automatic, choose_threshold
from rca_lightning.evaluation.map_kinds import MapKind, default_thresholds, map_kind
from rca_lightning.evaluation.protocol import TagsOnRecord, ThresholdSource
from rca_lightning.io.output_folder import Existing, PredictionFolder, stored_classes, stored_settings
from rca_lightning.io.progress import show_progress
from rca_lightning.modules.affinity_module import AffinityModule, check_affinity, load_affinity
from rca_lightning.modules.seed_prediction import evenly_spread
from rca_lightning.prediction.stored_protocol import stored_protocol
from rca_lightning.pseudo_labels.affinity import walk_class_maps
from rca_lightning.pseudo_labels.files import read_maps, write_label_files
from rca_lightning.pseudo_labels.generator import PseudoLabelGenerator
from rca_lightning.pseudo_labels.labels import (
    BACKGROUND_SETTINGS,
    CHOSEN,
    Background,
    automatic_threshold,
    check_automatic,
    check_count,
    threshold_source,
)
from rca_lightning.pseudo_labels.proposals import ProposalFolder, check_proposals, describe_proposals
from rca_lightning.pseudo_labels.refinement import RefinementName
from rca_lightning.pseudo_labels.summary import write_summary
from rca_lightning.pseudo_labels.workers import WorkQueue

logger = logging.getLogger(__name__)

_OF_THE_MAPS = (
    "checkpoint", "weights_digest", "final_map", "scales", "flip", "predict_tags", "reads_attention",
)  # fmt: skip
# Since these are recorded: they go on with what they tell, and are left out where it is not known.
_OF_NEWER_MAPS = (
    "checkpoint_sha256", "weights", "map_kind", "propagation_steps", "propagation_power", "propagation_affinity",
)  # fmt: skip
_ANY = 0.5  # until it is chosen
_BEFORE = {"background_threshold": 0.2}  # default of CAMs when it was not noted yet what is one
_STRIDE = 4  # of the grid that boundaries are learned on: labels need not be finer


@refuse_removed(rule="renamed in 0.2; give background='fixed', 'power', 'saliency' or 'two_thresholds'")
@check_arguments
def label_stored_maps(
    data: WSSSDataModule,
    maps: str,
    output_dir: str,
    *,
    background_threshold: float | Automatic | None = None,
    background: Background = "fixed",
    power: float = 8.0,
    low: float | None = None,
    high: float | None = None,
    saliency_threshold: float = 0.5,
    refine: Sequence[RefinementName] = (),
    affinity_ckpt: str | None = None,
    refine_stride: int = 1,
    workers: int = 2,
    overlays: bool = False,
    existing: Existing = "skip",
    proposals_dir: str | None = None,
) -> None:
    """Makes pseudo labels of `predict_split` from stored maps; for the arguments see also `PseudoLabelWriter`.

    It writes `pseudo_labels/<id>.png`, `quality/<id>.npz`, `quality.json`, and with masks `pseudo_labels.json`; images
    that are complete are skipped.

    Args:
        data: the photographs; with `on_bad_image="skip"` those that cannot be read need no maps.
        maps: folder `cams` of a `PseudoLabelWriter`.
        output_dir: folder of the results, another than that of the maps.
        background_threshold: of "fixed", in `[0, 1]`; default: the one `rca predict` used, or would use, with these
            maps. "auto": chosen without masks, by `AutoThreshold` from 200 of the maps; a folder keeps its own.
        background: how background is told from classes.
        power: of "power".
        low: of "two_thresholds" and "saliency"; default: that of the kind of these maps.
        high: of "two_thresholds" and "saliency"; default: that of the kind of these maps.
        saliency_threshold: of "saliency".
        refine: "pamr", "dense_crf", "proposals", and first of all "affinity"; not "random_walk", whose features are not
            stored.
        affinity_ckpt: checkpoint of `rca affinity fit`; for "affinity".
        refine_stride: pixels along each side that all but "affinity" average; see `PseudoLabelGenerator`.
        workers: processes that refine by `dense_crf` or `proposals`.
        overlays: whether to write the labels over the photographs.
        existing: "skip" what is complete, "overwrite" everything.
        proposals_dir: folder of the regions for "proposals"; None: `superpixels`.

    Raises:
        ArgumentError: for an argument that is out of range or cannot be had without the network.
        DatasetNotFoundError: if the folder of the maps is not there, or the maps of a photograph.
        WeightsError: for an `affinity_ckpt` that is damaged or of another task.
        DataError: for maps that cannot be read, are of another size than the photograph, or of other classes.
        OutputError: if the folder cannot be written to, or was made otherwise.
        MissingExtraError: if a refinement needs a package that is not there.
    """
    check_count("workers", workers, least=0)
    check_affinity(refine, affinity_ckpt)
    check_proposals(refine, proposals_dir)
    source = Path(maps)
    if not source.is_dir():
        raise DatasetNotFoundError(f"maps={maps!r} is not a folder; give the folder cams that rca predict has written")
    predicted = stored_settings(source)
    refuse_other_classes(
        stored_classes(source), data.class_names, where="the maps", remedy="give the data that rca predict was given"
    )
    check_automatic(background_threshold, background)
    is_chosen = background_threshold == "auto"
    number = None if isinstance(background_threshold, str) else background_threshold
    thresholds = {"background_threshold": _ANY if is_chosen else number, "low": low, "high": high}
    given = {"background_threshold": background_threshold, "power": power, "saliency_threshold": saliency_threshold}
    generator = PseudoLabelGenerator(
        background=background,
        **_with_defaults(thresholds, background, predicted),
        power=power,
        saliency_threshold=saliency_threshold,
        refine=tuple(refine),
        refine_stride=refine_stride,
        proposer="superpixels" if proposals_dir is None else "files",
    )
    if generator.needs_features:
        raise ArgumentError("refine", "random_walk", "its features are not stored; use rca predict with this step")
    generator.check_packages()
    affinity = None if affinity_ckpt is None else load_affinity(affinity_ckpt)
    proposals = None if proposals_dir is None else ProposalFolder(proposals_dir)
    data.prepare_data()
    data.setup("predict")
    records, unread = _with_maps(data, source)
    endings = {"pseudo_labels": ".png", "quality": ".npz"} | ({"overlays": ".jpg"} if overlays else {})
    folder = PredictionFolder(output_dir, endings, existing=existing)
    done = folder.done()
    if is_chosen:
        begun = automatic_threshold(folder.settings()) if existing == "skip" else None
        if begun is None:
            known = "reads_attention" in predicted and predicted.get("maps", "network") == "network"
            kind = _kind(predicted) if affinity is None and known else None
            sample = _sample_maps(records, source, affinity, data.num_classes)
            begun = choose_threshold(sample, kind=kind, crf=generator.has_crf)
        generator = replace(generator, background_threshold=begun)
    source_settings = {name: predicted.get(name) for name in _OF_THE_MAPS} if predicted else {}
    source_settings |= {name: predicted[name] for name in _OF_NEWER_MAPS if name in predicted}
    refined = {} if affinity is None else {"affinity": affinity.digest()}
    refined |= describe_proposals(refine, proposals)
    chosen = CHOSEN if is_chosen else {}
    described = {**generator.describe(), **chosen, **refined}
    folder.prepare({**source_settings, "class_names": data.class_names, **described})
    folder.begin()
    data.bad_images.begin({data.predict_split: len(records) + len(unread)}, folder=folder.root, first=True)
    with folder.output_errors():
        data.bad_images.note(unread)
    queue = WorkQueue(workers, threads=not generator.is_slow)
    try:
        for record in show_progress(records, what="labels", total=len(records)):
            if folder.claim(record.image_id) and record.image_id not in done:
                with folder.output_errors():
                    _label(record, source, generator, affinity, proposals, queue, folder, data.num_classes)
        with folder.output_errors():
            queue.join()
    finally:
        queue.close()
    folder.end()
    if proposals is not None and (line := proposals.summary()) is not None:
        logger.warning("%s", line)
    data.bad_images.summarise()

    def protocol(ids: Sequence[str], tags: TagsOnRecord) -> dict[str, Any]:
        return stored_protocol(
            predicted,
            split=data.predict_split,
            ids=ids,
            tags=tags,
            threshold=_threshold_source(generator, {**thresholds, **given}, predicted),
            background=generator.describe(),
            refine=tuple(refine),
            proposals=proposals_dir is not None,
        )

    with folder.output_errors():
        write_summary(
            folder,
            records,
            class_names=data.class_names,
            split=data.predict_split,
            tags=predicted.get("predict_tags", "image"),
            protocol=protocol,
            data=data,
        )


def _sample_maps(
    records: RecordTable, source: Path, affinity: AffinityModule | None, num_classes: int
) -> Iterator[torch.Tensor]:
    """Some of the maps, evenly spread, as the background is told from them."""
    rows = np.array(evenly_spread(len(records)), dtype=np.int64)
    for record in show_progress(records.take(rows), what="threshold", total=len(rows)):
        size = image_size(record.image)
        maps = read_maps(source / f"{record.image_id}.npz", size=size, num_classes=num_classes).maps
        if affinity is not None:
            maps = walk_class_maps(maps, affinity.boundary_maps(normalise(Pixels(read_image(record.image)))[None])[0])
        yield maps


def _with_maps(data: WSSSDataModule, source: Path) -> tuple[RecordTable, list[SkippedImage]]:
    """Photographs with maps, and those that have none because they cannot be read."""
    records = RecordTable.of(data.predict_records)
    there = ((source / f"{image_id}.npz").is_file() for image_id in records.iterate_ids())
    has_maps = np.fromiter(there, dtype=np.bool_, count=len(records))
    without = set(records.take(~has_maps).iterate_ids())
    unread = data.unread_of_prediction(without)
    missing = without - {image.image_id for image in unread}
    if missing:
        raise DatasetNotFoundError(
            f"maps={str(source)!r}: none for {len(missing)} of {len(records)} photographs, such as {min(missing)}; "
            "let rca predict finish, or name another predict_split"
        )
    return records.take(has_maps), unread


def _with_defaults(given: dict[str, float | None], background: str, predicted: dict[str, Any]) -> dict[str, float]:
    """The given thresholds; those that `rca predict` has used, or would with these maps, in place of None."""
    used = {name: value for name in given if isinstance(value := predicted.get(name), (int, float))}
    known = used | {name: value for name, value in given.items() if value is not None}
    attention = predicted.get("reads_attention")
    missing = [name for name in BACKGROUND_SETTINGS.get(background, ()) if name in given and name not in known]
    if missing and not isinstance(attention, bool):
        raise ArgumentError(missing[0], None, "give one in [0, 1]: rca predict has left none with these maps")
    return default_thresholds(_kind(predicted)) | known


def _kind(predicted: Mapping[str, Any]) -> MapKind:
    """The kind of stored maps; of those of before it was noted, the propagated one, as is the default."""
    return map_kind(
        attention=predicted.get("reads_attention") is True,
        contrasted=predicted.get("contrasted") is True,
        propagated=bool(predicted.get("propagation_steps", 1)),
    )


def _threshold_source(
    generator: PseudoLabelGenerator, given: Mapping[str, Any], predicted: Mapping[str, Any]
) -> ThresholdSource:
    """How what tells the background was chosen: now, or when the maps were predicted, whose thresholds stand in."""
    source = threshold_source(generator.background, given)
    names = [name for name in BACKGROUND_SETTINGS[generator.background] if name in predicted]
    taken = {name: getattr(generator, name) for name in names if name in ("background_threshold", "low", "high")}
    if source != "default" or not taken:
        return source
    if automatic_threshold(predicted) is not None and "background_threshold" in taken:
        return "auto"
    noted = predicted.get("threshold_source")
    if noted in ("given", "default"):
        return "given" if noted == "given" else "default"
    expected = default_thresholds(_kind(predicted))
    usual = all(value in (expected[name], _BEFORE.get(name)) for name, value in taken.items())
    return "default" if usual else "given"


def _label(
    record: Record,
    source: Path,
    generator: PseudoLabelGenerator,
    affinity: AffinityModule | None,
    proposals: ProposalFolder | None,
    queue: WorkQueue,
    folder: PredictionFolder,
    num_classes: int,
) -> None:
    pixels = read_image(record.image)
    picture = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255  # (H, W, 3) -> (3, H, W)
    size = (picture.shape[1], picture.shape[2])
    seeds = read_maps(source / f"{record.image_id}.npz", size=size, num_classes=num_classes)
    saliency = None
    if generator.background == "saliency":
        if record.saliency is None:
            raise DataError(
                f"{record.image_id}: no saliency map, which background='saliency' needs; give --data.saliency_dir"
            )
        saliency = torch.from_numpy(read_saliency(record.saliency))
    boundary = None if affinity is None else affinity.boundary_maps(normalise(Pixels(pixels))[None])[0]
    of_photograph = None if proposals is None else proposals.file(record.image_id)
    intermediate = generator.score(seeds, picture, saliency, boundary=boundary, proposals=of_photograph)
    probabilities, paths = seeds.probabilities.numpy(), folder.paths(record.image_id)
    queue.submit(write_label_files, record.image_id, intermediate, generator, None, probabilities, paths)


def write_confident_labels(
    data: WSSSDataModule, maps: str | Path, folder: Path, *, low: float | None = None, high: float | None = None
) -> None:
    """Writes label images with 255 where maps do not decide, to learn boundaries from.

    They are refined by the dense CRF where it is installed, else by PAMR.

    Args:
        data: the photographs, as `predict_split`.
        maps: folder `cams` of `rca predict`.
        folder: for `pseudo_labels/<id>.png`; complete images are skipped.
        low: of the background "two_thresholds"; default: that of the kind of the maps.
        high: the same.
    """
    has_crf = importlib.util.find_spec("pydensecrf") is not None
    refine: list[RefinementName] = ["dense_crf" if has_crf else "pamr"]
    logger.info("confident labels of %s, refined by %s, go to %s", maps, refine[0], folder)
    label_stored_maps(
        data,
        str(maps),
        str(folder),
        background="two_thresholds",
        low=low,
        high=high,
        refine=refine,
        refine_stride=_STRIDE,
        workers=data.num_workers,
    )
