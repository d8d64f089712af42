"""The archive that the VOC 2012 evaluation server takes for segmentation."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import IO

from rca_lightning.atomic import write_atomically
from rca_lightning.data.listing import check_image_id
from rca_lightning.errors import ArgumentError

# comp6: trained on other data than VOC's own as well, as every network with ImageNet weights is.
VOC_FOLDER = PurePosixPath("results", "VOC2012", "Segmentation", "comp6_test_cls")
"""Where the masks lie in the archive, one `<id>.png` an image."""

ARCHIVE_ENDINGS = (".tgz", ".tar.gz")


def result_folder(results: Path) -> Path:
    """Return the folder of the masks.

    Args:
        results: the folder that holds `results/VOC2012/...`, such as the `output_dir` of `MaskWriter`.

    Raises:
        ArgumentError: it holds none.
    """
    folder = results / VOC_FOLDER
    if not folder.is_dir():
        raise ArgumentError("results", str(results), f"give the folder that holds {VOC_FOLDER}")
    return folder


def pack(results: Path, ids: Iterable[str], archive: Path) -> None:
    """Pack the masks of some images, whole or not at all; the same masks give the same bytes.

    Order, times, owners and permissions in the archive are fixed. Nothing but the named masks gets into it.

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
    """Raise `ArgumentError` if `archive` does not end as packed archives do."""
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
