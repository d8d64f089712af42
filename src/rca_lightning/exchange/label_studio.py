"""Writes label images as tasks for Label Studio, to be corrected there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
import numpy.typing as npt

from rca_lightning.data.classes import voc_palette
from rca_lightning.exchange.label_folder import LabelImage
from rca_lightning.io.atomic import write_atomically
from rca_lightning.version import __version__

FILE = "tasks.json"
CONFIG = "config.xml"
LOCAL_FILES = "/data/local-files/?d="  # address under which Label Studio serves a folder of its machine


def write_label_studio(
    images: Iterable[LabelImage],
    out: Path,
    class_names: Sequence[str],
    *,
    image_url: str | None = None,
    polygons: bool = False,
) -> tuple[int, list[Path]]:
    """Write `tasks.json` as the images come, whole or not at all, and the labelling interface `config.xml`.

    Labels are predictions: annotators start from them. A brush region is a class of an image, for one brush paints and
    erases all of it; a polygon is a connected component.

    Args:
        images: the label images.
        out: folder of the files.
        class_names: the L foreground classes.
        image_url: what stands before the name of a photograph in its address; default: the folder of the photographs
            below `LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT`, which is to be the folder that it lies in.
        polygons: whether to write polygons in place of brush regions.

    Returns:
        The number of regions, and both files.
    """
    count = 0

    def write(file: IO[bytes]) -> None:
        nonlocal count
        for number, image in enumerate(images):
            results = list(_polygons(image, class_names) if polygons else _brushes(image, class_names))
            count += len(results)
            prefix = _local(image.photograph.parent) if image_url is None else image_url
            task = {
                "data": {"image": prefix + quote(image.photograph.name)},
                "predictions": [{"model_version": f"rca_lightning {__version__}", "result": results}],
            }
            file.write((b",\n" if number else b"[\n") + json.dumps(task, separators=(",", ":")).encode())
        file.write(b"\n]\n")

    write_atomically(out / FILE, write)
    config = _config(class_names, "PolygonLabels" if polygons else "BrushLabels")
    write_atomically(out / CONFIG, lambda file: file.write(config.encode()))
    return count, [out / FILE, out / CONFIG]


def _local(folder: Path) -> str:
    return f"{LOCAL_FILES}{quote(folder.resolve().name)}/"


def _brushes(image: LabelImage, class_names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for number, (value, region) in enumerate(image.regions(), start=1):
        content = {"format": "rle", "rle": encode_brush(region)}
        yield _result(number, image.size, "brushlabels", class_names[value - 1], content)


def _polygons(image: LabelImage, class_names: Sequence[str]) -> Iterator[dict[str, Any]]:
    height, width = image.size
    for number, (value, polygon) in enumerate(image.polygons(), start=1):
        points = (polygon * 100 / np.array([width, height])).tolist()  # percent of each side
        yield _result(number, image.size, "polygonlabels", class_names[value - 1], {"points": points, "closed": True})


def _result(number: int, size: tuple[int, int], kind: str, name: str, content: dict[str, Any]) -> dict[str, Any]:
    height, width = size
    return {
        "id": str(number),
        "from_name": "label",
        "to_name": "image",
        "type": kind,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {**content, kind: [name]},
    }


_LENGTH_BITS = (3, 4, 8, 16)  # sizes of the field for a run's length; each run says which one it has


def encode_brush(region: npt.NDArray[np.bool_]) -> list[int]:
    """Encode a region `(H, W)` in the run lengths of Label Studio's brush, as bytes.

    A head of 32 bits for the number of values, 5 for the bits of a value less one and 4 times 4 for the bits of each
    size of a length less one; then for each run a 1, two bits for the size of its length, its length less one, and the
    value. Values are those of RGBA pixels row by row, 0 or 255, so that each pixel counts four.

    Example:
        >>> encode_brush(np.array([[True]]))
        [0, 0, 0, 4, 57, 27, 252, 127, 224]
    """
    flat = region.ravel()
    ends = np.flatnonzero(np.concatenate([flat[1:] != flat[:-1], [True]])) + 1 if flat.size else np.zeros(0, np.int64)
    lengths = np.diff(ends, prepend=0) * 4
    bits = [f"{flat.size * 4:032b}{8 - 1:05b}", *(f"{size - 1:04b}" for size in _LENGTH_BITS)]
    for length, value in zip(lengths.tolist(), flat[ends - 1].tolist(), strict=True):
        bits += _run(length, "11111111" if value else "00000000")
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def _run(length: int, value: str) -> Iterator[str]:
    longest = 1 << _LENGTH_BITS[-1]
    while length > 0:
        part = min(length, longest)
        choice = next(number for number, size in enumerate(_LENGTH_BITS) if part <= 1 << size)
        yield f"1{choice:02b}{part - 1:0{_LENGTH_BITS[choice]}b}{value}"
        length -= part


def _config(class_names: Sequence[str], kind: str) -> str:
    colours = ("#" + bytes(colour).hex() for colour in voc_palette()[1:].tolist())
    labels = "".join(
        f"    <Label value={quoteattr(name)} background={quoteattr(colour)}/>\n"
        for name, colour in zip(class_names, colours, strict=False)
    )
    image = '  <Image name="image" value="$image" zoom="true" zoomControl="true"/>\n'
    return f'<View>\n{image}  <{kind} name="label" toName="image">\n{labels}  </{kind}>\n</View>\n'
