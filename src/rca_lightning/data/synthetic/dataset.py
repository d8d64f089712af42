"""Generates a data set in the layout of VOC 2012, small enough to train on from scratch without a GPU.

It poses the problem of weakly supervised segmentation in small. Six classes of invented objects, one to five objects an
image, also several of one class. Each object has

- one striking part, a small disc of vivid colours in a pattern that no other class has. It alone names the class, and
  a network that learns from tags looks there first;
- a large body, whose texture, hue and outline hint at the class: three looks a class, hues near those of other
  classes, under shading, noise and changing light.

About 6 % of the objects turn their part away, so the body is worth learning too. Objects lie anywhere in any turn,
their bodies are 28 to 110 % of the image's side long, hide each other, and the border cuts many of them. So a guess
that does not look at the image, such as a disc in its middle, draws little of them right (`evaluation.baselines`).

The background is not trivially different from bodies: surfaces and blobs have hues and shades of bodies, but not the
texture of a class. Some of it comes along with a class, as rails do with trains: a class is often on its own ground and
has its own companion, a thing without a tag, beside it. Both are also seen without their class.

The mask of an object is its body with its part.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import numpy as np
from PIL import Image

from rca_lightning.constants import IGNORE_INDEX
from rca_lightning.data.classes import voc_palette
from rca_lightning.data.synthetic.scene import render_scene
from rca_lightning.data.synthetic.shapes import OBJECT_CLASSES
from rca_lightning.errors import ArgumentError, DataError
from rca_lightning.io.atomic import output_errors

CLASS_NAMES: tuple[str, ...] = tuple(kind.name for kind in OBJECT_CLASSES)
"""The foreground classes in the order of their mask values 1, 2, ..."""

FORMAT_VERSION = 2  # raise it whenever other pixels come out for the same arguments
_LAST_FILE = "image_labels.txt"  # written last, so its presence means that a folder is complete
_SPLITS = ("train", "val")  # the position is part of each image's seed
_SIZES = range(48, 1025)


def generate(
    root: Path, *, seed: int = 0, train_images: int = 600, val_images: int = 150, image_size: int = 128
) -> Path:
    """Write the generated data set, unless it is there already.

    The folder is filled under a temporary name and renamed when complete, so a process that is killed leaves no half
    data set behind (only a hidden folder that may be deleted), and processes that generate at once all return the
    same complete one. Image i of a split depends on the seed, the size, the split and i alone: asking for more images
    extends the set. The same library versions give the same pixels.

    Args:
        root: folder that receives the data set's own folder, named after the arguments; made if missing.
        seed: 0 or more.
        train_images: number of images of the split `train`, 1 or more.
        val_images: number of images of the split `val`, 0 or more.
        image_size: height and width in pixels, 48 to 1024.

    Returns:
        The data set's folder, with `JPEGImages/<id>.jpg`, `SegmentationClass/<id>.png` (palette images; 0 background,
        classes from 1, 255 void along the outlines), `ImageSets/Segmentation/{train,val}.txt` and `image_labels.txt`
        (a line `id tag tag ...` for each image).

    Raises:
        ArgumentError: an argument is outside its range.
        DataError: the folder is there but lost files.
        OutputError: the folder takes no files.

    Example:
        >>> import tempfile
        >>> folder = generate(Path(tempfile.mkdtemp()), train_images=2, val_images=1)
        >>> sorted(path.name for path in (folder / "JPEGImages").iterdir())
        ['train_00000.jpg', 'train_00001.jpg', 'val_00000.jpg']
    """
    for argument, value, least in (("seed", seed, 0), ("train_images", train_images, 1), ("val_images", val_images, 0)):
        if value < least:
            raise ArgumentError(argument, value, f"give {least} or more")
    if image_size not in _SIZES:
        raise ArgumentError("image_size", image_size, f"give a whole number from {_SIZES[0]} to {_SIZES[-1]}")
    counts = (train_images, val_images)
    name = f"synthetic-v{FORMAT_VERSION}-seed{seed}-train{train_images}-val{val_images}-{image_size}px"
    target = Path(root) / name
    remedy = "give a root where files can be made; without a root the data go to the folder that RCA_CACHE names"
    with output_errors("root", root, remedy):
        if not _is_complete(target):
            _generate(target, seed=seed, counts=counts, image_size=image_size)
    return target


def _generate(target: Path, *, seed: int, counts: tuple[int, ...], image_size: int) -> None:
    work = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        _write(work, seed=seed, counts=counts, image_size=image_size)
        work.rename(target)
    except OSError:
        if not _is_complete(target):  # another process was first
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _is_complete(folder: Path) -> bool:
    if (folder / _LAST_FILE).is_file():
        return True
    if folder.exists():
        raise DataError(
            f"{folder}: has no {_LAST_FILE}, so files of it were lost; delete the folder to generate it anew"
        )
    return False


def _write(folder: Path, *, seed: int, counts: tuple[int, ...], image_size: int) -> None:
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    tag_lines = []
    for split_number, (split, count) in enumerate(zip(_SPLITS, counts, strict=True)):
        ids = [f"{split}_{number:05d}" for number in range(count)]
        for number, image_id in enumerate(ids):
            scene = render_scene(np.random.default_rng([seed, split_number, number]), image_size)
            Image.fromarray(scene.image).save(folder / "JPEGImages" / f"{image_id}.jpg", quality=92, subsampling=0)
            mask = Image.fromarray(scene.mask)  # greyscale until it gets the palette
            mask.putpalette(voc_palette().tobytes())
            mask.save(folder / "SegmentationClass" / f"{image_id}.png")
            tags = [CLASS_NAMES[value - 1] for value in np.unique(scene.mask) if value not in (0, IGNORE_INDEX)]
            tag_lines.append(" ".join([image_id, *tags]))
        _write_lines(folder / "ImageSets" / "Segmentation" / f"{split}.txt", ids)
    _write_lines(folder / _LAST_FILE, tag_lines)


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
