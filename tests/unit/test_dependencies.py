"""SECURITY.md names each dependency of setup.cfg, with the extras it is in and the licence that its release states."""

from __future__ import annotations

import configparser
import importlib.metadata
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What metadata call a licence, where it is no SPDX expression.
SAME = {
    "Apache-2.0": ("apache",),
    "MIT": ("mit license", "mit"),
    "BSD-2-Clause": ("freebsd", "bsd 2-clause"),
    "BSD-3-Clause": ("bsd 3-clause", "bsd license"),
    "Python Software Foundation License": ("python software foundation",),
}


def packages(text: str) -> set[str]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return {re.match(r"[\w.-]+", line).group() for line in lines if line}


def required() -> dict[str, set[str]]:
    """Package to extras; none for what is always installed."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    found: dict[str, set[str]] = {name: set() for name in packages(config["options"]["install_requires"])}
    for extra, text in config["options.extras_require"].items():
        for name in packages(text):
            found.setdefault(name, set()).add(extra)
    return found


def table() -> dict[str, tuple[str, set[str], str]]:
    """Package to reason, extras and licence."""
    text = (ROOT / "SECURITY.md").read_text().partition("## Dependencies")[2]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert len({row[0] for row in rows}) == len(rows)
    return {name: (why, set(filter(None, extras.split(", "))), licence) for name, why, extras, licence in rows[2:]}


def test_table_names_exactly_the_dependencies_and_their_extras():
    assert {name: extras for name, (_, extras, _) in table().items()} == required()
    assert all(why and licence for why, _, licence in table().values())


@pytest.mark.parametrize("name", sorted(required()))
def test_licence_is_what_the_release_states(name):
    try:
        stated = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    licence = table()[name][2].partition(" AND ")[0]  # what builds bring along differs between them
    expression = stated.get("License-Expression")
    if expression:
        assert expression.partition(" AND ")[0] == licence
        return
    classifiers = [line for line in stated.get_all("Classifier") or [] if line.startswith("License")]
    words = " ".join([stated.get("License") or "", *classifiers]).lower()
    assert any(other in words for other in SAME[licence])
