"""Halves of a split: settings are chosen on one and reported on the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ablate.grid import HALVES

from rca_lightning import WSSSDataModule
from rca_lightning.errors import OutputError
from rca_lightning.io.atomic import write_atomically


def split_ids(data: dict[str, Any], split: str) -> list[str]:
    """Image ids of a split, in the order of its list.

    Args:
        data: arguments of the data module.
        split: its split.
    """
    source = WSSSDataModule(**data).options.open()
    return [record.image_id for record in source.records(split, with_masks=False)]


def half_file(out: Path, name: str) -> Path:
    """The list of a half; not relative, since the data module looks into the folder of the data set first."""
    return (out / "halves" / f"{name}.txt").resolve()


def write_half(ids: list[str], name: str, out: Path) -> Path:
    """Write every other id: `<split>_a` has the first, the third and so on, `<split>_b` the rest.

    Lists are often sorted by year or by class, so a half of each stretch is fairer than the first half.

    Args:
        ids: of the whole split.
        name: of the half.
        out: the output folder.

    Returns:
        The file.

    Raises:
        OutputError: another list is there already, which scores may rest on.
    """
    path = half_file(out, name)
    text = "".join(f"{image_id}\n" for image_id in ids[HALVES.index(name[-2:]) :: 2])
    if path.is_file() and path.read_text() != text:
        raise OutputError(f"{path}: lists other images than it would now; give another --out")
    write_atomically(path, lambda file: file.write(text.encode()))
    return path
