"""Reading a grid, with every mistake found before anything runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NoReturn

from ablate.grid import Grid, Row
from ablate.words import key_problem
from ablate.yamlfile import read_yaml

from rca_lightning.errors import DataError
from rca_lightning.evaluation.seed_iou import DEFAULT_THRESHOLDS

_GRID_KEYS = {
    "title", "config", "seeds", "splits", "common", "rows", "baseline", "reference", "fixed_threshold", "halves",
}  # fmt: skip
_ROW_KEYS = {"title", "group", "set", "fit", "seeds", "splits"}
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")


def load_grid(path: Path) -> Grid:
    """The grid of a file.

    Raises:
        DataError: for the first thing that is wrong with it, by name.
    """
    content = read_yaml(path, what="grid")
    reader = _Reader(path)
    reader.check_keys(content, _GRID_KEYS, "")
    for key in ("config", "rows"):
        if not content.get(key):
            reader.refuse(key, "must be there and not be empty")
    rows = reader.rows(content)
    grid = Grid(
        path=path,
        title=str(content.get("title", path.stem)),
        config=reader.config(content["config"]),
        common=reader.settings(content.get("common"), "common"),
        rows=rows,
        baseline=reader.row_name(content.get("baseline", next(iter(rows))), rows, "baseline"),
        reference=reader.row_name(content["reference"], rows, "reference") if content.get("reference") else None,
        fixed_threshold=reader.threshold(content),
        halves=reader.flag(content.get("halves", False), "halves"),
    )
    for row in rows.values():
        reader.check_reading(row, rows)
    return grid


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path = path

    def refuse(self, where: str, problem: str) -> NoReturn:
        raise DataError(f"grid {self.path}: {where}: {problem}")

    def check_keys(self, content: dict[str, Any], known: set[str], where: str) -> None:
        for key in content:
            if key not in known:
                self.refuse(f"{where}{key}", f"is no key here; there are {', '.join(sorted(known))}")

    def flag(self, value: Any, where: str) -> bool:
        if not isinstance(value, bool):
            self.refuse(where, f"is {value!r}; write true or false")
        return value

    def config(self, value: Any) -> tuple[str, ...]:
        paths = [value] if isinstance(value, str) else value
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            self.refuse("config", f"is {value!r}; give the path of a configuration, or a list of paths")
        return tuple(paths)

    def settings(self, value: Any, where: str) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.refuse(where, f"is {value!r}; give keys of the command line and their values")
        for key in value:
            problem = key_problem(key)
            if problem:
                self.refuse(f"{where}.{key}", problem)
        return dict(value)

    def seeds(self, value: Any, where: str) -> tuple[int, ...]:
        whole = isinstance(value, list) and all(type(seed) is int and seed >= 0 for seed in value)
        if not whole or not value or len(set(value)) < len(value):
            self.refuse(where, f"is {value!r}; give different whole numbers from 0 on as a list")
        return tuple(value)

    def splits(self, value: Any, where: str) -> tuple[str, ...]:
        names = isinstance(value, list) and all(isinstance(name, str) and _NAME.fullmatch(name) for name in value)
        if not names or not value or len(set(value)) < len(value):
            self.refuse(where, f"is {value!r}; give different names of splits as a list")
        return tuple(value)

    def rows(self, content: dict[str, Any]) -> dict[str, Row]:
        if not isinstance(content["rows"], dict):
            self.refuse("rows", "must give a name to each row")
        seeds = self.seeds(content.get("seeds", [0]), "seeds")
        splits = self.splits(content.get("splits", ["train", "val"]), "splits")
        return {name: self.row(name, row or {}, seeds, splits) for name, row in content["rows"].items()}

    def row(self, name: Any, content: Any, seeds: tuple[int, ...], splits: tuple[str, ...]) -> Row:
        where = f"rows.{name}"
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            self.refuse(where, "names become file names: use letters, digits, - and _, and quote a number")
        if not isinstance(content, dict):
            self.refuse(where, f"is {content!r}; give keys of {', '.join(sorted(_ROW_KEYS))}")
        self.check_keys(content, _ROW_KEYS, f"{where}.")
        return Row(
            name=name,
            title=str(content.get("title", name)),
            group=str(content.get("group", "")),
            settings=self.settings(content.get("set"), f"{where}.set"),
            fit=content.get("fit"),
            seeds=self.seeds(content["seeds"], f"{where}.seeds") if "seeds" in content else seeds,
            splits=self.splits(content["splits"], f"{where}.splits") if "splits" in content else splits,
        )

    def row_name(self, name: Any, rows: dict[str, Row], where: str) -> str:
        if not isinstance(name, str) or name not in rows:
            self.refuse(where, f"there is no row {name!r}; there are {', '.join(rows)}")
        return name

    def threshold(self, content: dict[str, Any]) -> float | str:
        value = content.get("fixed_threshold", (content.get("splits") or ["train"])[0])
        if isinstance(value, str):
            return value
        if isinstance(value, bool) or value not in DEFAULT_THRESHOLDS:
            self.refuse("fixed_threshold", f"is {value!r}; give a split, or one of 0.05, 0.1, ... 0.95")
        return float(value)

    def check_reading(self, row: Row, rows: dict[str, Row]) -> None:
        """Follow `fit` to a row that trains."""
        passed = [row.name]
        while (source := rows[passed[-1]].fit) is not None:
            where = f"rows.{passed[-1]}.fit"
            self.row_name(source, rows, where)
            if source in passed:
                self.refuse(where, f"goes round in a circle: {' -> '.join([*passed, source])}")
            passed.append(source)
        missing = set(row.seeds) - set(rows[passed[-1]].seeds)
        if missing:
            self.refuse(
                f"rows.{row.name}.seeds", f"row {passed[-1]!r}, whose checkpoints it reads, has no seed {min(missing)}"
            )
