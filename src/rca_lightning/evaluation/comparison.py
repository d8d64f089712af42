"""Comparison of two score files: their difference with its interval, and whether they were made alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rca_lightning.errors import ArgumentError, DataError, ResultsError, first_other_class
from rca_lightning.evaluation.image_counts import ImageCounts, mean_iou
from rca_lightning.evaluation.intervals import LEVEL, Interval, paired_difference
from rca_lightning.evaluation.protocol import TAGS_IN_WORDS

IMAGES_ENDING = "_images.npz"
"""Beside `validate.json` the counts of its images are in `validate_images.npz`."""

_NEEDED = ("split", "images", "miou", "per_class_iou")
_MOST_BYTES = 1 << 28
_ROUNDING = 1e-6  # of a sum in another order
# Entries of a protocol that only say what was computed with which tools; others say how it was scored.
_TOLD = ("versions", "commit", "checkpoint", "weights", "final_map", "maps", "segmenter")
_OF_THE_TRAINING = ("supervision.seed_dir", "supervision.masks")  # which older checkpoints do not know
# Neither has seen a mask: label images of a network need no threshold.
_WITHOUT_MASKS = (None, "default", "auto")
_ALIKE: dict[str, tuple[Any, ...]] = {
    "threshold": _WITHOUT_MASKS,
    "background.kind": (None, "fixed"),
    "tag_threshold.chosen": (None, "default", "calibrated"),
}
# Numbers may be what is compared, once how they were chosen is alike; and that is told by `threshold`.
_NUMBERS = ("background", "tag_threshold")
_NOT_TOLD = ("background.by_masks",)
_NEWER = ("background", "tag_threshold", "maps", "segmenter")  # which files of older versions lack


class _NotRecorded:
    """What a protocol says of an entry that it lacks."""


_MISSING = _NotRecorded()


def images_file(path: Path) -> Path:
    """Where the counts of the images of a score file are, such as `validate_images.npz`."""
    return path.with_name(path.stem + IMAGES_ENDING)


@dataclass(frozen=True)
class ScoreFile:
    """A score file, such as `validate.json`, or the scores in `run.json` of `rca masks`.

    Attributes:
        path: of the file.
        content: the scores.
    """

    path: Path
    content: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> ScoreFile:
        """Reads a score file.

        Raises:
            ArgumentError: if there is no such file.
            DataError: if it is no score file, or of a version that wrote no protocol.
        """
        if not path.is_file():
            problem = "this is a folder; give the file in it" if path.is_dir() else "there is no such file"
            raise ArgumentError("file", str(path), f"{problem}; rca validate writes validate.json")
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path}: too large for a score file; give validate.json of rca validate")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            json.dumps(content, ensure_ascii=False).encode()  # halves of characters cannot be printed
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{path}: no JSON could be read ({error}); give validate.json of rca validate") from error
        if isinstance(content, dict) and "scores" in content:  # of `rca masks`
            content = content["scores"]
            if content is None:
                raise DataError(f"{path}: rca masks had no masks to score with; run it again with --masks FOLDER")
            if isinstance(content, dict) and "protocol" not in content:
                raise DataError(f"{path}: it says no protocol, as older versions wrote none; run rca masks again")
        if not _is_score(content):
            known = "validate.json, test.json, pseudo_labels.json or run.json"
            raise DataError(f"{path}: this is no score file; give {known}")
        if not isinstance(content.get("protocol"), dict):
            raise DataError(f"{path}: it says no protocol, as older versions wrote none; score again")
        return cls(path, content)

    @property
    def miou(self) -> float | None:
        """Mean IoU without masks' help."""
        value: float | None = self.content["miou"]
        return value

    @property
    def by_class(self) -> Mapping[str, float | None]:
        """IoU of each class; `None` for one that takes no part."""
        shares: Mapping[str, float | None] = self.content["per_class_iou"]
        return shares


def _is_score(content: Any) -> bool:
    if not isinstance(content, dict) or not all(name in content for name in _NEEDED):
        return False
    by_class = content["per_class_iou"]
    if not isinstance(by_class, dict) or not by_class or not isinstance(content["images"], int):
        return False
    others = [content.get(name) for name in ("miou", "threshold", "oracle_miou", "oracle_threshold")]
    values = [*others, *by_class.values()]
    return all(value is None or (isinstance(value, (int, float)) and 0 <= value <= 1) for value in values)


