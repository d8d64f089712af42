"""docs/method.md names functions that exist and cite its equations, and files in the order of the path."""

from __future__ import annotations

import importlib
import re
from operator import attrgetter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "method.md").read_text()
ROWS = re.findall(r"^\| \((\d+)\) \|.*\| `([\w/]+)\.py` \| (.+) \|$", PAGE, flags=re.MULTILINE)
NAMED = [(number, file, name) for number, file, names in ROWS for name in re.findall(r"`([\w.]+)`", names)]


def test_page_numbers_eighteen_equations():
    assert [int(number) for number in re.findall(r"^\| \((\d+)\) \|", PAGE, flags=re.MULTILINE)] == list(range(1, 19))


@pytest.mark.parametrize(("number", "file", "name"), NAMED)
def test_function_exists_and_cites_its_equation(number: str, file: str, name: str):
    module = importlib.import_module(f"rca_lightning.{file.replace('/', '.')}")
    function = attrgetter(name)(module)
    owner = attrgetter(name.split(".")[0])(module)
    assert function.__module__ == module.__name__
    cited = f"{function.__doc__} {owner.__doc__}"
    assert re.search(rf"equations? .*\({number}\)", " ".join(cited.split()), flags=re.IGNORECASE), (
        f"{name} does not cite ({number})"
    )


def test_every_file_named_on_the_page_is_there():
    files = re.findall(r"`((?:[a-z]\w*/)+\w+\.(?:py|md))`", PAGE)
    assert len(files) > 20
    for file in files:
        assert (ROOT / "src" / "rca_lightning" / file).is_file() or (ROOT / file).is_file(), file


def test_path_from_step_to_prototypes_has_at_most_ten_files():
    listed = re.findall(r"`([\w/]+\.py)`", PAGE.partition("Ten files")[2].partition("\nBelow")[0])
    assert len(listed) == len(set(listed)) == 10
