"""The parser of `rca`, num_requested before anything runs."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from ablate.plain import plain

from rca_lightning import RCAModule, WSSSDataModule
from rca_lightning.cli.main import RCACLI
from rca_lightning.errors import ArgumentError


class _OnlyParsing(RCACLI):
    """The command line up to where it would build and run something."""

    def instantiate_classes(self) -> None:
        self.trainer = self.model = self.datamodule = None  # type: ignore[assignment]

    def after_instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


@functools.cache
def _parser() -> Any:
    logging.disable(logging.INFO)  # it tells which seed it has set
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning would rather read the words of the process itself
            words = ["fit", "--data.dataset=synthetic", "--seed_everything=0"]
            return _OnlyParsing(RCAModule, WSSSDataModule, args=words).parser
    finally:
        logging.disable(logging.NOTSET)


class CommandLine:
    """Says what words mean, without building a network or opening data."""

    def __init__(self) -> None:
        self._parser = _parser()

    def settings(self, words: Sequence[str], *, whose: str) -> dict[str, Any]:
        """Every argument with its value, as `rca` will see it.

        Args:
            words: behind `rca`, the first of them `fit` or `validate`.
            whose: the row, for the error.

        Raises:
            ArgumentError: what the parser says of words that it does not take.
        """
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                parsed = self._parser.parse_args(list(words))
        except SystemExit:
            problem = " ".join(said.getvalue().rpartition("error: ")[2].split())
            raise ArgumentError("row", whose, problem) from None
        settings: dict[str, Any] = plain(parsed[parsed["subcommand"]])
        return settings


def check_settings(settings: dict[str, Any], keys: Iterable[str], *, whose: str) -> None:
    """Refuse keys that were understood only as abbreviations, and a training that leaves nothing to resume from.

    Raises:
        ArgumentError: with the key.
    """
    for key in keys:
        part: Any = settings
        for name in key.split("."):
            if not isinstance(part, dict) or name not in part:
                raise ArgumentError("row", whose, f"there is no setting {key}; write its name in full")
            part = part[name]
    callbacks = settings["trainer"]["callbacks"] or []
    arguments = [c["init_args"] for c in callbacks if str(c["class_path"]).endswith("ModelCheckpoint")]
    if not any(given["save_last"] and given["dirpath"] is None for given in arguments):
        remedy = "trainer.callbacks needs a ModelCheckpoint with save_last: true and without dirpath, to resume from"
        raise ArgumentError("row", whose, remedy)
