"""Reading of checkpoints: loads no code, refuses malformed content and checkpoints of another network or task."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rca_lightning.checkpoints.compatibility import migrate
from rca_lightning.errors import ArgumentError, DamagedError, WeightsError
from rca_lightning.io.tensor_file import is_whole, load_tensors

_ARGUMENTS = ("hyper_parameters", "hparams", "module_arguments")  # keys under which Lightning looks for them
_MOST_VALUES = 100_000  # class names are most of them
_MOST_LEVELS = 8


def content_problems(content: Mapping[str, Any]) -> Iterator[str]:
    """Yields the problems of a checkpoint's content, each in a few words.

    Arguments that begin with an underscore are instructions to Lightning: before 2.6.2 it imported and called whatever
    function `_instantiator` named.

    Args:
        content: what was unpickled; has a `state_dict`.
    """
    state = content["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        yield "its state_dict is no dictionary of tensors"
    elif strange := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        yield f"{strange[0]!r} in its state_dict is no tensor"
    elif spread := [name for name, value in state.items() if not is_whole(value)]:
        yield f"{spread[0]!r} in its state_dict has not the numbers that its shape says"
    if not isinstance(content["pytorch-lightning_version"], str):
        yield "its pytorch-lightning_version is no text"
    for key in _ARGUMENTS:
        yield from _argument_problems(key, content.get(key, {}))


def _argument_problems(key: str, arguments: Any) -> Iterator[str]:
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
        yield f"its {key} are no named arguments"
        return
    for name in arguments:
        if name.startswith("_"):
            yield f"its {key} give orders to Lightning ({name})"
    # A list may contain itself, or the same list many times: small in memory, endless when it is written.
    pending: list[tuple[Any, int]] = [(arguments, 0)]
    visited = 0
    while pending:
        value, level = pending.pop()
        visited += 1
        if level > _MOST_LEVELS or visited > _MOST_VALUES:
            yield f"its {key} are larger than arguments are"
            return
        if isinstance(value, Mapping):
            value = [*value.keys(), *value.values()]
        if isinstance(value, (list, tuple, set)):
            pending.extend((item, level + 1) for item in value)
        elif not (value is None or isinstance(value, (bool, int, float, str))):
            yield f"its {key} hold a {type(value).__name__}"
            return


_KEYWORDS = ("last", "hpc")  # names that Lightning looks up itself
_REGISTRY = re.compile("registry(:.*)?", re.IGNORECASE)  # models that Lightning fetches from a registry
_SHOWN = 3
# Weights that a task has; of two tasks that have them the later one.
_OWN_NAMES = {
    "localize": "network.coarse_head.",
    "segment": "network.head.",
    "one_stage": "teacher.",
    "affinity": "network.boundary.",
    "segment_frozen": "network.classifier.",
}


def check_checkpoint(path: str, task: str | None = None) -> dict[str, Any]:
    """Checks the file of `--ckpt_path` before anything is built; see `read_checkpoint`.

    Args:
        path: value of `--ckpt_path`; keywords and folders that Lightning resolves itself pass.
        task: its task, see `check_task`; default any.

    Returns:
        The arguments of the module that it was trained with; none for a keyword or a folder.

    Raises:
        ArgumentError: if there is no such file, or it is the address of one elsewhere.
        WeightsError: if the file is no checkpoint of `rca fit`, or of another task.
    """
    if not path:
        raise ArgumentError("ckpt_path", path, "give the path of a checkpoint, last, or null")
    if path == "best":
        raise ArgumentError("ckpt_path", path, "only the process that trained knows it; give its path, or last")
    if path in _KEYWORDS or Path(path).is_dir() or (_REGISTRY.fullmatch(path) and not Path(path).is_file()):
        return {}
    content = read_checkpoint(path, map_location="meta")  # no tensor is read
    if task is not None:
        check_task(content["state_dict"], task)
    return dict(content.get("hyper_parameters", {}))


def read_checkpoint(path: str | Path, map_location: str = "cpu", *, argument: str = "ckpt_path") -> dict[str, Any]:
    """Reads a checkpoint of `rca fit`; only tensors and plain values are unpickled.

    Args:
        path: a file on this machine.
        map_location: device of the tensors; `"meta"` reads everything but them.
        argument: name of the path in error messages.

    Raises:
        ArgumentError: if there is no such file, or the path is a folder or the address of a file elsewhere.
        DamagedError: if the file is damaged or holds more than tensors.
        WeightsError: if it is not a checkpoint of Lightning, its arguments are not those of a module, or it is of a
            later format; see `migrate`.
    """
    shown = str(path)
    if "://" in shown:
        raise ArgumentError(argument, shown, "checkpoints are not downloaded; fetch the file and give its path here")
    if Path(path).is_dir():
        raise ArgumentError(argument, shown, "this is a folder; give a checkpoint in it")
    if not Path(path).is_file():
        raise ArgumentError(argument, shown, "there is no such file; give a checkpoint of rca fit")
    try:
        content = load_tensors(path, map_location=map_location)
    except Exception as error:  # pickle, zip and torch each have errors of their own for a damaged or hostile file
        raise DamagedError(
            f"{argument}={shown!r} was not loaded: damaged, or more than tensors in it; give a checkpoint of rca fit"
        ) from error
    if not isinstance(content, Mapping) or not {"state_dict", "pytorch-lightning_version"} <= content.keys():
        raise WeightsError(
            f"{argument}={shown!r} is no checkpoint of rca fit; weights of a backbone alone go into --model.weights"
        )
    for problem in content_problems(content):
        raise WeightsError(f"{argument}={shown!r}: {problem}; give a checkpoint of rca fit")
    checkpoint = dict(content)
    migrate(checkpoint, file=f"{argument}={shown!r}")
    return checkpoint


def check_fit(stored: Mapping[str, Tensor], own: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> None:
    """Checks that a checkpoint has the tensors of a network, by name and shape.

    Args:
        stored: `state_dict` of the checkpoint.
        own: `state_dict` of the network.
        arguments: `hyper_parameters` of the checkpoint, for the message.

    Raises:
        WeightsError: if names or shapes differ.
    """
    differences = [f"{name} is missing" for name in own if name not in stored]
    differences += [f"{name} is surplus" for name in stored if name not in own]
    differences += [
        f"{name} {tuple(stored[name].shape)} instead of {tuple(value.shape)}"
        for name, value in own.items()
        if name in stored and stored[name].shape != value.shape
    ]
    if differences:
        more = f" and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise WeightsError(
            f"the checkpoint is of another network (backbone={arguments.get('backbone')!r}, "
            f"num_classes={arguments.get('num_classes')!r}): {'; '.join(differences[:_SHOWN])}{more}. "
            "Leave out the arguments that change the network, or give the checkpoint of this one"
        )


def check_task(names: Iterable[str], task: str) -> None:
    """Checks that a checkpoint is not of another task.

    Args:
        names: in the `state_dict` of the checkpoint.
        task: "localize", "segment", "segment_frozen", "one_stage" or "affinity".

    Raises:
        WeightsError: if it is of another one; a checkpoint of none passes.
    """
    other = task_of(names)
    if other not in (None, task):
        raise WeightsError(
            f"the checkpoint is of the task {other!r}, not of {task!r}; "
            f"give --task {other}, or a checkpoint of rca fit --task {task}"
        )


def task_of(names: Iterable[str]) -> str | None:
    """Finds the task of a checkpoint by the names in its `state_dict`; `None` if it is of none."""
    names = tuple(names)
    tasks = [task for task, prefix in _OWN_NAMES.items() if any(name.startswith(prefix) for name in names)]
    return tasks[-1] if tasks else None
