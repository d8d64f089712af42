"""File of a drawn atlas, from which a later run shows it again without drawing."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rca_lightning.atlas.atlas import AtlasClass
from rca_lightning.atlas.page import IndexEntry, Row, Tile
from rca_lightning.io.atomic import write_atomically

_FORMAT = 1  # raise it whenever files of before cannot be read


def save_atlas(path: Path, classes: Sequence[AtlasClass], *, key: str) -> None:
    """Writes the classes of an atlas without their thumbnails, whole or not at all.

    Args:
        path: of the file, `.npz`.
        classes: as `draw_atlas` returns them.
        key: what they were drawn from, such as the number of a model.
    """
    tiles = [tile for drawn in classes for row in drawn.rows for tile in row.tiles]
    pictures = [tile.picture for tile in tiles if tile.picture is not None]
    content = {"format": _FORMAT, "key": key, "classes": [_described(drawn) for drawn in classes]}
    text, crops = np.array(json.dumps(content)), np.array(pictures, dtype=np.uint8)
    write_atomically(path, lambda file: np.savez_compressed(file, content=text, pictures=crops))


def load_atlas(path: Path, *, key: str) -> list[AtlasClass] | None:
    """Reads the classes of an atlas; None where the file is missing, damaged, or was drawn from something else."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            content = json.loads(str(stored["content"]))
            if (content["format"], content["key"]) != (_FORMAT, key):
                return None
            pictures = iter(stored["pictures"])
        return [_restored(described, pictures) for described in content["classes"]]
    except Exception:  # zip, numpy and json each have errors of their own for a damaged file
        return None


def _described(drawn: AtlasClass) -> dict[str, Any]:
    entry = drawn.entry
    numbers = {"mean_cosine": entry.mean_cosine, "between": entry.between}
    return {
        "value": drawn.value,
        "subtitle": drawn.subtitle,
        "entry": {
            **{name: getattr(entry, name) for name in ("name", "page", "regions", "images", "prototypes")},
            **{name: None if math.isnan(number) else number for name, number in numbers.items()},
        },
        "rows": [
            {
                "title": row.title,
                "lines": list(row.lines),
                "share": row.share,
                "tiles": [[tile.left, tile.right, tile.picture is not None] for tile in row.tiles],
            }
            for row in drawn.rows
        ],
    }


def _restored(described: dict[str, Any], pictures: Any) -> AtlasClass:
    entry: dict[str, Any] = dict(described["entry"])
    for name in ("mean_cosine", "between"):
        entry[name] = math.nan if entry[name] is None else entry[name]
    rows = tuple(
        Row(
            row["title"],
            tuple(row["lines"]),
            row["share"],
            tuple(Tile(next(pictures) if drawn else None, left, right) for left, right, drawn in row["tiles"]),
        )
        for row in described["rows"]
    )
    return AtlasClass(described["value"], IndexEntry(**entry), described["subtitle"], rows)
