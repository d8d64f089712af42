"""What may stand in a checkpoint beside the tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from rca_lightning.checkpoints.tensor_file import is_whole

_ARGUMENTS = ("hyper_parameters", "hparams", "module_arguments")  # keys under which Lightning looks for them
_MOST_VALUES = 100_000  # class names are most of them
_MOST_LEVELS = 8


def content_problems(content: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the content of a checkpoint, each in a few words.

    Lightning takes some arguments as orders: before 2.6.2 `_instantiator` had it import and call whatever function
    the checkpoint named.

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
    # The same list may stand at many places of itself, so that what is small in memory has no end when it is written.
    waiting: list[tuple[Any, int]] = [(arguments, 0)]
    seen = 0
    while waiting:
        value, level = waiting.pop()
        seen += 1
        if level > _MOST_LEVELS or seen > _MOST_VALUES:
            yield f"its {key} are larger than arguments are"
            return
        if isinstance(value, Mapping):
            value = [*value.keys(), *value.values()]
        if isinstance(value, (list, tuple, set)):
            waiting.extend((item, level + 1) for item in value)
        elif not (value is None or isinstance(value, (bool, int, float, str))):
            yield f"its {key} hold a {type(value).__name__}"
            return
