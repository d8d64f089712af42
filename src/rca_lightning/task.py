"""What the command line trains: maps from image tags, or a segmentation network from masks."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import ArgsType

from rca_lightning.errors import ArgumentError

Task = Literal["localize", "segment"]
DEFAULT_TASK: Task = "localize"
_CONFIG_OPTIONS = ("--config", "-c")


def find_task(args: ArgsType = None) -> Task:
    """The task that words or configuration files ask for, before there is a parser for it.

    Later words win over earlier ones, the same as for any other argument.

    Args:
        args: words after `rca`; default those of the process.

    Returns:
        The task; "localize" where nothing is said.

    Raises:
        ArgumentError: for a task that does not exist.
    """
    if isinstance(args, Namespace):
        args = args.as_dict()
    named = _in_content(args) if isinstance(args, dict) else _in_words(sys.argv[1:] if args is None else args)
    task: Any = DEFAULT_TASK
    for task in named:
        if task not in get_args(Task):
            raise ArgumentError("task", task, f"give one of {', '.join(get_args(Task))}")
    return cast(Task, task)


def _in_words(words: Sequence[str]) -> Iterator[Any]:
    for option, value in _options(words):
        if option == "--task":
            yield value
        elif option in _CONFIG_OPTIONS:
            yield from _in_content(_read(value))


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options with the word that belongs to them: `--name value` or `--name=value`."""
    for position, word in enumerate(words):
        name, equals, value = word.partition("=")
        if equals:
            yield name, value
        elif position + 1 < len(words):
            yield name, words[position + 1]


def _read(path: str) -> Any:
    try:
        return yaml.safe_load(Path(path).read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return None  # the parser says what is wrong with it


def _in_content(content: Any) -> Iterator[Any]:
    """Tasks at the top of a configuration, or within the part of a subcommand."""
    if isinstance(content, dict):
        if "task" in content:
            yield content["task"]
        for command in ("fit", "validate", "test", "predict"):
            yield from _in_content(content.get(command))
