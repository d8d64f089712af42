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


class Finder(doctest.DocTestFinder):
    """Also finds the examples of decorated functions, which are otherwise taken for those of the decorator's module."""

    def _from_module(self, module, object):
        return super()._from_module(module, inspect.unwrap(object) if callable(object) else object)


def test_examples_are_found():
    assert {
        "rca_lightning.modules.rca_module",
        "rca_lightning.evaluation.seed_iou",
        "rca_lightning.rca.memory_bank",
    } <= set(WITH_EXAMPLES)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # an example that writes a file must not leave it in the checkout
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner()
    for examples in Finder(exclude_empty=True).find(module, name):
        runner.run(examples)
    # Every line that begins an example, so none is lost on the way.
    lines = [line.strip() for line in inspect.getsource(module).splitlines()]
    assert runner.tries == sum(line.startswith(">>> ") for line in lines)
    assert runner.failures == 0
