"""LightningCLI as the tasks share it: checked checkpoints, reports, and a writer for predictions."""

from __future__ import annotations

import atexit
import logging
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, cast, get_args

import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only

from rca_lightning.callbacks.progress import ProgressLines
from rca_lightning.callbacks.signals import SaveOnSignal
from rca_lightning.checkpoints.reading import check_checkpoint
from rca_lightning.checkpoints.resuming import find_last
from rca_lightning.checkpoints.writing import write_checkpoints_whole
from rca_lightning.errors import ArgumentError, explain_removed
from rca_lightning.evaluation.report import print_report, write_report
from rca_lightning.io.atomic import check_writable, output_errors

logger = logging.getLogger(__name__)

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


_tell = rank_zero_only(logger.info)


class OneLineParser(LightningArgumentParser):
    """Says what is wrong with the words it is given, not all the words there are."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Leave with status 2, as argparse does."""
        parser = getattr(ex, "subcommand_parser", None) or self
        reason = explain_removed(" ".join(message.split()))
        self.exit(2, f"rca: {reason}\nSee: {parser.prog.replace(' [options]', '')} --help\n")


class TaskCLI(LightningCLI, ABC):
    """LightningCLI that knows its task, reads checkpoints of that task only, and reports scores.

    Attributes:
        task: what `--task` must say.
    """

    task: ClassVar[Task]

    @abstractmethod
    def writer_class(self) -> type[Any]:
        """Callback that writes predictions into the folder it is given, `output_dir`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The data knows the classes, the module takes them over."""
        parser.add_argument(
            "--task",
            type=Task,
            default=self.task,
            help="What to train: localize (maps from image tags) or segment (a network from masks). It decides "
            "which arguments there are.",
        )
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        parser.link_arguments("data.class_names", "model.class_names", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Remember what was given, apart from what is a default."""
        super().parse_arguments(parser, args)
        if isinstance(args, (dict, Namespace)):
            self._given = parser.parse_object(args, defaults=False)
        else:
            self._given = parser.parse_args(args, defaults=False)
        task = self.config[self.config["subcommand"]]["task"]
        if task != self.task:
            raise ArgumentError("task", task, f"give --task {task} as a word of its own, or in a --config file")

    def _parse_ckpt_path(self) -> None:
        # Lightning lets the hyperparameters of a checkpoint replace even what the user has just typed.
        subcommand = self.config.get("subcommand")
        path = self.config.get(f"{subcommand}.ckpt_path")
        if path is not None:
            check_checkpoint(str(path), self.task)
        super()._parse_ckpt_path()
        given = self._given.get(f"{subcommand}.model")
        for name, value in vars(given).items() if given is not None else ():
            self.config[f"{subcommand}.model.{name}"] = value

    def instantiate_classes(self) -> None:
        """Add what keeps a run safe: whole checkpoints, and one more on a signal.

        Where no bar can be drawn, such as in the log of a batch job, progress comes as lines.
        """
        super().instantiate_classes()
        self._check_callbacks()
        if not hasattr(self, "trainer"):
            return
        write_checkpoints_whole(self.trainer)
        self._save_on_signal()
        if not sys.stdout.isatty():
            self.trainer.callbacks.append(ProgressLines())  # type: ignore[attr-defined]

    def _save_on_signal(self) -> None:
        trainer: Any = self.trainer
        if trainer.checkpoint_callbacks and not any(isinstance(one, SaveOnSignal) for one in trainer.callbacks):
            trainer.callbacks.append(SaveOnSignal())

    def _check_callbacks(self) -> None:
        for callback in getattr(getattr(self, "trainer", None), "callbacks", ()):
            needed = getattr(callback, "task", self.task)
            if needed != self.task:
                name = type(callback).__name__
                raise ArgumentError("callbacks", name, f"it is for --task {needed}, this is {self.task}; leave it out")

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except Exception:
            atexit.register(_end_children, self.trainer.strategy.launcher)  # so after the error is printed
            raise

    def before_fit(self) -> None:
        """A folder that takes no files is found out before the first epoch."""
        if "://" not in str(self.trainer.default_root_dir):
            check_writable("trainer.default_root_dir", Path(self.trainer.default_root_dir))

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
        writer = self.writer_class()
        if not any(isinstance(callback, writer) for callback in callbacks):
            callbacks.append(writer(str(self._run_folder() / "predictions")))

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
                if isinstance(callback, self.writer_class()):
                    print(f"predictions: {callback.output_dir}")

    def _report(self, split: str, name: str) -> None:
        result = self.model.evaluation.last_result
        if result is None:
            raise ArgumentError("limit_val_batches", self.trainer.limit_val_batches, "no image was scored; allow some")
        path = self._run_folder() / name  # asked for on every rank: Lightning broadcasts it
        if not self.trainer.is_global_zero:
            return
        tags = self.model.hparams["eval_tags"]
        tags = None if tags == "none" else tags
        content = result.as_dict(split=split, tags=tags, class_names=self.model.class_names)
        with output_errors("trainer.default_root_dir", path.parent):
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
        if kwargs.get("ckpt_path") == "last":
            kwargs["ckpt_path"] = self._last(subcommand)
        return kwargs

    def _last(self, subcommand: str) -> str | None:
        path = find_last(self.trainer)
        if path is not None:
            return str(path)
        if subcommand != "fit":
            raise ArgumentError("ckpt_path", "last", "there is no checkpoint yet; run rca fit first, or give its path")
        _tell("--ckpt_path last: there is no checkpoint yet, training begins anew")
        return None


def _end_children(launcher: Any) -> None:
    """Kills processes of Lightning's launcher that wait for this one, which has failed, in a collective."""
    children = launcher.procs if isinstance(launcher, _SubprocessScriptLauncher) else []
    end = time.monotonic() + 5  # for those that have an error of their own to print
    while any(child.poll() is None for child in children) and time.monotonic() < end:
        time.sleep(0.1)
    for child in children:
        child.kill()
