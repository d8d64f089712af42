"""A grid on frozen features: what is not done yet is run, some runs side by side."""

from __future__ import annotations

import functools
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.checkpoint import checkpoint_facts
from ablate.folders import RunFiles, read_json, write_json
from ablate.grid import HALVES, Grid
from ablate.jobs import Chosen, is_fitted, missing_splits
from ablate.lock import locked
from ablate.preflight import check
from ablate.record import Describer
from frozen.features import CachedSplit
from frozen.scoring import score
from frozen.training import train, trained_module

from rca_lightning import RCAModule
from rca_lightning.errors import RCAError


@dataclass(frozen=True)
class FrozenCampaign:
    """What was asked for.

    Attributes:
        grid: the grid.
        chosen: its runs that are wanted.
        features: folder with `seed<s>/<split>.pt`.
        out: the output folder.
        further: words for every run.
        processes: at a time.
        command: what was typed.
    """

    grid: Grid
    chosen: Sequence[Chosen]
    features: Path
    out: Path
    further: list[str]
    processes: int
    command: str

    def run(self) -> list[str]:
        """Run it; returns the names of the runs that failed.

        Raises:
            RCAError: before anything runs, for a mistake.
        """
        checked = check(self.grid, self.chosen, self.out, self.further)
        threads = int(os.environ["OMP_NUM_THREADS"])
        describer = Describer(self.grid, self.out, self.further, checked.settings, self.command, threads)
        runner = FrozenRun(describer, self.features)
        for run in checked.chosen:
            for split in ("train", *(self.grid.half_of(split) or split for split in run.splits)):
                runner.features_of(run.seed, split)
        failed: list[str] = []
        with locked(self.out):
            shutil.copyfile(self.grid.path, self.out / "grid.yaml")
            for runs in self._rounds(checked.chosen):
                failed += self._run_all(runner, runs)
        return failed

    def _rounds(self, chosen: Sequence[Chosen]) -> Iterator[list[Chosen]]:
        """First runs that train, then those that read what these have left."""
        left = [run for run in chosen if missing_splits(RunFiles(self.out, run.row, run.seed), run.splits)]
        yield [run for run in left if self.grid.rows[run.row].fit is None]
        yield [run for run in left if self.grid.rows[run.row].fit is not None]

    def _run_all(self, runner: FrozenRun, runs: Sequence[Chosen]) -> list[str]:
        failed: list[str] = []
        for number, (name, problem, said) in enumerate(self._outcomes(runner, runs), start=1):
            if problem:
                failed.append(name)
            told = f"{'FAILED' if problem else 'done'}: {name}: {said}"
            print(f"{time.strftime('%H:%M:%S')} [{number}/{len(runs)}] {told}", flush=True)
        return failed

    def _outcomes(self, runner: FrozenRun, runs: Sequence[Chosen]) -> Iterator[tuple[str, bool, str]]:
        if self.processes == 1 or len(runs) < 2:
            yield from map(runner.attempt, runs)
            return
        with ProcessPoolExecutor(self.processes, multiprocessing.get_context("spawn")) as pool:
            waiting = [pool.submit(runner.attempt, run) for run in runs]
            try:
                yield from (done.result() for done in as_completed(waiting))
            finally:
                pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class FrozenRun:
    """Does a run in this process.

    Attributes:
        describer: writes down what a run is.
        features: folder with `seed<s>/<split>.pt`.
    """

    describer: Describer
    features: Path

    def features_of(self, seed: int, split: str) -> CachedSplit:
        """The features of a split, by the network of this seed."""
        return _load(self.features / f"seed{seed}" / f"{split}.pt")

    def attempt(self, run: Chosen) -> tuple[str, bool, str]:
        """Name of the run, whether it failed, and its scores or the problem in words."""
        name = RunFiles(self.describer.out, run.row, run.seed).name
        try:
            return name, False, self.run(run)
        except RCAError as error:
            return name, True, str(error)

    def run(self, run: Chosen) -> str:
        """Train if nobody has, score, write the JSON; returns the scores in words."""
        grid, settings = self.describer.grid, self.describer.settings[run.row]
        files = RunFiles(self.describer.out, run.row, run.seed)
        fitted = RunFiles(self.describer.out, grid.fitted_row(run.row).name, run.seed)
        for each in {files, fitted}:
            write_json(each.settings, self.describer.identity(each.row))
        whole = self.features_of(run.seed, "train")
        if not is_fitted(fitted):
            self._fit(fitted, whole)
        module = trained_module(settings, whole, fitted.checkpoint)
        scores = {split: self._score(module, run.seed, split) for split in missing_splits(files, run.splits)}
        before = read_json(files.result) or {"splits": {}}
        write_json(files.result, self.describer.record(files, {**before["splits"], **scores}))
        return ", ".join(f"{split} {100 * found['miou']:.1f}" for split, found in scores.items())

    def _fit(self, files: RunFiles, split: CachedSplit) -> None:
        settings = self.describer.settings[files.row]
        begin = time.perf_counter(), time.process_time()
        train(settings, split, seed=files.seed, path=files.checkpoint)
        seconds = {"wall_seconds": time.perf_counter() - begin[0], "cpu_seconds": time.process_time() - begin[1]}
        facts = checkpoint_facts(files.checkpoint)
        told = {**seconds, "attempts": 1, "complete": True, **self.describer.surroundings(), "checkpoint": facts}
        write_json(files.fit, told)

    def _score(self, module: RCAModule, seed: int, split: str) -> dict[str, Any]:
        whole = self.describer.grid.half_of(split)
        images = self.features_of(seed, whole or split)
        if whole is not None:
            images = images.part(HALVES.index(split[-2:]), len(HALVES))
        begin = time.perf_counter(), time.process_time()
        found = score(module, images, split)
        seconds = {"wall_seconds": time.perf_counter() - begin[0], "cpu_seconds": time.process_time() - begin[1]}
        return {**found, **seconds, **self.describer.surroundings()}


_load = functools.cache(CachedSplit.load)
