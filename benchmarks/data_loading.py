"""Target 4: images a second that one core decodes and augments, and where the time goes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from measure.result import Result
from measure.timing import as_rows, in_turns, one_thread
from PIL import Image

from rca_lightning.data.dataset import TaggedImages
from rca_lightning.data.images import read_image
from rca_lightning.data.records import Record
from rca_lightning.data.synthetic.scene import render_scene
from rca_lightning.data.transforms import Pixels, TrainAugmentation, normalise

_LIMIT = 150.0  # images a second and core
_CROP = 256
_IMAGES = 100


def run(*, quick: bool = False, root: Path | None = None, rounds: int = 5) -> Result:
    """Decode, augment and normalise the same photographs in turns.

    Args:
        quick: few images.
        root: folder of JPEG files; default: generated ones of the size of those in VOC.
        rounds: how often each way is timed.
    """
    with tempfile.TemporaryDirectory() as folder:
        count = 4 if quick else _IMAGES
        paths = sorted(Path(root).rglob("*.jpg"))[:count] if root else generate(Path(folder), count)
        augmentation = TrainAugmentation(crop_size=_CROP, scale=(1.0, 2.0), flip=True, color_jitter=0.3)
        decoded = [read_image(path) for path in paths]
        augmented = [augmentation(Pixels(image), seed=(0, 0, index)) for index, image in enumerate(decoded)]
        ways = {
            "whole": partial(_whole, paths, augmentation),
            "decode": lambda: [read_image(path) for path in paths],
            "augment": lambda: [augmentation(Pixels(image), seed=(0, 0, row)) for row, image in enumerate(decoded)],
            "normalise": lambda: [normalise(pixels) for pixels in augmented],
            "whole, reduced_decoding": _samples(paths, augmentation, reduced_decoding=True),
            "whole, cache_decoded": _samples(paths, augmentation, cache_mib=2**20),
            **_large(Path(folder), augmentation, len(paths)),
        }
        with one_thread():
            times = in_turns(ways, rounds=rounds)
    source = "JPEG files of --root" if root else "generated JPEG files, 500 x 375"
    rows = [
        {**row, "images_per_second": len(paths) / float(row["processor_seconds"])} for row in as_rows(times, "whole")
    ]
    result = Result("data_loading", f"{len(paths)} {source}, crops of {_CROP} px, one core", rows)
    result.at_least("images a second and core", float(rows[0]["images_per_second"]), 0.0 if quick else _LIMIT)
    return result


def _whole(paths: list[Path], augmentation: TrainAugmentation) -> None:
    for index, path in enumerate(paths):
        normalise(augmentation(Pixels(read_image(path)), seed=(0, 0, index)))


def _samples(
    paths: list[Path], augmentation: TrainAugmentation, *, reduced_decoding: bool = False, cache_mib: float = 0
) -> Callable[[], object]:
    records = [Record(path.stem, path, tags=(0,)) for path in paths]
    images = TaggedImages(
        records, num_classes=1, augmentation=augmentation, reduced_decoding=reduced_decoding, cache_mib=cache_mib
    )
    return lambda: [images[index] for index in range(len(images))]


def _large(folder: Path, augmentation: TrainAugmentation, count: int) -> dict[str, Callable[[], object]]:
    """As many photographs of 2000 x 1500, a tenth of them different."""
    (folder / "large").mkdir()
    paths = generate(folder / "large", -(-count // 10), size=(2000, 1500)) * 10
    records = paths[:count]
    return {
        "large": _samples(records, augmentation),
        "large, reduced_decoding": _samples(records, augmentation, reduced_decoding=True),
    }


def generate(folder: Path, count: int, *, size: tuple[int, int] = (500, 375)) -> list[Path]:
    """JPEG files that decode about as slowly as photographs: scenes with grain."""
    paths = []
    for index in range(count):
        random = np.random.default_rng(index)
        scene = np.asarray(Image.fromarray(render_scene(random, 128).image).resize(size), dtype=np.float32)
        grainy = np.clip(scene + random.normal(0, 12, scene.shape), 0, 255).astype(np.uint8)
        path = folder / f"{index}.jpg"
        Image.fromarray(grainy).save(path, quality=90)
        paths.append(path)
    return paths
