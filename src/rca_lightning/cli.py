"""The command line: `rca fit | validate | test | predict | atlas`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any, NoReturn

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from rca_lightning.atlas.checkpoint import AtlasTrainer
from rca_lightning.callbacks.memory import RegionMemoryCallback
from rca_lightning.callbacks.progress import ProgressLines
from rca_lightning.callbacks.writers import PseudoLabelWriter
from rca_lightning.checkpoint import check_checkpoint
from rca_lightning.data import WSSSDataModule
from rca_lightning.errors import ArgumentError, RCAError
from rca_lightning.module import RCAModule
from rca_lightning.report import print_report, write_report
from rca_lightning.version import __version__


class OneLineParser(LightningArgumentParser):
    """Says what is wrong with the words it is given, not all the words there are."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Leave with status 2, as argparse does."""
        parser = getattr(ex, "subcommand_parser", None) or self
        reason = " ".join(message.split())
        self.exit(2, f"rca: {reason}\nSee: {parser.prog.replace(' [options]', '')} --help\n")


class RCACLI(LightningCLI):
    """LightningCLI that knows which callbacks RCA cannot go without, reports scores, and draws the prototype atlas."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"trainer_class": AtlasTrainer, **kwargs})

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Those of the Trainer, and `atlas`, whose own arguments stand under `--atlas`."""
        return {**LightningCLI.subcommands(), "atlas": {"model", "datamodule", "folder", "regions"}}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "atlas":
            skip: set[str | int] = {"model", "datamodule", "ckpt_path"}
            parser.add_method_arguments(klass, "atlas", "atlas", as_group=False, skip=skip)
        return parser

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
        subcommand = self.config.get("subcommand")
        path = self.config.get(f"{subcommand}.ckpt_path")
        if path is not None:
            check_checkpoint(str(path))
        super()._parse_ckpt_path()
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

    def before_validate(self) -> None:
        """An untrained network has no scores worth a table."""
        self._require_checkpoint()

    def before_test(self) -> None:
        """As for validation."""
        self._require_checkpoint()

    def _require_checkpoint(self) -> None:
        if self.config[f"{self.subcommand}.ckpt_path"] is None:
            raise ArgumentError("ckpt_path", None, "the network is untrained; give a checkpoint of rca fit")

    def before_predict(self) -> None:
        """Add a writer where the configuration names none."""
        self._require_checkpoint()
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
        if "weights_only" in kwargs:  # what Lightning finds for "last" has not been checked here
            if kwargs["weights_only"] is False:
                raise ArgumentError(
                    "weights_only", False, "leave it out; checkpoints of rca fit hold no code to unpickle"
                )
            kwargs["weights_only"] = True
        if subcommand == "atlas":
            kwargs.update(self.config_init["atlas"]["atlas"])
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
        parser_kwargs={"default_env": False, "prog": "rca", "version": __version__},
        parser_class=OneLineParser,
    )


def console() -> None:
    """Entry point of `rca`: a mistake in what was asked for is one line, not a traceback."""
    try:
        main()
    except RCAError as error:
        sys.exit(f"rca: {error}")
    except (ValueError, MisconfigurationException) as error:
        # What a callback or logger refuses comes wrapped in what jsonargparse says of the types it tried.
        reason = _own_reason(error)
        if reason is None:
            raise
        sys.exit(f"rca: {reason}")


def _own_reason(error: BaseException | None) -> str | None:
    """The message of the first error along the chain that was raised on purpose."""
    while error is not None:
        if isinstance(error, (RCAError, ModuleNotFoundError, MisconfigurationException)):
            return str(error)
        error = error.__cause__ or error.__context__
    return None
