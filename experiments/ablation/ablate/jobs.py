"""The commands that are still to run, each as one job."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ablate.folders import RunFiles, read_json
from ablate.grid import Grid
from ablate.words import as_words

from rca_lightning.errors import ArgumentError


@dataclass(frozen=True)
class Chosen:
    """A run that is wanted: a row with one seed, and the splits to score it on."""

    row: str
    seed: int
    splits: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """One command of the library.

    Attributes:
        files: of the run.
        fitted: files of the run whose checkpoint it writes or reads.
        split: what it scores; None: it trains.
        words: behind `rca`.
    """

    files: RunFiles
    fitted: RunFiles
    split: str | None
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"fit {self.files.name}" if self.split is None else f"score {self.files.name} on {self.split}"

    @property
    def kind(self) -> str:
        """Jobs of one kind take about as long."""
        return "fit" if self.split is None else f"score {self.split}"

    @property
    def folder(self) -> Path:
        return self.files.work if self.split is None else self.files.scored(self.split)

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"


def choose(
    grid: Grid, rows: Sequence[str] | None, seeds: Sequence[int] | None, splits: Sequence[str] | None
) -> list[Chosen]:
    """The runs of a grid that the options leave, in its order.

    Raises:
        ArgumentError: a row that is not there, or seeds that leave no run.
    """
    for name in rows or ():
        if name not in grid.rows:
            raise ArgumentError("rows", name, f"there is no such row in {grid.path}; there are {', '.join(grid.rows)}")
    chosen = [
        Chosen(row.name, seed, tuple(splits or row.splits))
        for row in grid.rows.values()
        if rows is None or row.name in rows
        for seed in row.seeds
        if seeds is None or seed in seeds
    ]
    if not chosen:
        raise ArgumentError("seeds", seeds, f"no row that was chosen from {grid.path} has such a seed")
    return chosen


def plan(
    grid: Grid, chosen: Sequence[Chosen], out: Path, further: Sequence[str], half_files: Mapping[str, Path]
) -> list[Job]:
    """What is not done yet: each training directly before the scorings that read it."""
    jobs: list[Job] = []
    fitting: set[RunFiles] = set()
    for run in chosen:
        files = RunFiles(out, run.row, run.seed)
        fitted = RunFiles(out, grid.fitted_row(run.row).name, run.seed)
        splits = [split for split in missing_splits(files, run.splits) if not files.score(split).is_file()]
        if splits and fitted not in fitting and not is_fitted(fitted):
            fitting.add(fitted)
            jobs.append(Job(fitted, fitted, None, _fit_words(grid, fitted, further)))
        jobs += [
            Job(files, fitted, split, _score_words(grid, files, fitted, split, further, half_files)) for split in splits
        ]
    return jobs


def missing_splits(files: RunFiles, splits: Sequence[str]) -> list[str]:
    """Splits whose score is not in the JSON of the run."""
    result = read_json(files.result)
    return [split for split in splits if result is None or split not in result["splits"]]


def is_fitted(files: RunFiles) -> bool:
    """Whether the training has ended and its checkpoint is still there."""
    return files.fit.is_file() and files.checkpoint.is_file()


def resumable(files: RunFiles) -> bool:
    """Whether there is a whole checkpoint to go on from; a file that was cut off has no directory of its parts."""
    return files.checkpoint.is_file() and zipfile.is_zipfile(files.checkpoint)


def _common_words(grid: Grid, files: RunFiles, further: Sequence[str], folder: Path) -> list[str]:
    return [
        *(f"--config={path}" for path in grid.config),
        f"--seed_everything={files.seed}",
        *as_words(grid.overrides(files.row)),
        *further,
        f"--trainer.default_root_dir={folder}",
        "--trainer.logger=false",  # with one, checkpoints would lie in a folder of its own
    ]


def _fit_words(grid: Grid, files: RunFiles, further: Sequence[str]) -> tuple[str, ...]:
    words = ["fit", *_common_words(grid, files, further, files.work), "--trainer.limit_val_batches=0"]
    if resumable(files):
        words.append(f"--ckpt_path={files.checkpoint}")
    return tuple(words)


def _score_words(
    grid: Grid,
    files: RunFiles,
    fitted: RunFiles,
    split: str,
    further: Sequence[str],
    half_files: Mapping[str, Path],
) -> tuple[str, ...]:
    words = ["validate", *_common_words(grid, files, further, files.scored(split)), f"--data.eval_split={split}"]
    if split in half_files:
        words.append(f"--data.split_files.{split}={half_files[split]}")
    return (*words, f"--ckpt_path={fitted.checkpoint}")
