"""LightningCLI for all tasks: finds the task, checks checkpoints, reports scores, adds a prediction writer."""

from __future__ import annotations

import atexit
import functools
import logging
import operator
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, cast, get_args

import lightning as L
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only

from rca_lightning.callbacks.signals import SaveOnSignal
from rca_lightning.checkpoints.latest import find_last
from rca_lightning.checkpoints.reading import check_checkpoint
from rca_lightning.checkpoints.writing import write_checkpoints_whole, writes_one_file
from rca_lightning.cli.trainer_console import console_callbacks
from rca_lightning.errors import ArgumentError, explain_removed
from rca_lightning.evaluation.baselines import generated_baselines
from rca_lightning.evaluation.comparison import images_file
from rca_lightning.evaluation.report import print_report, write_report
from rca_lightning.io.atomic import check_writable, output_errors
from rca_lightning.modules.score_record import score_protocol

logger = logging.getLogger(__name__)

Task = Literal["localize", "segment", "segment_frozen", "one_stage", "affinity"]


def find_task(args: ArgsType = None) -> Task:
    """Finds the task in the command line or its configuration files, before there is a parser; the last one wins.

    Args:
        args: words after `rca`, or a configuration; default the words of the process.

    Raises:
        ArgumentError: for a task that does not exist.
    """
    if isinstance(args, (dict, Namespace)):
        contents: list[Any] = [args.as_dict() if isinstance(args, Namespace) else args]
    else:
        words = sys.argv[1:] if args is None else args
        words = [part for word in words for part in word.split("=", word.startswith("--"))]  # --name=value
        contents = [
            {"task": value} if option == "--task" else _read_yaml(value)
            for option, value in pairwise(words)
            if option in ("--task", "--config", "-c")
        ]
    task: Any = "localize"
    for content in contents:
        if isinstance(content, dict):
            parts = [content, *map(content.get, LightningCLI.subcommands())]
            task = [task, *(part["task"] for part in parts if isinstance(part, dict) and "task" in part)][-1]
    if task not in get_args(Task):
        raise ArgumentError("task", task, f"give one of {', '.join(get_args(Task))}")
    return cast(Task, task)


