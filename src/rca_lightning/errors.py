"""The errors this library raises on purpose.

Each message names the argument or the file, the value found and the remedy, in that order.
All of them derive from `RCAError` and from the built-in a caller would expect, so both
`except RCAError` and `except FileNotFoundError` work.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import re
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_removed: dict[str, str] = {}


class RCAError(Exception):
    """Base of every error that is raised on purpose by this library."""


class ArgumentError(RCAError, ValueError):
    """An argument has a value outside what it accepts.

    Args:
        name: the argument as the caller spells it.
        value: what was given.
        remedy: what to give instead.
    """

    def __init__(self, name: str, value: Any, remedy: str) -> None:
        super().__init__(name, value, remedy)  # as given: an error crosses processes by calling its class on `args`

    def __str__(self) -> str:
        name, value, remedy = self.args
        return f"{name}={value!r}: {remedy}"


class DatasetNotFoundError(RCAError, FileNotFoundError):
    """A folder or file of a dataset is missing."""


class DataError(RCAError, ValueError):
    """A file of a dataset is there, but its content is not usable."""


class WeightsError(RCAError, ValueError):
    """A weights file does not fit the network, or is not a plain file of tensors."""


class NonFiniteError(RCAError, FloatingPointError):
    """Training has come to a number that is not finite."""


class DamagedError(WeightsError):
    """A checkpoint is cut short or damaged, or holds more than tensors and plain values."""


class OutputError(RCAError, ValueError):
    """A result cannot be written where or as asked."""


class ResultsError(RCAError, ValueError):
    """Results are not what a benchmark server accepts."""


class MissingExtraError(RCAError, ImportError):
    """An optional dependency is needed now and is not installed."""


def require_extra(package: str, *, extra: str, needed_for: str) -> ModuleType:
    """Import an optional dependency, or say which pip command brings it.

    Args:
        package: importable module name, such as `"faiss"`.
        extra: the extra of this library that installs it, such as `"cpu"`.
        needed_for: what the caller wanted to do with it; ends the sentence "... is needed for".

    Returns:
        The imported module.

    Raises:
        MissingExtraError: if the module cannot be imported.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(
            f"the package {package!r} is needed for {needed_for} and cannot be imported ({error}). "
            f"Install it with: pip install 'rca-lightning[{extra}]'"
        ) from error


def first_other_class(names: Sequence[str] | None, others: Sequence[str] | None) -> tuple[int, str, str] | None:
    """Number from 1 and both names of the first class that differs; `None` if none does or names are unknown.

    Example:
        >>> first_other_class(["cat", "dog"], ["cat", "cow"])
        (2, 'dog', 'cow')
        >>> first_other_class(["cat", "dog"], ["cat"])
        (2, 'dog', 'no class')
    """
    if names is None or others is None:
        return None
    pairs = itertools.zip_longest(names, others, fillvalue="no class")
    return next(((number, *pair) for number, pair in enumerate(pairs, start=1) if pair[0] != pair[1]), None)


def refuse_other_classes(
    names: Sequence[str] | None, others: Sequence[str] | None, *, where: str, here: str = "this run", remedy: str
) -> None:
    """Compare class names, whose order says what the values of masks and the channels of maps mean.

    Args:
        names: of what is read; `None` if it says none, which passes.
        others: of what it is read for; `None` if unknown, which passes.
        where: what has `names`, for the message.
        here: what has `others`, for the message.
        remedy: how to make them equal.

    Raises:
        DataError: for other names, or the same in another order; names the first difference.
    """
    if (difference := first_other_class(names, others)) is not None:
        number, name, other = difference
        raise DataError(f"class_names: class {number} is {name!r} in {where}, {other!r} in {here}; {remedy}")


def refuse_removed(**removed: str) -> Callable[[F], F]:
    """Decorates a function that once had more arguments: giving one of them is one clear error.

    Args:
        **removed: name of each removed argument, and since when it is gone and what to use instead. A name that other
            components still have is given with its prefix on the command line, `**{"memory.rule": "..."}`.

    Example:
        >>> @refuse_removed(restarts="gone since 0.2; k-means++ seeds make one run enough")
        ... def cluster(points): ...
        >>> cluster([], restarts=3)
        Traceback (most recent call last):
        rca_lightning.errors.ArgumentError: restarts=3: gone since 0.2; k-means++ seeds make one run enough
    """
    _removed.update(removed)
    reasons = {name.rpartition(".")[2]: reason for name, reason in removed.items()}

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            for name in reasons.keys() & kwargs.keys():
                raise ArgumentError(name, kwargs[name], reasons[name])
            return function(*args, **kwargs)

        # Lightning filters the arguments of a checkpoint by a function that does not follow `__wrapped__`.
        checked.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
        return checked  # type: ignore[return-value]

    return decorate


def explain_removed(message: str) -> str:
    """Message of a parser that knows nothing of an argument, with what became of it where it was removed."""
    for option in re.findall(r"(?:--|option ')([\w.]+)", message, re.IGNORECASE):  # and not the values beside them
        reason = _removed.get(option) or _removed.get(option.rpartition(".")[2])
        if reason is not None:
            return f"{option}: {reason}"
    return message
