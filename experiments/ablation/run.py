"""Trains and scores the rows of a grid, several seeds each, by the command line of the library.

python experiments/ablation/run.py experiments/ablation/synthetic.yaml

Options that are not listed below go to every run, such as --data.root VOC2012 --model.weights resnet50.pth. A call that
was interrupted goes on where it stopped: finished runs are kept, trainings resume from their last checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rival
import torch
import yaml

import rca_lightning
from rca_lightning.cli.main import main as rca
from rca_lightning.errors import ArgumentError, DataError, OutputError, RCAError
from rca_lightning.io.atomic import alone_in, write_atomically

GRID_KEYS = {"title", "config", "seeds", "splits", "halves", "common", "baseline", "rows"}
ROW_KEYS = {"title", "group", "set", "fit", "context", "seeds", "over"}
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
_WRONG_WORDS = 2  # exit status of the parser


@dataclass(frozen=True)
class Run:
    """One row with one seed.

    Attributes:
        out: the output folder.
        row: name of the row.
        seed: of the training.
        words: settings as words of the command line.
        config: configuration files with their content.
        fit: row whose checkpoint it reads; `None`: it trains its own.
        rival: whether it runs by `rival.py`.
    """

    out: Path
    row: str
    seed: int
    words: tuple[str, ...]
    config: dict[str, Any]
    fit: str | None
    rival: bool

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.row}-seed{self.seed}"

    @property
    def result(self) -> Path:
        """Its JSON."""
        return self.out / "results" / f"{self.name}.json"

    @property
    def checkpoint(self) -> Path:
        """What it is scored by."""
        return self.out / "work" / f"{self.fit or self.row}-seed{self.seed}" / "checkpoints" / "last.ckpt"

    def command(self, subcommand: str, folder: Path, *more: str) -> list[str]:
        """Words after `rca`."""
        files = [f"--config={path}" for path in self.config]
        place = [f"--trainer.default_root_dir={folder}", "--trainer.logger=false"]
        return [subcommand, *files, f"--seed_everything={self.seed}", *self.words, *place, *more]

    def main(self, words: list[str]) -> Any:
        """Run the command line in this process."""
        return (rival.main if self.rival else rca)(words)


def load_grid(path: Path) -> dict[str, Any]:
    """Read a grid file.

    Raises:
        DataError: for an unknown key, a row that reads a row that does not train before it, a missing configuration.
    """
    try:
        grid = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise DataError(f"grid {path}: {error}") from error
    if not isinstance(grid, dict) or not grid.get("config") or not isinstance(grid.get("rows"), dict):
        raise DataError(f"grid {path}: give config, the path of a configuration, and rows, each with a name")
    _check_keys(path, "", grid, GRID_KEYS)
    trained: set[str] = set()
    for name, row in grid["rows"].items():
        row = grid["rows"][name] = row or {}
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise DataError(f"grid {path}: rows.{name}: use letters, digits, - and _ in a name, and quote a number")
        _check_keys(path, f"rows.{name}.", row, ROW_KEYS)
        if "fit" not in row:
            trained.add(name)
        elif row["fit"] not in trained:
            raise DataError(f"grid {path}: rows.{name}.fit: no row {row['fit']!r} that trains stands before it")
        if row.get("over", name) not in grid["rows"]:
            raise DataError(f"grid {path}: rows.{name}.over: there is no row {row['over']!r}")
    if grid.get("baseline", next(iter(grid["rows"]))) not in grid["rows"]:
        raise DataError(f"grid {path}: baseline: there is no row {grid['baseline']!r}")
    config = grid["config"] = [grid["config"]] if isinstance(grid["config"], str) else grid["config"]
    for file in config:
        if not Path(file).is_file():
            raise DataError(f"configuration {file}: is not there; run from the root of the checkout")
    return grid


def _check_keys(path: Path, where: str, content: dict[str, Any], known: set[str]) -> None:
    for key in content:
        if key not in known:
            raise DataError(f"grid {path}: {where}{key}: is no key here; there are {', '.join(sorted(known))}")


def plan(
    grid: dict[str, Any], out: Path, further: Sequence[str], rows: Sequence[str] | None, seeds: Sequence[int] | None
) -> list[Run]:
    """The runs of a grid in its order, those that others read among them.

    Raises:
        ArgumentError: for a row that does not exist, or if nothing is left.
    """
    for name in rows or ():
        if name not in grid["rows"]:
            raise ArgumentError("rows", name, f"give some of {', '.join(grid['rows'])}")
    chosen = set(rows or grid["rows"])
    chosen |= {grid["rows"][name]["fit"] for name in chosen if "fit" in grid["rows"][name]}
    config = {file: yaml.safe_load(Path(file).read_text()) for file in grid["config"]}
    runs: list[Run] = []
    for name, row in grid["rows"].items():
        source = grid["rows"].get(row.get("fit"), {})
        settings = {**grid.get("common", {}), **source.get("set", {}), **row.get("set", {})}
        context = row.get("context", source.get("context"))
        if context is not None:
            settings["model.context"] = context
        words = (*(f"--{key}={_text(value)}" for key, value in settings.items()), *further)
        runs += [
            Run(out, name, seed, words, config, row.get("fit"), context is not None)
            for seed in row.get("seeds", grid.get("seeds", [0]))
            if name in chosen and (seeds is None or seed in seeds)
        ]
    if not runs:
        raise ArgumentError("seeds", seeds, "give some that the chosen rows have")
    return runs


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def perform(run: Run, splits: Sequence[str], halves: bool) -> None:
    """Train and score a run, and keep its JSON; nothing if that is done.

    Raises:
        OutputError: if it was begun with other settings.
        Exception: what the command line raised; the JSON names it.
    """
    folder = run.out / "work" / run.name
    with alone_in(folder):  # another call in the same output folder may want the same run
        record = _read(run.result)
        settings = {"config": run.config, "words": [_without_folder(word) for word in run.words]}
        kept = "splits" in record or (run.fit is None and run.checkpoint.is_file())
        if kept and {key: record.get(key) for key in settings} != settings:
            raise OutputError(f"{run.result}: was begun with other settings; delete it and {folder}, or give --out")
        if "splits" in record:
            return
        took = {name: record.get(name) if kept else None for name in ("minutes", "processor_minutes")}
        record = {"row": run.row, "seed": run.seed, **settings, **took}
        _write(run.result, record)
        try:
            if run.fit is None and (record["minutes"] is None or not run.checkpoint.is_file()):
                record.update(_train(run, folder))
                _write(run.result, record)
            # The checkpoint of a training that was cut short is there too.
            if run.fit and "splits" not in _read(run.result.with_name(f"{run.fit}-seed{run.seed}.json")):
                raise OutputError(f"the run of {run.fit!r} with this seed, whose checkpoint it reads, is not finished")
            if not run.checkpoint.is_file():
                remedy = "the configuration needs a ModelCheckpoint with save_last: true and without dirpath"
                raise OutputError(f"no checkpoint {run.checkpoint}; {remedy}, and a row of `fit` needs that run")
            scores = dict(_score(run, folder, splits, halves))
        except (Exception, SystemExit) as error:
            if isinstance(error, SystemExit) and error.code != _WRONG_WORDS:
                raise  # a signal, or Ctrl-C
            _write(run.result, {**record, **surroundings(), "error": f"{type(error).__name__}: {error}"})
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        _write(run.result, {**record, **surroundings(), "splits": scores})


def _train(run: Run, folder: Path) -> dict[str, float | None]:
    """Minutes by the clock and of this process on all its threads; `None` if the training had been interrupted."""
    begin, processor, resumed = time.monotonic(), time.process_time(), run.checkpoint.is_file()
    run.main(run.command("fit", folder, "--trainer.limit_val_batches=0", "--ckpt_path=last"))
    took = {"minutes": time.monotonic() - begin, "processor_minutes": time.process_time() - processor}
    return {name: None if resumed else round(seconds / 60, 2) for name, seconds in took.items()}


def _score(run: Run, folder: Path, splits: Sequence[str], halves: bool) -> Iterator[tuple[str, Any]]:
    for split in splits:
        cli = _validate(run, folder / split, split)
        yield split, _read(folder / split / "validate.json")
        if split == "train" and halves:
            for name, file in write_halves(cli.datamodule, run.out).items():
                _validate(run, folder / name, name, f"--data.split_files.{name}={file}")
                yield name, _read(folder / name / "validate.json")


def _validate(run: Run, folder: Path, split: str, *more: str) -> Any:
    return run.main(
        run.command("validate", folder, f"--data.eval_split={split}", f"--ckpt_path={run.checkpoint}", *more)
    )


def write_halves(datamodule: Any, out: Path) -> dict[str, Path]:
    """Lists of every other image of train: the threshold is chosen on one half and reported on the other.

    Lists are often sorted by year or by class, so every other image is fairer than the first half.

    Raises:
        OutputError: other lists are there already, which scores may rest on.
    """
    ids = [record.image_id for record in datamodule.options.open().records("train", with_masks=False)]
    files = {}
    for begin, name in enumerate(("train_a", "train_b")):
        # Not relative, since the data module looks into the folder of the data set first.
        path = files[name] = (out / "halves" / f"{name}.txt").resolve()
        text = "".join(f"{image_id}\n" for image_id in ids[begin::2])
        if path.is_file() and path.read_text() != text:
            raise OutputError(f"{path}: lists other images than it would now; give another --out")
        write_atomically(path, lambda file, text=text: file.write(text.encode()))
    return files


def surroundings() -> dict[str, Any]:
    """Date, commit, versions and machine."""

    def git(*words: str) -> str | None:
        done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "software": {"rca_lightning": rca_lightning.__version__, "torch": torch.__version__},
    }


def check_words(run: Run) -> None:
    """Let the parser of the command line read the words of a training, without building anything.

    Raises:
        ArgumentError: for what it refuses.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            run.main([*run.command("fit", run.out), "--print_config"])
    except SystemExit as stop:
        if stop.code:
            raise ArgumentError("row", run.row, " ".join(said.getvalue().split())) from None


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))


