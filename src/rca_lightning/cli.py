"""The command line: `rca fit | validate | test | predict`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from rca_lightning.callbacks.memory import RegionMemoryCallback
from rca_lightning.callbacks.progress import ProgressLines
from rca_lightning.callbacks.writers import PseudoLabelWriter
from rca_lightning.data import WSSSDataModule
from rca_lightning.errors import ArgumentError, RCAError
from rca_lightning.module import RCAModule
from rca_lightning.report import print_report, write_report


class RCACLI(LightningCLI):
    """LightningCLI that knows which callbacks RCA cannot go without, and reports scores."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The region memory has arguments of its own; the data knows the classes, the module takes them over."""
        parser.add_lightning_class_args(RegionMemoryCallback, "memory")
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        parser.link_arguments("data.class_names", "model.class_names", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Remember what was given, apart from what is a default."""
        super().parse_arguments(parser, args)
        if isinstance(args, (dict, Namespace)):
            self._given = parser.parse_object(args, defaults=False)
        else:
            self._given = parser.parse_args(args, defaults=False)

    def _parse_ckpt_path(self) -> None:
        # Lightning lets the hyperparameters of a checkpoint replace even what the user has just typed.
        super()._parse_ckpt_path()
        subcommand = self.config.get("subcommand")
        given = self._given.get(f"{subcommand}.model")
        for name, value in vars(given).items() if given is not None else ():
            self.config[f"{subcommand}.model.{name}"] = value

    def instantiate_classes(self) -> None:
        """Where no bar can be drawn, such as in the log of a batch job, progress comes as lines."""
        self._refuse_second_memory()
        super().instantiate_classes()
        if hasattr(self, "trainer") and not sys.stdout.isatty():
            self.trainer.callbacks.append(ProgressLines())  # type: ignore[attr-defined]

    def _refuse_second_memory(self) -> None:
        subcommand = self.config.get("subcommand")
        for callback in self.config.get(f"{subcommand}.trainer.callbacks") or ():
            if str(callback.get("class_path", "")).endswith(RegionMemoryCallback.__name__):
                raise ArgumentError("trainer.callbacks", callback["class_path"], "give its arguments under memory:")

    def before_predict(self) -> None:
        """Add a writer where the configuration names none."""
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(c, PseudoLabelWriter) for c in callbacks):
            callbacks.append(PseudoLabelWriter(str(self._run_folder() / "predictions")))

    def after_validate(self) -> None:
        """Print the table and write `validate.json`."""
        self._report(self.datamodule.eval_split, "validate.json")

    def after_test(self) -> None:
        """Print the table and write `test.json`."""
        self._report(self.datamodule.eval_split, "test.json")

    def after_predict(self) -> None:
        """Say where the predictions are."""
        if self.trainer.is_global_zero:
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, PseudoLabelWriter):
                    print(f"predictions: {callback.output_dir}")

    def _report(self, split: str, name: str) -> None:
        result = self.model.evaluation.last_result
        if result is None:
            raise ArgumentError("limit_val_batches", self.trainer.limit_val_batches, "no image was scored; allow some")
        path = self._run_folder() / name  # asked for on every rank: Lightning broadcasts it
        if not self.trainer.is_global_zero:
            return
        tags = self.model.hparams["eval_tags"]
        content = result.as_dict(split=split, tags=tags, class_names=self.model.class_names)
        write_report(content, path)
        print_report(content)
        print(f"written to {path}")

    def _run_folder(self) -> Path:
        return Path(self.trainer.log_dir or self.trainer.default_root_dir)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand == "predict":
            # The writer keeps predictions on disk; a list of all of them would grow with the data.
            kwargs["return_predictions"] = False
        return kwargs


def main(args: ArgsType = None) -> RCACLI:
    """Run the command line in this process.

    Args:
        args: words after `rca`; default those of the process.

    Returns:
        The CLI object, with `model`, `datamodule` and `trainer`.

    Raises:
        RCAError: for what this library refuses.
        SystemExit: for arguments that cannot be parsed.
    """
    logging.getLogger("rca_lightning").setLevel(logging.INFO)
    if not logging.getLogger("rca_lightning").handlers:
        logging.getLogger("rca_lightning").addHandler(logging.StreamHandler())
    torch.set_float32_matmul_precision("high")
    return RCACLI(
        RCAModule,
        WSSSDataModule,
        args=args,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"default_env": False},
    )


def console() -> None:
    """Entry point of `rca`: an error made on purpose is one line, not a traceback."""
    try:
        main()
    except RCAError as error:
        sys.exit(f"rca: {error}")
