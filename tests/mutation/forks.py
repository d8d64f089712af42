"""A process that has imported everything but this library, and forks a child for each mutant."""

from __future__ import annotations

import ast
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

PACKAGE = "rca_lightning"


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a syntax tree in place of its file."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        self._name, self._path = name, path
        self._code = compile(tree, str(path), "exec")

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name != self._name:
            return None
        return importlib.util.spec_from_file_location(name, self._path, loader=self)

    def exec_module(self, module: object) -> None:
        exec(self._code, vars(module))


def preload() -> None:
    """Import all that the library imports, and forget the library itself."""
    torch.set_num_threads(1)
    importlib.import_module(PACKAGE)
    for name in ("faiss", "hypothesis", "sklearn.cluster"):
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
        del sys.modules[name]


def run(module: str, path: Path, tree: ast.Module, tests: Sequence[str], seconds: float) -> tuple[str, float]:
    """Whether the tests pass with this module.

    Args:
        module: its name.
        path: its file.
        tree: what to import in place of it.
        tests: files of tests.
        seconds: after which the child is killed.

    Returns:
        "survived", "killed" or "timeout", and the seconds it took.
    """
    started, child = time.monotonic(), os.fork()
    if child == 0:
        os._exit(_tested(module, path, tree, tests))
    while time.monotonic() - started < seconds:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return ("survived" if status == 0 else "killed"), time.monotonic() - started
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "timeout", time.monotonic() - started


def _tested(module: str, path: Path, tree: ast.Module, tests: Sequence[str]) -> int:
    silent = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silent, stream)
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = tempfile.gettempdir()
    try:
        sys.meta_path.insert(0, _Mutated(module, path, tree))
        return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *tests]))
    except BaseException:  # a module that cannot even be imported is noticed
        return 1
