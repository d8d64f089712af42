"""Checks of arguments by their annotations: choices, switches, numbers, text, and sequences of these."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from numbers import Integral, Real
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, overload

from rca_lightning.errors import ArgumentError

F = TypeVar("F", bound=Callable[..., Any])

_SEQUENCES = (list, tuple, Sequence)
_SCALARS = (bool, int, float, str)


@overload
def check_arguments(function: F) -> F: ...
@overload
def check_arguments(*, gone: Collection[str]) -> Callable[[F], F]: ...
def check_arguments(function: F | None = None, *, gone: Collection[str] = ()) -> F | Callable[[F], F]:
    """Decorates a function or a class: refuses arguments that their annotations exclude.

    Checked are `Literal`, `bool`, `int`, `float`, `str`, `None`, unions and sequences of these; other annotations
    accept anything. Scalars of numpy and torch, text of numpy and paths become plain values of Python, which every
    checkpoint can hold.

    Args:
        function: what to decorate; of a class its `__init__` is checked.
        gone: choices of earlier versions, to say so of them.

    Raises:
        ArgumentError: at the call, naming the argument, the value and what to give.

    Example:
        >>> @check_arguments
        ... def train(optimizer: Literal["sgd", "adamw"], flip: bool = True): ...
        >>> train("adam")
        Traceback (most recent call last):
        rca_lightning.errors.ArgumentError: optimizer='adam': give one of sgd, adamw
        >>> train("sgd", flip="false")
        Traceback (most recent call last):
        rca_lightning.errors.ArgumentError: flip='false': give True or False
    """
    if function is None:
        return lambda decorated: _checked(decorated, gone)
    return _checked(function, gone)


def _checked(function: F, gone: Collection[str]) -> F:
    if inspect.isclass(function):
        cls: Any = function
        cls.__init__ = _checked(cls.__init__, gone)
        return function
    signature = inspect.signature(function)
    positional = [
        p.name for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]

    @functools.cache  # when first called: an annotation may name what is defined further down
    def hints() -> dict[str, Any]:
        inner: Any = inspect.unwrap(function)
        annotations = {name: hint for name, hint in inner.__annotations__.items() if name != "return"}
        every = get_type_hints(SimpleNamespace(__annotations__=annotations), globalns=inner.__globals__)
        return {name: hint for name, hint in every.items() if _says_something(hint)}

    def plain(name: str, value: Any) -> Any:
        if name not in hints():
            return value
        try:
            return _plain(name, value, hints()[name])
        except ArgumentError as error:
            if isinstance(value, str) and value in gone:
                raise ArgumentError(name, value, f"gone since 0.2; {error.args[2]}") from None
            raise

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        named = [plain(name, value) for name, value in zip(positional, args, strict=False)]
        return function(*named, *args[len(named) :], **{name: plain(name, value) for name, value in kwargs.items()})

    # Lightning filters the arguments of a checkpoint by a function that does not follow `__wrapped__`.
    checked.__signature__ = signature  # type: ignore[attr-defined]
    return checked  # type: ignore[return-value]


def _says_something(hint: Any) -> bool:
    """Whether anything is checked for this annotation: a sequence of other things may be too long to look at."""
    if get_origin(hint) in (Union, UnionType, *_SEQUENCES):
        return any(_says_something(part) for part in get_args(hint))
    return get_origin(hint) is Literal or hint in _SCALARS


def _plain(name: str, value: Any, hint: Any) -> Any:
    """The value as plain Python, if it is what the annotation says."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return _plain_of_union(name, value, get_args(hint))
    if origin in _SEQUENCES:
        return _plain_sequence(name, value, origin, get_args(hint))
    if origin is Literal:
        return _choice(name, value, get_args(hint))
    if hint in _SCALARS:
        return _scalar(name, value, hint)
    return value


def _plain_of_union(name: str, value: Any, members: Sequence[Any]) -> Any:
    if value is None and NoneType in members:
        return None
    if any(type(value) is member for member in members):
        return value
    refusals = []
    for member in members:
        if member is not NoneType:
            try:
                return _plain(name, value, member)
            except ArgumentError as error:
                refusals.append(error)
    _, found, remedy = refusals[0].args
    kinds = [member for member in members if member is not NoneType]
    for member, refusal in list(zip(kinds, refusals, strict=True))[1:]:
        if get_origin(member) is Literal:
            remedy += f", or {refusal.args[2].removeprefix('give ')}"
    raise ArgumentError(name, found, f"{remedy}, or None" if NoneType in members else remedy)


def _plain_sequence(name: str, value: Any, kind: Any, hints: Sequence[Any]) -> Any:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0:
        raise ArgumentError(name, value, "give a list")
    values = value.tolist() if hasattr(value, "tolist") else list(value)
    if kind is tuple and Ellipsis not in hints and len(values) != len(hints):
        raise ArgumentError(name, value, f"give {len(hints)} values")
    each = hints if kind is tuple and Ellipsis not in hints else [*hints[:1]] * len(values)
    plain = [_plain(name, one, hint) for one, hint in zip(values, each, strict=True)]
    return tuple(plain) if isinstance(value, tuple) else plain


def _choice(name: str, value: Any, choices: Sequence[Any]) -> Any:
    given = _item(value)
    for choice in choices:
        if isinstance(given, type(choice)) and isinstance(given, bool) == isinstance(choice, bool) and given == choice:
            return choice
    raise ArgumentError(name, value, f"give one of {', '.join(map(str, choices))}")


def _scalar(name: str, value: Any, hint: type) -> Any:
    given = os.fspath(value) if hint is str and isinstance(value, os.PathLike) else _item(value)
    if hint is str:
        if isinstance(given, str):
            return given if type(given) is str else str.__str__(given)
        raise ArgumentError(name, value, "give text")
    if hint is bool:
        if isinstance(given, Integral) and given in (0, 1):
            return bool(given)
        raise ArgumentError(name, value, "give True or False")
    if hint is int:
        if isinstance(given, Integral):
            return given if isinstance(given, bool) else int(given)
        raise ArgumentError(name, value, "give a whole number")
    if isinstance(given, Real):
        return given if isinstance(given, int) else float(given)
    raise ArgumentError(name, value, "give a number")


def _item(value: Any) -> Any:
    """What a scalar of numpy or a tensor of one number holds; other values as they are."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
