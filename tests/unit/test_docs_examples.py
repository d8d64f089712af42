"""Every example in a docstring of the package runs and shows what it prints."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import rca_lightning

MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages(rca_lightning.__path__, "rca_lightning.")
    if not name.endswith("__main__")
)
WITH_EXAMPLES = [name for name in MODULES if ">>>" in inspect.getsource(importlib.import_module(name))]


def test_examples_are_found():
    assert {
        "rca_lightning.modules.rca_module",
        "rca_lightning.evaluation.seed_iou",
        "rca_lightning.rca.memory_bank",
    } <= set(WITH_EXAMPLES)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # an example that writes a file must not leave it in the checkout
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