def _read_yaml(path: str) -> Any:
    try:
        return yaml.safe_load(Path(path).read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return None  # the parser says what is wrong with it


class OneLineParser(LightningArgumentParser):
    """Reports a parsing error in one line, without the usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with status 2, as argparse does."""
        parser = getattr(ex, "subcommand_parser", None) or self
        reason = explain_removed(" ".join(message.split()))
        self.exit(2, f"rca: {reason}\nSee: {parser.prog.replace(' [options]', '')} --help\n")


class TaskCLI(LightningCLI):
    """LightningCLI of a task: takes checkpoints of that task only, reports scores, writes predictions.

    Attributes:
        task: value of `--task`.
        writer: callback that writes predictions into the folder it is given, `output_dir`.
    """

    task: ClassVar[Task]
    writer: ClassVar[type[Any]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._args: Any = kwargs.get("args")
        words = sys.argv[1:] if self._args is None else self._args
        # If the first word names a subcommand, only its parser is built: 0.3 s less than building all of them.
        self._named = words[0] if isinstance(words, list) and words and words[0] in self.subcommands() else None
        super().__init__(*args, **kwargs)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        if self._named in (None, subcommand):
            return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        return self.init_parser(**kwargs)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Read whole numbers as whole: 1 batch, where 1.0 are all of them."""
        super().add_core_arguments_to_parser(parser)
        # Of unions that are equal, `typing` hands out whichever was made first, by any package; and the parser tries
        # their types in that order. An order of their own have only unions made by `|`.
        for action in parser._actions:
            types = get_args(getattr(action, "_typehint", None))
            if {int, float} <= set(types):
                first_int = sorted(types, key=lambda one: one is not int)
                action._typehint = functools.reduce(operator.or_, first_int)  # type: ignore[attr-defined]

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add `--task`, and link the classes of the data to the module."""
        parser.add_argument(
            "--task",
            type=Task,
            default=self.task,
            help="What to train: localize (maps from image tags), segment (a network from masks), segment_frozen (a "
            "classifier from masks behind the backbone of localize), one_stage (both at "
            "once from image tags) or affinity (boundaries that refine maps). It decides which arguments there are.",
        )
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        parser.link_arguments("data.class_names", "model.class_names", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Refuse a task that `find_task` could not see."""
        super().parse_arguments(parser, args)
        task = self.config[self.config["subcommand"]]["task"]
        if task != self.task:
            raise ArgumentError("task", task, f"give --task {task} as a word of its own, or in a --config file")

    def _parse_ckpt_path(self) -> None:
        subcommand = self.config["subcommand"]
        path = self.config.get(f"{subcommand}.ckpt_path")
        if path is None:
            return
        # Not by Lightning, which knows nothing of older formats.
        arguments = check_checkpoint(str(path), self.task)
        if arguments:
            self.config = self.parser.parse_object({subcommand: {"model": arguments}}, self.config)
        # The arguments of a checkpoint have replaced even what the user has just typed.
        parse = self.parser.parse_object if isinstance(self._args, (dict, Namespace)) else self.parser.parse_args
        typed = parse(self._args, defaults=False).get(f"{subcommand}.model")
        for name, value in vars(typed).items() if typed is not None else ():
            self.config[f"{subcommand}.model.{name}"] = value

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Replace what the Trainer would print; see `console_callbacks`."""
        config: Any = self._get(self.config_init, "trainer")
        named = config["callbacks"] or []
        chosen = [named] if isinstance(named, L.Callback) else list(named)
        trainer: Any = super().instantiate_trainer(**kwargs)
        bar = sys.stdout.isatty() or bool(config["enable_progress_bar"])
        trainer.callbacks = console_callbacks(trainer.callbacks, chosen, bar=bar)
        return trainer  # type: ignore[no-any-return]

    def instantiate_classes(self) -> None:
        """Add whole checkpoints, and one more on a signal."""
        super().instantiate_classes()
        trainer: Any = self.trainer
        for callback in trainer.callbacks:
            needed = getattr(callback, "task", self.task)  # or several
            tasks = (needed,) if isinstance(needed, str) else needed
            if self.task not in tasks:
                name, told = type(callback).__name__, " or ".join(tasks)
                raise ArgumentError("callbacks", name, f"it is for --task {told}, this is {self.task}; leave it out")
        write_checkpoints_whole(trainer)
        if trainer.checkpoint_callbacks and not any(isinstance(one, SaveOnSignal) for one in trainer.callbacks):
            trainer.callbacks.append(SaveOnSignal())

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except Exception:
            atexit.register(_end_children, self.trainer.strategy.launcher)  # so after the error is printed
            raise

    def before_fit(self) -> None:
        """Refuse folders that take no files."""
        self._check_folders()
        for callback in self.trainer.checkpoint_callbacks:
            dirpath = getattr(callback, "dirpath", None)
            if dirpath is not None:
                _check_folder(f"{type(callback).__name__}.dirpath", dirpath)

    def _check_folders(self) -> None:
        _check_folder("trainer.default_root_dir", self.trainer.default_root_dir)
        for log in self.trainer.loggers:
            if log.save_dir is not None:
                _check_folder("trainer.logger.save_dir", log.save_dir)

    def before_validate(self) -> None:
        """Refuse an untrained network, and folders that take no files."""
        self._check_folders()
        if self.config[f"{self.subcommand}.ckpt_path"] is None:
            raise ArgumentError("ckpt_path", None, "the network is untrained; give a checkpoint of rca fit")

    before_test = before_validate

    def before_predict(self) -> None:
        """Add a writer where the configuration names none."""
        self.before_validate()
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, self.writer) for callback in callbacks):
            callbacks.append(self.writer(str(self._run_folder() / "predictions")))

    def after_validate(self) -> None:
        """Print the table and write `validate.json` or `test.json`, and the counts of single images beside."""
        result = self.model.evaluation.last_result
        if result is None:
            raise ArgumentError("limit_val_batches", self.trainer.limit_val_batches, "no image was scored; allow some")
        path = self._run_folder() / f"{self.subcommand}.json"  # on every rank: Lightning broadcasts the folder
        if not self.trainer.is_global_zero:
            return
        protocol = score_protocol(self.model, result)
        split = self.datamodule.eval_split
        content = result.as_dict(
            split=split,
            tags=protocol["supervision"]["tags"],
            class_names=self.model.class_names,
            protocol=protocol,
            without_network=generated_baselines(self.datamodule, split, result.image_counts.ids),
        )
        with output_errors("trainer.default_root_dir", path.parent):
            result.image_counts.save(images_file(path))  # first: scores are never beside the counts of others
            write_report(content, path)
        print_report(content)
        print(f"written to {path}")

    after_test = after_validate

    def after_predict(self) -> None:
        """Print where the predictions are."""
        if self.trainer.is_global_zero:
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, self.writer):
                    print(f"predictions: {callback.output_dir}")

    def _run_folder(self) -> Path:
        return Path(self.trainer.log_dir or self.trainer.default_root_dir)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand == "predict":
            # The writer keeps predictions on disk; a list of all of them would grow with the data.
            kwargs["return_predictions"] = False
        if "weights_only" in kwargs:  # what Lightning finds for "last" has not been checked here
            if kwargs["weights_only"] is False:
                remedy = "leave it out; checkpoints of rca fit hold no code to unpickle"
                raise ArgumentError("weights_only", False, remedy)
            kwargs["weights_only"] = True
        if kwargs.get("ckpt_path") is not None:
            kwargs["ckpt_path"] = self._find_checkpoint(str(kwargs["ckpt_path"]), subcommand)
        return kwargs

    def _find_checkpoint(self, path: str, subcommand: str) -> str | None:
        """The file that a value of `--ckpt_path` stands for."""
        if path == "hpc" and not list(Path(self.trainer.default_root_dir).glob("hpc_ckpt_*.ckpt")):
            remedy = "Lightning has saved none under SLURM in trainer.default_root_dir; give a path, or last"
            raise ArgumentError("ckpt_path", path, remedy)
        if Path(path).is_dir() and writes_one_file(self.trainer):
            raise ArgumentError("ckpt_path", path, "this is a folder; give a checkpoint in it")
        if path != "last":
            return path
        last = find_last(self.trainer, to_train=subcommand == "fit")
        if last is None and subcommand != "fit":
            remedy = "there is no checkpoint yet; run rca fit first, or give its path"
            raise ArgumentError("ckpt_path", "last", remedy)
        if last is None:
            rank_zero_only(logger.info)("--ckpt_path last: there is no checkpoint yet, training begins anew")
        return None if last is None else str(last)


def _check_folder(name: str, folder: str | Path) -> None:
    if "://" not in str(folder):
        check_writable(name, Path(folder))


def _end_children(launcher: Any) -> None:
    """Kills processes of Lightning's launcher that wait for this one, which has failed, in a collective."""
    children = launcher.procs if isinstance(launcher, _SubprocessScriptLauncher) else []
    end = time.monotonic() + 5  # for those that have an error of their own to print
    while any(child.poll() is None for child in children) and time.monotonic() < end:
        time.sleep(0.1)
    for child in children:
        child.kill()