def protocol_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Entries of two protocols that differ, a line each: those that make a comparison unfair, and those that do not.

    Unfair are other images, supervision, views, refinements, backgrounds, and thresholds chosen in another way. A
    threshold that is a default or chosen on the maps alone, and none at all, are alike in that no mask had a part. What
    files of older versions do not say is told as "not recorded".

    Args:
        first: of one score file.
        second: of the other.
    """
    unfair: list[str] = []
    told: list[str] = []
    for name in sorted(first.keys() | second.keys()):
        for entry, *values in _pairs(name, first.get(name, _MISSING), second.get(name, _MISSING)):
            if values[0] != values[1] and entry not in _NOT_TOLD:
                (told if _are_alike(entry, values) else unfair).append(f"{entry}: {_in_words(values)}")
    return unfair, told


def protocol_name(protocol: Mapping[str, Any]) -> str:
    """Short name of a protocol, in words and a digest of all that makes a comparison unfair where it differs.

    Args:
        protocol: see `make_protocol`.

    Example:
        >>> known = {"split": {"name": "val", "images": 24}, "threshold": "default", "supervision": {"tags": "image"}}
        >>> protocol_name(known)
        'val, 24 images, true tags, threshold default, deecca4a'
    """
    entries = dict(flat_entries(protocol))
    deciding = {
        name: "alike" if value in _ALIKE.get(name, ()) else bool(value) if name in _OF_THE_TRAINING else value
        for name, value in entries.items()
        if name.split(".")[0] not in _TOLD and name not in _NOT_TOLD and not _is_number(name)
    }
    # A group that is None is like one whose entries are.
    known = {name: value for name, value in deciding.items() if value not in (None, False, "alike")}
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:8]
    return f"{entries.get('split.name')}, {protocol_in_words(protocol)}, {digest}"


def protocol_in_words(protocol: Mapping[str, Any]) -> str:
    """The entries of a protocol that a score is never told without: how many images, whose tags, which threshold.

    Args:
        protocol: see `make_protocol`.
    """
    entries = dict(flat_entries(protocol))
    tags = TAGS_IN_WORDS.get(entries.get("supervision.tags"), "no tags")
    threshold = entries.get("threshold")
    parts = [f"{entries.get('split.images')} images", tags]
    return ", ".join([*parts, *([] if threshold is None else [f"threshold {threshold}"])])


def _are_alike(entry: str, values: Sequence[Any]) -> bool:
    """Whether values of an entry, which differ, leave a comparison fair."""
    group = entry.split(".")[0]
    if _MISSING in values:
        return group in (*_TOLD, *_NEWER)
    unknown = entry in _OF_THE_TRAINING and None in values
    alike = all(value in _ALIKE.get(entry, ()) for value in values)
    return group in _TOLD or unknown or alike or _is_number(entry)


def _is_number(entry: str) -> bool:
    return entry.split(".")[0] in _NUMBERS and entry not in _ALIKE


def flat_entries(protocol: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the entries of a protocol, and those of entries that are groups by dotted names."""
    for name, value in protocol.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{part}", single) for part, single in value.items())
        else:
            yield name, value


def _pairs(name: str, one: Any, other: Any) -> Iterator[tuple[str, Any, Any]]:
    """An entry of two protocols, or what is in it if it is a group; a group that is None has entries that are."""
    both = (one, other)
    parts = sorted({part for value in both if isinstance(value, dict) for part in value})
    if not parts or not all(value is None or isinstance(value, dict) for value in both):
        yield name, one, other
        return
    for part in parts:
        first, second = (None if value is None else value.get(part, _MISSING) for value in both)
        yield f"{name}.{part}", first, second


def _in_words(values: Sequence[Any]) -> str:
    if _MISSING in values:
        return f"not recorded in the {('first', 'second')[values.index(_MISSING)]} file"
    return " and ".join(map(_shown, values))


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:12]}...{text[-12:]}"


