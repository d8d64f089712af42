"""The command `rca labels`: pseudo labels from stored maps."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser

from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.errors import ArgumentError, explain_removed
from rca_lightning.prediction.stored_maps import label_stored_maps


class _Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        reason = explain_removed(" ".join(message.split()))
        self.exit(2, f"rca: {reason}\nSee: rca labels --help\n")


def main(words: Sequence[str]) -> None:
    """Makes pseudo labels from the maps that `rca predict` has stored.

    Args:
        words: the words after `rca labels`.

    Raises:
        RCAError: for arguments, folders and files that cannot be used.
        SystemExit: for words that cannot be parsed, and after `--help`.
    """
    parser = _Parser(
        prog="rca labels",
        description="Pseudo labels from the maps that rca predict has stored: other backgrounds, other refinements.",
    )
    parser.add_argument("--config", help="configuration of rca fit; only its part data is read")
    parser.add_class_arguments(WSSSDataModule, "data")
    parser.add_function_arguments(label_stored_maps, skip={"data"})
    only_config = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    only_config.add_argument("--config")
    path = only_config.parse_known_args(words)[0].config
    if path is not None:
        parser.set_defaults({f"data.{name}": value for name, value in _data_of(path).items()})
    given = parser.parse_args(list(words))
    arguments = {name: value for name, value in vars(given).items() if name not in {"data", "config"}}
    label_stored_maps(WSSSDataModule(**vars(given.data)), **arguments)


def _data_of(path: str) -> dict[str, Any]:
    """The part `data` of a configuration of `rca fit`."""
    if not Path(path).is_file():
        raise ArgumentError("config", path, "there is no such file")
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (ValueError, yaml.YAMLError) as error:
        raise ArgumentError("config", path, f"is not YAML ({error})") from error
    section = content.get("data") if isinstance(content, dict) else None
    if not isinstance(section, dict):
        raise ArgumentError("config", path, "has no part data; give the configuration of rca fit")
    return section
