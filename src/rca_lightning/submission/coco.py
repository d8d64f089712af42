"""Writes and checks COCO results: one region for each image and class, as compressed run lengths."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rca_lightning.data.classes import COCO_CATEGORIES, COCO_CLASSES
from rca_lightning.data.coco_shapes import decode_rle
from rca_lightning.errors import ArgumentError, DataError, DatasetNotFoundError, ResultsError
from rca_lightning.io.atomic import write_atomically
from rca_lightning.submission.voc import Findings, Passed

_COCO_NAME = re.compile(r"(?:COCO_\w+_)?(\d{1,12})")  # 000000000139, COCO_val2014_000000000042


class CocoForm:
    """Makes the entries of a results file, with the ids of its images and categories.

    Ids are those of the annotations where they are given. Else, with the 80 classes of COCO, a class has COCO's
    category id, and an image with a name like COCO's the number in it; with other classes the category id is the label
    value, and the image id the name.

    Args:
        class_names: the L foreground classes in the order of their label values.
        categories: category id of each class.
        images: image id by the name of the photograph without its ending.

    Raises:
        ArgumentError: another number of categories than of classes.

    Example:
        >>> CocoForm(["cat", "dog"]).image_id("000000000139")
        '000000000139'
        >>> CocoForm(COCO_CLASSES).image_id("000000000139")
        139
    """

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        categories: Sequence[int] | None = None,
        images: Mapping[str, int | str] | None = None,
    ) -> None:
        self._is_coco = tuple(class_names) == COCO_CLASSES
        official = tuple(COCO_CATEGORIES) if self._is_coco else tuple(range(1, len(class_names) + 1))
        self._categories = official if categories is None else tuple(categories)
        self._images = images or {}
        if len(self._categories) != len(class_names):
            raise ArgumentError("categories", self._categories, f"give {len(class_names)} ids, one a class")

    def image_id(self, name: str) -> int | str:
        """Return the id of an image; `name` is that of the photograph without its ending."""
        if name in self._images:
            return self._images[name]
        match = _COCO_NAME.fullmatch(name) if self._is_coco else None
        return name if match is None else int(match[1])

    def entries(self, name: str, labels: npt.NDArray[np.uint8], score: float) -> list[dict[str, Any]]:
        """Make the entries of one image, in the order of its label values.

        Args:
            name: name of the photograph without its ending.
            labels: `(H, W)`, 0 background, 1..L classes.
            score: confidence in `[0, 1]`, the same for all regions.

        Returns:
            For each class that occurs `{"image_id", "category_id", "segmentation": {"size": [H, W], "counts": str},
            "score"}`.

        Raises:
            ArgumentError: a value above L, or a score out of its range.
        """
        if not (math.isfinite(score) and 0 <= score <= 1):
            raise ArgumentError("score", score, f"give a confidence in [0, 1] for {name!r}")
        values = [int(value) for value in np.unique(labels) if value > 0]
        if values and values[-1] > len(self._categories):
            raise ArgumentError("labels", values[-1], f"give values up to {len(self._categories)} for {name!r}")
        return [
            {
                "image_id": self.image_id(name),
                "category_id": self._categories[value - 1],
                "segmentation": encode_rle(labels == value),
                "score": score,
            }
            for value in values
        ]


def encode_rle(region: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Encode a region `(H, W)` as `{"size": [H, W], "counts": compressed run lengths}`.

    Example:
        >>> encode_rle(np.array([[False, True], [False, True]]))
        {'size': [2, 2], 'counts': '22'}
    """
    from pycocotools import mask as coco_mask

    code = coco_mask.encode(np.asfortranarray(region, dtype=np.uint8))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}


def write_coco_results(path: Path, entries: Iterable[dict[str, Any]]) -> int:
    """Write entries as they come to a JSON file, one a line and atomically; returns how many there were."""
    count = 0

    def write(file: Any) -> None:
        nonlocal count
        file.write(b"[")
        for entry in entries:
            file.write(b",\n" if count else b"\n")
            file.write(json.dumps(entry, allow_nan=False).encode())
            count += 1
        file.write(b"\n]\n")

    write_atomically(path, write)
    return count


_FIELDS = ("image_id", "category_id", "segmentation", "score")
_RLE_SIGNS = frozenset(map(chr, range(48, 112)))


