"""The mutants of a small module: which there are, and that each is one change that shows."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.mutation.mutants import mutants

SOURCE = '''
"""Text with 1 < 2."""
import math

Kind = Literal[1, 2]
logger.info("as %d", 3)

def clip(values: list[4], low: int = 0) -> tuple[5]:
    """More than 6."""
    if not values:
        raise ValueError(7)
    found = max(values[0] + low, low) if low < 8 else -low
    found += True
    store[0] = found
    return found and sorted(values)
'''


def changes() -> list[str]:
    return [mutant.change for mutant in mutants(SOURCE)]


def test_every_kind_of_change_once():
    found = changes()
    expected = [
        "not values -> values",
        "max(values[0] + low, low) -> min(values[0] + low, low)",
        "values[0] + low -> values[0] - low",
        "low < 8 -> low <= 8",
        "low < 8 -> low >= 8",
        "8 -> 9",
        "8 -> 7",
        "-low -> low",
        "found += True -> found -= True",
        "found += True -> pass",
        "True -> False",
        "store[0] = found -> pass",
        "found and sorted(values) -> found or sorted(values)",
    ]
    assert [change for change in expected if change not in found] == []
    assert sorted(set(found) - set(expected)) == ["0 -> -1", "0 -> 1"]
    assert found.count("0 -> 1") == found.count("0 -> -1") == 3  # the default, and two indices


def test_each_is_the_module_with_one_change():
    plain = ast.unparse(ast.parse(SOURCE)).splitlines()
    for mutant in mutants(SOURCE):
        changed = ast.unparse(mutant.tree).splitlines()
        different = [new for old, new in zip(plain, changed, strict=True) if old != new]
        assert len(different) == 1, mutant.change
        compile(mutant.tree, "mutant", "exec")
        assert SOURCE.splitlines()[mutant.line - 1].strip()


def test_modules_that_are_measured_have_mutants_and_tests():
    from tests.mutation.run import ROOT, TESTS, _path

    for name, files in TESTS.items():
        assert next(iter(mutants(_path(name).read_text()))).change
        assert all(Path(ROOT, "tests", "unit", file).is_file() for file in files)
