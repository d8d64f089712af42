"""The command `rca convert`: writes a folder of label images in the format of another tool."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rca_lightning.data.classes import read_class_file
from rca_lightning.errors import ArgumentError, refuse_other_classes
from rca_lightning.exchange.coco import write_coco
from rca_lightning.exchange.label_folder import LabelFolder
from rca_lightning.exchange.label_studio import write_label_studio
from rca_lightning.exchange.labelme import write_labelme
from rca_lightning.exchange.yolo import write_yolo
from rca_lightning.io.atomic import check_writable, output_errors
from rca_lightning.io.output_folder import stored_classes
from rca_lightning.io.progress import show_progress

_Writer = Callable[..., tuple[int, list[Path]]]
_WRITERS: dict[str, _Writer] = {
    "coco": write_coco,
    "yolo": write_yolo,
    "labelme": write_labelme,
    "labelstudio": write_label_studio,
}
_OPTIONS = {"polygons": ("coco", "labelstudio"), "image_url": ("labelstudio",)}


def main(words: Sequence[str]) -> None:
    """Writes a folder of label images in another format, and prints one line about it.

    Args:
        words: what stands after `rca convert`.

    Raises:
        RCAError: for arguments, folders and files that cannot be used.
        SystemExit: for words that cannot be parsed, and after `--help`.
    """
    given = _parser().parse_args(list(words))
    options = _options(given)
    names = _class_names(given.labels, given.classes)
    folder = LabelFolder(given.labels, given.images, names)
    check_writable("out", given.out)
    images = show_progress(folder, what="convert", total=len(folder))
    with output_errors("out", given.out):
        count, files = _WRITERS[given.to](images, given.out, names, **options)
    print(_summary(folder, count, files))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rca convert",
        description=(
            "Write label images for another tool: instances.json of COCO, data.yaml and labels/ for YOLO segmentation, "
            "JSON files of LabelMe, tasks.json and config.xml of Label Studio. Every connected component is a region; "
            "a brush region of Label Studio is a whole class. Pixels of 255 belong to no region."
        ),
        allow_abbrev=False,
    )
    parser.add_argument(
        "labels", type=Path, help="folder of label images <id>.png: 0 background, 1 the first class, ..."
    )
    parser.add_argument("--images", required=True, type=Path, help="folder of the photographs, of the same names")
    parser.add_argument("--to", required=True, choices=tuple(_WRITERS), help="format to write")
    parser.add_argument("--classes", type=Path, help="class list, one name a line (default: the one beside the labels)")
    parser.add_argument("--out", required=True, type=Path, help="folder to write into")
    parser.add_argument(
        "--polygons",
        action="store_true",
        default=None,
        help="coco, labelstudio: polygons in place of run lengths; yolo and labelme always have them",
    )
    parser.add_argument(
        "--image_url",
        help="labelstudio: address before the names of the photographs (default: its local files, with the folder that "
        "holds the folder of the photographs as LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT)",
    )
    return parser


def _options(given: argparse.Namespace) -> dict[str, Any]:
    options = {name: getattr(given, name) for name in _OPTIONS if getattr(given, name) is not None}
    for name, value in options.items():
        if given.to not in _OPTIONS[name]:
            raise ArgumentError(name, value, f"--to {given.to} has no use for it")
    return options


def _class_names(labels: Path, file: Path | None) -> Sequence[str]:
    """Names of the file; without, those that stand with the labels."""
    stored = stored_classes(labels)
    beside = labels.parent / "classes.txt"
    if file is None and stored is None and not beside.is_file():
        raise ArgumentError("classes", None, f"no class list beside {labels}; give one name a line in a file")
    if file is None:
        return read_class_file(beside) if stored is None else stored
    names = read_class_file(file)
    refuse_other_classes(stored, names, where="the labels", here=str(file), remedy="give the list they were made with")
    return names


def _summary(folder: LabelFolder, count: int, files: list[Path]) -> str:
    parts = [f"{count} regions"]
    if folder.ignored_pixels:
        parts.append(f"{folder.ignored_pixels} pixels of 255 in {folder.ignored_in} labels are in none")
    if folder.without_label:
        parts.append(f"{folder.without_label} photographs have no label")
    return f"converted: {len(folder)} labels to {', '.join(map(str, files))} ({'; '.join(parts)})"