def compare_files(first: Path, second: Path, *, anyway: bool = False, console: Console | None = None) -> None:
    """Prints two scores, their difference and its paired interval, IoU by class, and what differs in their protocols.

    Args:
        first: a score file, such as `validate.json`.
        second: another of the same classes; the difference is this one less the first.
        anyway: print a comparison that is not fair, with the reasons beside the number.
        console: where to print; default standard output.

    Raises:
        ArgumentError: if a file is missing.
        DataError: if one is no score file, or of an older version or other classes.
        ResultsError: if the comparison is not fair, with a line for each reason.
    """
    console = console or Console()
    one, other = ScoreFile.read(first), ScoreFile.read(second)
    names = [*one.by_class], [*other.by_class]
    if (difference := first_other_class(*names)) is not None:
        number, name, its = difference
        raise DataError(f"{second}: class {number - 1} is {its!r}, {name!r} in {first}; compare scores of one data set")
    unfair, told = protocol_differences(one.content["protocol"], other.content["protocol"])
    if unfair and not anyway:
        reasons = "\n".join(f"  {line}" for line in unfair)
        raise ResultsError(
            f"not compared, as the scores were not made alike (--anyway: print them all the same)\n{reasons}"
        )
    for line in _lines(one, other, unfair):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(_table(one, other))
    for title, lines in (("differs, so the comparison is not fair", unfair), ("differs too", told)):
        for line in lines:
            console.print(f"{title}: {line}", highlight=False, markup=False, soft_wrap=True)
    if not unfair and not told:
        console.print("the protocols are the same", highlight=False)


def _lines(one: ScoreFile, other: ScoreFile, unfair: list[str]) -> Iterator[str]:
    for letter, score in (("a", one), ("b", other)):
        content = score.content
        threshold = content.get("threshold")
        at = "" if threshold is None else f" at threshold {threshold:g}"
        best, where = content.get("oracle_miou"), content.get("oracle_threshold")
        oracle = "" if best is None or where is None else f", oracle {_percent(best)} at {where:g}"
        yield f"{letter}: {score.path}"
        yield f"   split {content['split']!r}, {content['images']} images, mIoU {_percent(score.miou)}{at}{oracle}"
    flag = f"  NOT A FAIR COMPARISON ({len(unfair)} difference{'s' * (len(unfair) > 1)}, below)" if unfair else ""
    if one.miou is None or other.miou is None:
        yield f"b - a: one has no mIoU{flag}"
        return
    gain = other.miou - one.miou
    found = _paired(one, other)
    if isinstance(found, str):
        yield f"b - a: {_signed(gain)} mIoU{flag}"
        yield f"no interval: {found}"
    else:
        ends = f"{_signed(found.low)} to {_signed(found.high)}"
        yield f"b - a: {_signed(gain)} mIoU, {100 * LEVEL:g} % interval {ends}{flag}"
        yield f"   (paired bootstrap, {found.draws} draws of {found.images} images)"


def _paired(one: ScoreFile, other: ScoreFile) -> Interval | str:
    """Difference with its interval, or why there is none."""
    counts = []
    for score in (one, other):
        path = images_file(score.path)
        if not path.is_file():
            return f"{path} is not there; rca validate writes it beside the scores"
        counts.append(ImageCounts.load(path))
        if not _belongs(counts[-1], score):
            return f"{path} is of another run than {score.path.name}; score again"
    if counts[0].ids != counts[1].ids:
        return "the images are not the same, so nothing can be paired"
    thresholds = one.content.get("threshold"), other.content.get("threshold")
    return paired_difference(counts[0], counts[1], thresholds)


def _belongs(counts: ImageCounts, score: ScoreFile) -> bool:
    threshold = score.content.get("threshold")
    counted = threshold in counts.thresholds if counts.thresholds else threshold is None
    if not counted or len(counts.ids) != score.content["images"] or counts.num_classes != len(score.by_class) - 1:
        return False
    matrix = counts.confusion(threshold).astype(np.float64)
    found = float(mean_iou(np.diagonal(matrix), matrix.sum(axis=1), matrix[:, :-1].sum(axis=0)))
    return abs(found - score.miou) < _ROUNDING if score.miou is not None else found != found


def _table(one: ScoreFile, other: ScoreFile) -> Table:
    table = Table()
    table.add_column("class", overflow="fold")
    for column in ("IoU of a", "IoU of b", "b - a"):
        table.add_column(column, justify="right", no_wrap=True)
    rows = [(name, value, other.by_class[name]) for name, value in one.by_class.items()]
    for name, *values in [*rows, ("mean", one.miou, other.miou)]:
        if name == "mean" and len(table.rows) == len(rows):
            table.add_section()
        before, now = values
        gain = "-" if before is None or now is None else _signed(now - before)
        table.add_row(Text(name), _percent(before), _percent(now), gain)
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}"
