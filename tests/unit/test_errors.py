"""Errors: their bases, their messages, and that they survive the way between processes."""

from __future__ import annotations

import copy
import inspect
import pickle
import sys

import pytest

from rca_lightning import errors
from rca_lightning.errors import ArgumentError, MissingExtraError, RCAError, require_extra

BUILT_IN = {
    "ArgumentError": ValueError,
    "DatasetNotFoundError": FileNotFoundError,
    "DataError": ValueError,
    "WeightsError": ValueError,
    "DamagedError": ValueError,
    "NonFiniteError": FloatingPointError,
    "OutputError": ValueError,
    "ResultsError": ValueError,
    "MissingExtraError": ImportError,
}


def test_every_error_is_an_rca_error_and_a_built_in():
    found = {
        name: cls
        for name, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, Exception) and cls is not RCAError and cls.__module__ == errors.__name__
    }
    assert set(found) == set(BUILT_IN)
    for name, cls in found.items():
        assert issubclass(cls, RCAError)
        assert issubclass(cls, BUILT_IN[name])


def test_argument_error_names_argument_value_and_remedy_in_that_order():
    text = str(ArgumentError("slots", -3, "give at least 1"))
    assert text == "slots=-3: give at least 1"
    assert str(ArgumentError("backend", "fais", "give 'faiss'")) == "backend='fais': give 'faiss'"


@pytest.mark.parametrize("copied", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_argument_error_crosses_processes(copied):
    error = ArgumentError("shape", (1, 2), "give (2, 1)")
    again = copied(error)
    assert type(again) is ArgumentError
    assert str(again) == str(error)


def test_require_extra_gives_the_module():
    assert require_extra("json", extra="cpu", needed_for="a test") is sys.modules["json"]


def test_require_extra_names_package_purpose_and_pip_command():
    with pytest.raises(MissingExtraError) as caught:
        require_extra("rca_no_such_package", extra="crf", needed_for="refining masks")
    text = str(caught.value)
    assert "'rca_no_such_package' is needed for refining masks" in text
    assert text.endswith("pip install 'rca-lightning[crf]'")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_require_extra_reports_a_broken_package_like_a_missing_one(tmp_path, monkeypatch):
    (tmp_path / "rca_broken_package.py").write_text("raise ImportError('libsomething.so.1 is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match="libsomething"):
        require_extra("rca_broken_package", extra="cpu", needed_for="a test")


@errors.refuse_removed(bins="gone since 0.2; give edges")
def histogram(edges: list[int], *, density: bool = False) -> tuple[list[int], bool]:
    """Answers with what it was given."""
    return edges, density


def test_removed_argument_is_refused_with_what_to_use():
    assert histogram([1], density=True) == ([1], True)
    with pytest.raises(errors.ArgumentError, match=r"^bins=3: gone since 0\.2; give edges$"):
        histogram([1], bins=3)
    assert list(inspect.signature(histogram).parameters) == ["edges", "density"]


def test_parser_says_what_became_of_a_removed_argument():
    said = errors.explain_removed("Option 'model.bins' is not accepted")
    assert said == "model.bins: gone since 0.2; give edges"
    assert errors.explain_removed("unrecognized arguments: --bins=3") == "bins: gone since 0.2; give edges"
    for other in ("Option 'model.bind' is not accepted", "unrecognized arguments: --edges bins", 'key "bins": no int'):
        assert errors.explain_removed(other) == other


@errors.refuse_removed(**{"left.mode": "gone since 0.2; there is one"})
def left() -> None:
    """Another component may have an argument `mode`."""


def test_removed_argument_of_one_component_only():
    with pytest.raises(errors.ArgumentError, match=r"^mode=1: gone since"):
        left(mode=1)
    assert errors.explain_removed("unrecognized arguments: --left.mode 1") == "left.mode: gone since 0.2; there is one"
    assert errors.explain_removed("unrecognized arguments: --right.mode 1") == "unrecognized arguments: --right.mode 1"


def test_callback_that_is_gone_says_since_when_and_why():
    with pytest.raises(ImportError, match=r"FailTogether is gone since 0\.2.*torchrun"):
        from rca_lightning import FailTogether  # noqa: F401


@pytest.mark.parametrize(
    ("names", "others", "difference"),
    [
        (["cat", "dog"], ["cat", "dog"], None),
        (["cat", "dog"], ("cat", "dog"), None),
        (None, ["cat"], None),
        (["cat"], None, None),
        (["dog", "cat"], ["cat", "dog"], "class 1 is 'dog' in the maps, 'cat' in this run"),
        (["cat"], ["cat", "dog"], "class 2 is 'no class' in the maps, 'dog' in this run"),
    ],
)
def test_other_classes_are_refused_with_the_first_difference(names, others, difference):
    if difference is None:
        errors.refuse_other_classes(names, others, where="the maps", remedy="predict again")
        return
    with pytest.raises(errors.DataError, match=f"^class_names: {difference}; predict again$"):
        errors.refuse_other_classes(names, others, where="the maps", remedy="predict again")
