"""Settings as words of the command line, and back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rca_lightning.errors import ArgumentError

SET_BY_THE_TOOL = frozenset(
    {"config", "seed_everything", "ckpt_path", "trainer.default_root_dir", "trainer.logger", "data.eval_split"}
)
_KEY = re.compile(r"[a-z]\w*(\.\w+)+\+?")


def as_words(settings: Mapping[str, Any]) -> list[str]:
    """`{"model.num_prototypes": 3}` as `["--model.num_prototypes=3"]`."""
    return [f"--{key}={_value(value)}" for key, value in settings.items()]


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def key_problem(key: Any) -> str | None:
    """What is wrong with a key of the command line, as the end of a sentence; None if nothing is."""
    if key in SET_BY_THE_TOOL:
        return "is set by the tool itself; leave it out"
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        return "is no key of the command line; write it as model.num_prototypes or memory.slots"
    return None


def further_words(given: Sequence[str]) -> list[str]:
    """What was typed for every run, as one `--key=value` a setting.

    Args:
        given: the words that are no options of the tool: `--key=value`, or `--key` followed by its value.

    Raises:
        ArgumentError: for a word that belongs to nothing, a key without value, or one that the tool sets.
    """
    found: list[str] = []
    waiting = list(given)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--"):
            raise ArgumentError("argument", word, "belongs to no option; give settings as --key value")
        key, equals, value = word[2:].partition("=")
        problem = key_problem(key)
        if problem:
            raise ArgumentError("argument", word, f"{problem}; run.py --help lists the options of the tool")
        if not equals:
            if not waiting or waiting[0].startswith("--"):
                raise ArgumentError("argument", word, "has no value; give it as --key=value")
            value = waiting.pop(0)
        found.append(f"--{key}={value}")
    return found