def check_coco(results: Path, annotations: Path) -> Passed:
    """Check every entry of a results file against the images and categories of a data set.

    An image may have no entry, or several of one category.

    Args:
        results: JSON list of `{"image_id", "category_id", "segmentation": {"size", "counts"}, "score"}`.
        annotations: JSON of the data set; only its `images` and `categories` are read, so the `image_info` file of a
            test set does as well.

    Returns:
        The number of images with entries and the category ids that occur.

    Raises:
        ResultsError: every kind of fault with its count and the first few entries: missing fields, unknown images or
            categories, regions of another size or that cannot be decoded, scores that are no number in `[0, 1]`.
        DatasetNotFoundError: no such file.
        DataError: the annotations cannot be used.
    """
    sizes, known_categories = _read_known(annotations)
    where = f"results={str(results)!r}"
    findings = Findings()
    images, categories = set(), set()
    for number, entry in enumerate(_read_entries(results, where)):
        shown = f"entry {number}"
        missing = [name for name in _FIELDS if name not in entry] if isinstance(entry, dict) else list(_FIELDS)
        if missing:
            findings.add("without all fields", f"{shown} ({', '.join(missing)})")
            continue
        _check_score(entry["score"], shown, findings)
        if _is_known(entry["category_id"], known_categories):
            categories.add(entry["category_id"])
        else:
            findings.add("of an unknown category_id", f"{shown} ({reprlib.repr(entry['category_id'])})")
        if _is_known(entry["image_id"], sizes):
            images.add(entry["image_id"])
            _check_region(entry["segmentation"], sizes[entry["image_id"]], shown, findings)
        else:
            findings.add("of an unknown image_id", f"{shown} ({reprlib.repr(entry['image_id'])})")
    findings.refuse(where)
    return Passed(len(images), tuple(sorted(categories)))


def _read_known(path: Path) -> tuple[dict[int | str, tuple[int, int]], frozenset[int]]:
    """Height and width by image id, and the category ids."""
    content = _read_json(path, argument="annotations")
    try:
        sizes = {image["id"]: (int(image["height"]), int(image["width"])) for image in content["images"]}
        return sizes, frozenset(category["id"] for category in content["categories"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"annotations={str(path)!r}: no COCO file of images and categories ({type(error).__name__}: {error}); "
            "give the instances or image_info JSON of the split"
        ) from error


def _read_entries(path: Path, where: str) -> list[Any]:
    entries = _read_json(path, argument="results")
    if not isinstance(entries, list) or not entries:
        raise ResultsError(f"{where}: no list of entries, or an empty one; write one entry an image and category")
    return entries


def _read_json(path: Path, *, argument: str) -> Any:
    if not path.is_file():
        raise DatasetNotFoundError(f"{argument}={str(path)!r}: no such file; give the path of the JSON file")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        kind = ResultsError if argument == "results" else DataError
        raise kind(f"{argument}={str(path)!r}: not JSON ({error}); write or fetch it anew") from error


def _is_known(value: Any, known: Any) -> bool:
    # True == 1 and 1.0 == 1 in Python, not on a server.
    return type(value) in (int, str) and value in known


def _check_score(score: Any, shown: str, findings: Findings) -> None:
    if isinstance(score, bool) or not isinstance(score, (int, float)):
        findings.add("with a score that is no number", f"{shown} ({reprlib.repr(score)})")
    elif isinstance(score, float) and not math.isfinite(score):
        findings.add("with a score that is not finite", f"{shown} ({score})")
    elif not 0 <= score <= 1:
        findings.add("with a score out of [0, 1]", f"{shown} ({reprlib.repr(score)})")


def _check_region(region: Any, size: tuple[int, int], shown: str, findings: Findings) -> None:
    height, width = size
    if not isinstance(region, dict) or not isinstance(region.get("counts"), str):
        findings.add("whose segmentation is no compressed RLE", shown)
        return
    if region.get("size") != [height, width]:
        findings.add("of another size", f"{shown} ({reprlib.repr(region.get('size'))} instead of {[height, width]})")
        return
    try:
        if not _RLE_SIGNS.issuperset(region["counts"]):
            raise DataError("a sign that no RLE has")
        decode_rle(region, height=height, width=width, where=shown)
    except DataError:
        findings.add("whose RLE cannot be decoded", shown)
