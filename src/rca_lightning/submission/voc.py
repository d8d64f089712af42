"""Packs and checks masks for the VOC 2012 evaluation server."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from PIL import Image

from rca_lightning.constants import IGNORE_INDEX
from rca_lightning.data.classes import voc_palette
from rca_lightning.data.images import image_size, open_image
from rca_lightning.data.voc import voc_root
from rca_lightning.errors import ArgumentError, DataError, ResultsError
from rca_lightning.io.atomic import write_atomically
from rca_lightning.io.listing import IMAGE_EXTENSIONS, check_image_id, first_few, list_by_stem

# comp6: trained on other data than VOC's own as well, as every network with ImageNet weights is.
VOC_FOLDER = PurePosixPath("results", "VOC2012", "Segmentation", "comp6_test_cls")
"""Where the masks lie in the archive, one `<id>.png` an image."""

ARCHIVE_ENDINGS = (".tgz", ".tar.gz")


def result_folder(results: Path) -> Path:
    """Return the folder of the masks in the one that holds `results/VOC2012/...`.

    Raises:
        ArgumentError: there is none.
    """
    folder = results / VOC_FOLDER
    if not folder.is_dir():
        raise ArgumentError("results", str(results), f"give the folder that holds {VOC_FOLDER}")
    return folder


def pack(results: Path, ids: Iterable[str], archive: Path) -> None:
    """Pack the masks of some images; the archive is written whole or not at all.

    Order, times, owners and permissions are fixed, so the same masks give the same bytes.

    Args:
        results: the folder that holds `results/VOC2012/...`.
        ids: the images.
        archive: the file to write, ending in `.tgz` or `.tar.gz`; one that is there is replaced.

    Raises:
        ArgumentError: another ending, or no such folder.
        DataError: an id is not a plain file name.
        OSError: a mask cannot be read, or the archive not be written.

    Source: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html, "Running on test data"
    """
    check_ending(archive)
    folder = result_folder(results)
    names = sorted(check_image_id(image_id, where="ids") for image_id in ids)
    write_atomically(archive, lambda file: _write(file, folder, names))


def check_ending(archive: Path) -> None:
    """Raise `ArgumentError` unless `archive` ends in `.tgz` or `.tar.gz`."""
    if not archive.name.endswith(ARCHIVE_ENDINGS):
        raise ArgumentError("pack", str(archive), f"give a name that ends in {' or '.join(ARCHIVE_ENDINGS)}")


def _write(file: IO[bytes], folder: Path, names: list[str]) -> None:
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0, compresslevel=6) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name in names:
            content = (folder / f"{name}.png").read_bytes()
            entry = tarfile.TarInfo(str(VOC_FOLDER / f"{name}.png"))  # its time is 0, its owner nobody in particular
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))


@dataclass(frozen=True)
class Passed:
    """Number of images with a result, and the label values or category ids that occur, ascending."""

    images: int
    values: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.images} images pass; found: {', '.join(map(str, self.values))}"


class Findings:
    """Collects the faults of a set of results by kind; all of them are told in one error.

    Example:
        >>> findings = Findings()
        >>> findings.add("missing", "a")
        >>> findings.add("missing", "b")
        >>> findings.refuse("results='out'")
        Traceback (most recent call last):
        rca_lightning.errors.ResultsError: results='out': 2 faults; correct them before anything is uploaded
          2 missing: a, b
    """

    def __init__(self) -> None:
        self._faults: dict[str, list[str]] = {}

    def add(self, kind: str, what: str) -> None:
        """Note one fault: its kind, as it reads after a number, and the file or entry."""
        self._faults.setdefault(kind, []).append(what)

    def refuse(self, where: str) -> None:
        """Raise `ResultsError` if there was a fault; it begins with `where`, argument and value of what was checked."""
        if not self._faults:
            return
        total = sum(map(len, self._faults.values()))
        lines = [f"{where}: {total} fault{'s' if total > 1 else ''}; correct them before anything is uploaded"]
        lines += [f"  {len(places)} {kind}: {first_few(places)}" for kind, places in self._faults.items()]
        raise ResultsError("\n".join(lines))


def check_voc(results: Path, ids: Sequence[str], root: Path, *, num_classes: int = 20) -> Passed:
    """Check that every image has one mask as the server wants it, and that there are no other files.

    A mask is a PNG with the VOC palette, as large as its photograph, of values 0 (background) to `num_classes`. The
    server takes no 255: that stands for "not scored" in the official masks only.

    Args:
        results: the folder that holds `results/VOC2012/Segmentation/comp6_test_cls`.
        ids: the images of the split.
        root: folder of the data set, with the photographs in `JPEGImages`.
        num_classes: L, the foreground classes.

    Returns:
        The number of images and the label values that occur.

    Raises:
        ResultsError: every kind of fault with its count and the first few files: missing, extra or wrongly named
            files, other sizes, values out of range, no palette, colour, links, or what cannot be read.
        ArgumentError: no such layout in `results`.
        DatasetNotFoundError: no photographs in `root`.
        DataError: an id is no plain file name or has no photograph, or a photograph cannot be read.
    """
    photographs = _photographs(ids, root)
    folder = result_folder(results)
    findings = Findings()
    present = _check_names(folder, ids, findings)
    values: set[int] = set()
    for image_id in present:
        path = folder / f"{image_id}.png"
        if path.is_symlink() or not path.is_file():
            findings.add("not plain files", path.name)
            continue
        size = image_size(photographs[image_id])
        try:
            values |= _check_mask(path, size, num_classes, findings)
        except (ValueError, zlib.error):  # Pillow raises both for some kinds of damage
            findings.add("unreadable", path.name)
    findings.refuse(f"results={str(folder)!r}")
    return Passed(len(present), tuple(sorted(values)))


def _photographs(ids: Sequence[str], root: Path) -> dict[str, Path]:
    folder = voc_root(root) / "JPEGImages"
    photographs = list_by_stem(folder, IMAGE_EXTENSIONS)
    absent = [check_image_id(image_id, where="ids") for image_id in ids if image_id not in photographs]
    if absent:
        raise DataError(f"ids: {len(absent)} of {len(ids)} have no photograph in {folder}: {first_few(absent)}")
    return photographs


def _check_names(folder: Path, ids: Sequence[str], findings: Findings) -> list[str]:
    """Return the images that have a file of their name."""
    names = {path.name for path in folder.iterdir()}
    present = [image_id for image_id in ids if f"{image_id}.png" in names]
    missing = {image_id.casefold(): image_id for image_id in ids if f"{image_id}.png" not in names}
    for name in sorted(names.difference(f"{image_id}.png" for image_id in present)):
        meant = missing.pop(Path(name).stem.casefold(), None)
        if meant is None:
            findings.add("extra", name)
        else:
            findings.add("wrongly named", f"{name} (for {meant}.png)")
    for image_id in missing.values():
        findings.add("missing", f"{image_id}.png")
    return present


def _check_mask(path: Path, size: tuple[int, int], num_classes: int, findings: Findings) -> set[int]:
    """Return the values of a mask that is in order, none of one that is not."""
    with open_image(path) as image:
        image.verify()  # the checksums; the file must then be opened anew
    with open_image(path) as image:
        width, height = image.size
        if image.format != "PNG":
            findings.add("no PNG", f"{path.name} ({image.format})")
        elif (height, width) != size:
            findings.add("of another size", f"{path.name} ({width} x {height} instead of {size[1]} x {size[0]})")
        elif image.mode != "P":
            grey = image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")
            findings.add("grey, without the VOC palette" if grey else "in colour", path.name)
        else:
            values = set(np.unique(np.asarray(image)).tolist())
            return values if _check_values(path.name, image, values, num_classes, findings) else set()
    return set()


def _check_values(name: str, image: Image.Image, values: set[int], num_classes: int, findings: Findings) -> bool:
    wrong = sorted(value for value in values if value > num_classes)
    if wrong:
        listed = ", ".join("255 (void)" if value == IGNORE_INDEX else str(value) for value in wrong[:4])
        findings.add(f"with values above {num_classes}", f"{name} ({listed})")
        return False
    colours = np.array(image.getpalette() or [], dtype=np.uint8).reshape(-1, 3)
    expected = voc_palette()
    if any(value >= len(colours) or (colours[value] != expected[value]).any() for value in values):
        findings.add("without the VOC palette", name)
        return False
    return True
