"""The command line in this process."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI

from rca_lightning.cli.main import main


def keep_parsers() -> Callable[..., None]:
    """A `setup_parser` that builds the parser of each class and subcommand once."""
    build, built = LightningCLI.setup_parser, {}
    parts = ("parser", "_subcommand_parsers", "_subcommand_method_arguments")

    def setup_parser(cli: Any, *args: Any, **kwargs: Any) -> None:
        key = type(cli), cli._named
        if key not in built:
            build(cli, *args, **kwargs)
            built[key] = {name: getattr(cli, name) for name in parts}
        vars(cli).update(built[key])
        # Left behind by a `--print_config` whose other words were refused.
        vars(cli.parser).pop("print_config", None)

    return setup_parser


def run(command: str, config: Path, *more: object) -> Any:
    """`rca <command> --config <config> ...`."""
    return main([command, "--config", str(config), *map(str, more)])


def run_script(monkeypatch: pytest.MonkeyPatch, name: str, *words: object) -> None:
    """`python experiments/voc2012_mini/<name> ...`, in this process."""
    monkeypatch.setattr("sys.argv", [name, *map(str, words)])
    runpy.run_path(str(Path(__file__).parents[2] / "experiments" / "voc2012_mini" / name), run_name="__main__")


def fit(
    config: Path, folder: str, *more: object, stop_after: int | None = None, callbacks: tuple[dict[str, Any], ...] = ()
) -> Any:
    """`rca fit` without validation, with checkpoints in a folder beside the configuration.

    Args:
        config: its first callback writes the checkpoints.
        folder: name of that folder.
        more: further words of the command.
        stop_after: epochs after which the run is stopped; the schedule of the learning rate is that of a whole run.
        callbacks: further ones.
    """
    content = yaml.safe_load(config.read_text())
    first, *others = content["trainer"]["callbacks"]
    first["init_args"]["dirpath"] = str(config.parent / folder)
    if stop_after is not None:
        others.append({"class_path": "tests.integration.stopping.StopAfter", "init_args": {"epochs": stop_after}})
    content["trainer"]["callbacks"] = [first, *others, *callbacks]
    path = config.parent / f"{folder}.yaml"
    path.write_text(yaml.safe_dump(content))
    return run("fit", path, "--trainer.limit_val_batches=0", *more)
