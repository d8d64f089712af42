"""Checks of arguments by their annotations, and that every public function and class has them."""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch

import rca_lightning
from rca_lightning.arguments import check_arguments
from rca_lightning.errors import ArgumentError

RECORDS = {"Choices", "IntermediateLabel"}  # made by the library alone, of checked arguments


def has_literal(hint: Any) -> bool:
    return get_origin(hint) is Literal or any(has_literal(part) for part in get_args(hint))


def functions_of(module: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name, member in vars(module).items():
        if getattr(member, "__module__", None) != module.__name__ or name.startswith("_"):
            continue
        if inspect.isfunction(member):
            yield name, member
        elif inspect.isclass(member) and name not in RECORDS:
            for inner, method in vars(member).items():
                method = getattr(method, "__func__", method)
                if inspect.isfunction(method) and (inner == "__init__" or not inner.startswith("_")):
                    yield f"{name}.{inner}", method


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    inner: Any = inspect.unwrap(function)
    annotations = {name: hint for name, hint in inner.__annotations__.items() if name != "return"}
    shell = type("Shell", (), {"__annotations__": annotations})
    return get_type_hints(shell, globalns=inner.__globals__)


def every_function() -> Iterator[tuple[str, Callable[..., Any]]]:
    for found in pkgutil.walk_packages(rca_lightning.__path__, "rca_lightning."):
        if not found.name.endswith("__main__"):
            for name, function in functions_of(importlib.import_module(found.name)):
                full = f"{found.name.removeprefix('rca_lightning.')}.{name}"
                yield full, function


def arguments_with(condition: Callable[[Any], bool]) -> list[Any]:
    return [
        pytest.param(function, argument, id=f"{name}({argument})")
        for name, function in every_function()
        for argument, hint in hints_of(function).items()
        if condition(hint)
    ]


def valid(hint: Any) -> Any:
    """A value that the check of this annotation takes."""
    if get_origin(hint) in (Union, UnionType):
        return valid(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return get_args(hint)[0]
    if get_origin(hint) in (list, tuple, Sequence):
        return [valid(part) for part in get_args(hint) if part is not Ellipsis]
    return {bool: True, int: 1, float: 1.0, str: "text"}.get(hint, object())


def call(function: Callable[..., Any], argument: str, value: Any) -> None:
    hints = hints_of(function)
    needed = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    ]
    function(**{**{name: valid(hints.get(name)) for name in needed}, argument: value})


@pytest.mark.parametrize(("function", "argument"), arguments_with(has_literal))
def test_every_argument_with_choices_refuses_other_values(function: Any, argument: str):
    refused = r"^\w+=.*nonsense.*: give (a number, or )?(one of \w|a list)"
    for value in ("nonsense", ["nonsense"]):
        with pytest.raises(ArgumentError, match=refused) as caught:
            call(function, argument, value)
        assert caught.value.args[0] == argument


def test_walk_finds_the_public_names():
    found = {str(one.id).split("(")[0] for one in arguments_with(has_literal)}
    assert {
        "modules.rca_module.RCAModule.__init__",
        "modules.one_stage_module.OneStageModule.__init__",
        "modules.affinity_module.AffinityModule.__init__",
        "modules.frozen_segmentation_module.FrozenSegmentationModule.__init__",
        "modules.segmentation_module.SegmentationModule.__init__",
        "data.datamodule.WSSSDataModule.__init__",
        "callbacks.region_memory.RegionMemoryCallback.__init__",
        "callbacks.pseudo_label_writer.PseudoLabelWriter.__init__",
        "callbacks.mask_writer.MaskWriter.__init__",
        "clustering.cluster.cluster",
        "rca.contrast.region_contrast_loss",
    } <= found


PUBLIC = [
    pytest.param(function, argument, id=f"{name}({argument})")
    for name in rca_lightning._MODULES
    for function in [getattr(rca_lightning, name)]
    for function in [function.__init__ if inspect.isclass(function) else function]
    if inspect.isfunction(function)
    for argument, hint in hints_of(function).items()
    if hint is bool or (get_origin(hint) is UnionType and bool in get_args(hint))
]


@pytest.mark.parametrize(("function", "argument"), PUBLIC)
def test_every_switch_of_a_public_name_refuses_text(function: Any, argument: str):
    with pytest.raises(ArgumentError, match=f"^{argument}='false': give True or False"):
        call(function, argument, "false")


class Named(str, enum.Enum):
    SGD = "sgd"


@check_arguments
def train(
    name: Literal["sgd", "adamw"] | None = None,
    *others: int,
    flip: bool = True,
    steps: int = 1,
    lr: float = 0.1,
    path: str = "",
    scales: tuple[float, ...] = (1.0,),
    pair: tuple[float, float] | None = None,
    steps_of: Sequence[Literal["pamr", "crf"]] = (),
    stride: Literal[8, 16] = 8,
    anything: Any = None,
    large: Sequence[Path] = (),
    **more: Any,
) -> dict[str, Any]:
    """Answers with what it was given."""
    return {**locals()}


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"name": np.str_("sgd")}, "sgd"),
        ({"name": Named.SGD}, "sgd"),
        ({"name": None}, None),
        ({"flip": np.bool_(False)}, False),
        ({"steps": np.int64(3)}, 3),
        ({"steps": torch.tensor(3)}, 3),
        ({"lr": np.float64(0.5)}, 0.5),
        ({"lr": torch.tensor(0.5)}, 0.5),
        ({"lr": 1}, 1),
        ({"path": Path("a") / "b"}, "a/b"),
        ({"scales": np.array([0.5, 1.0])}, [0.5, 1.0]),
        ({"scales": (np.float32(0.5),)}, (0.5,)),
        ({"pair": [1, np.float64(2.0)]}, [1, 2.0]),
        ({"steps_of": ["crf", np.str_("pamr")]}, ["crf", "pamr"]),
        ({"stride": np.int64(16)}, 16),
    ],
)
def test_values_become_plain(given: dict[str, Any], taken: Any):
    (name,) = given
    found = train(**given)[name]
    assert found == taken
    assert type(found) is type(taken)
    if isinstance(taken, (list, tuple)):
        assert list(map(type, found)) == list(map(type, taken))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "adam"}, "name='adam': give one of sgd, adamw, or None"),
        ({"name": True}, "name=True: give one of sgd, adamw, or None"),
        ({"flip": "false"}, "flip='false': give True or False"),
        ({"flip": None}, "flip=None: give True or False"),
        ({"flip": 2}, "flip=2: give True or False"),
        ({"steps": "3"}, "steps='3': give a whole number"),
        ({"steps": 1.5}, "steps=1.5: give a whole number"),
        ({"lr": "0.1"}, "lr='0.1': give a number"),
        ({"path": 3}, "path=3: give text"),
        ({"scales": 0.5}, "scales=0.5: give a list"),
        ({"scales": "0.5,1"}, "scales='0.5,1': give a list"),
        ({"scales": [0.5, "1"]}, "scales='1': give a number"),
        ({"pair": [1.0]}, "pair=[1.0]: give 2 values, or None"),
        ({"steps_of": "pamr"}, "steps_of='pamr': give a list"),
        ({"steps_of": ["pamr", "blur"]}, "steps_of='blur': give one of pamr, crf"),
        ({"stride": 32}, "stride=32: give one of 8, 16"),
        ({"stride": "8"}, "stride='8': give one of 8, 16"),
        ({"stride": np.array([8, 16])}, "stride=array([ 8, 16]): give one of 8, 16"),
    ],
)
def test_other_values_are_one_sentence(given: dict[str, Any], said: str):
    with pytest.raises(ArgumentError) as caught:
        train(**given)
    assert str(caught.value) == said


def test_what_no_annotation_checks_is_left_alone():
    large, one = iter([Path("a")]), np.float64(1)
    found = train("sgd", 1, 2, anything=one, large=large, unknown=one)
    assert found["large"] is large  # a list of all records of a data set would be too long to look at
    assert found["anything"] is one
    assert found["more"] == {"unknown": one}
    assert found["others"] == (1, 2)


def test_a_choice_of_earlier_versions_is_said_to_be_gone():
    @check_arguments(gone=("gmm",))
    def cluster(method: Literal["kmeans"]) -> str:
        return method

    with pytest.raises(ArgumentError, match=r"^method='gmm': gone since 0\.2; give one of kmeans$"):
        cluster("gmm")  # type: ignore[arg-type]


def test_a_data_class_is_checked_when_it_is_made():
    @check_arguments
    @dataclasses.dataclass(frozen=True)
    class Options:
        flip: bool = True

    assert Options(False) == Options(flip=False)
    with pytest.raises(ArgumentError, match=r"^flip='no'"):
        Options(flip="no")  # type: ignore[arg-type]


def test_signature_stays():
    assert list(inspect.signature(train).parameters)[:3] == ["name", "others", "flip"]
    assert train.__doc__ == "Answers with what it was given."