def _without_folder(word: str) -> str:
    """The word with the last part of an absolute path: files move, and folders of one machine are nobody's business."""
    option, equals, value = word.rpartition("=")
    return f"{option}{equals}{Path(value).name}" if Path(value).is_absolute() else word


def main(words: Sequence[str] | None = None) -> int:
    """Run a grid; the exit status is 1 if a run has failed.

    Raises:
        RCAError: for a mistake in the grid or the options.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("grid", type=Path, help="YAML file, see the README beside this script")
    parser.add_argument("--out", type=Path, help="output folder, default runs/ablation/<name of the grid>")
    parser.add_argument("--rows", type=lambda text: text.split(","), help="only these rows, as a,b")
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], help="only these, as 0,1")
    parser.add_argument("--dry-run", action="store_true", help="check the words of every row and print the commands")
    parser.add_argument("--delete-checkpoints", action="store_true", help="delete those that no later row reads")
    options, further = parser.parse_known_args(words)
    grid = load_grid(options.grid)
    out = options.out or Path("runs/ablation") / options.grid.stem
    runs = plan(grid, out, further, options.rows, options.seeds)
    if options.dry_run:
        for run in runs:
            check_words(run)
            program = ["python", "experiments/ablation/rival.py"] if run.rival else ["rca"]
            print(shlex.join([*program, *run.command("fit", out / "work" / run.name)]))
        return 0
    write_atomically(out / "grid.yaml", lambda file: file.write(options.grid.read_bytes()))
    failed = _perform_all(runs, grid, options.delete_checkpoints)
    print("\n".join(f"failed: {name}" for name in failed) or f"done; next: python experiments/ablation/table.py {out}")
    return int(bool(failed))


def _perform_all(runs: list[Run], grid: dict[str, Any], delete_checkpoints: bool) -> list[str]:
    failed = []
    for number, run in enumerate(runs, start=1):
        print(f"{number}/{len(runs)}: {run.name}", flush=True)
        try:
            perform(run, grid.get("splits", ["train", "val"]), grid.get("halves", False))
        except RuntimeError as error:
            print(f"{run.name}: {error}", flush=True)
            failed.append(run.name)
        if delete_checkpoints and not any(later.checkpoint == run.checkpoint for later in runs[number:]):
            shutil.rmtree(run.checkpoint.parent, ignore_errors=True)
    return failed


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RCAError as error:
        sys.exit(f"ablation: {error}")
