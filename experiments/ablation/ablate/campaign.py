"""One call of the tool: what is not done yet is run."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ablate.child import Child
from ablate.folders import RunFiles, read_json
from ablate.grid import Grid
from ablate.halves import half_file, split_ids, write_half
from ablate.jobs import Chosen, Job, plan
from ablate.keeper import Keeper
from ablate.lock import locked
from ablate.preflight import Checked, check
from ablate.progress import Progress
from ablate.record import Describer
from ablate.scheduler import Scheduler
from ablate.surroundings import cores

RCA = (sys.executable, "-m", "rca_lightning")


@dataclass(frozen=True)
class Campaign:
    """What was asked for.

    Attributes:
        grid: the grid.
        chosen: its runs that are wanted.
        out: the output folder.
        further: words for every run.
        processes: at a time; None: as many as there are cores, or one on a GPU.
        command: what was typed.
        delete_checkpoints: whether to delete checkpoints that are not needed any more.
        program: what is started, for tests.
    """

    grid: Grid
    chosen: Sequence[Chosen]
    out: Path
    further: list[str]
    processes: int | None
    command: str
    delete_checkpoints: bool = False
    program: tuple[str, ...] = RCA

    def commands(self) -> list[str]:
        """What would run, as lines for a shell."""
        checked = check(self.grid, self.chosen, self.out, self.further)
        names = {split for run in checked.chosen for split in run.splits if self.grid.half_of(split)}
        files = {name: half_file(self.out, name) for name in names}
        jobs = plan(self.grid, checked.chosen, self.out, self.further, files)
        return [shlex.join(["rca", *job.words]) for job in jobs]

    def run(self) -> list[Job]:
        """Run it; returns the jobs that failed.

        Raises:
            RCAError: before anything runs, for a mistake.
            Stopped: it was told to stop.
        """
        checked = check(self.grid, self.chosen, self.out, self.further)
        settings = checked.settings
        with locked(self.out) as lock:
            shutil.copyfile(self.grid.path, self.out / "grid.yaml")
            jobs = plan(self.grid, checked.chosen, self.out, self.further, self._half_files(checked))
            processes, environment = self._processes(settings), dict(os.environ, PYTHONUNBUFFERED="1")
            threads = environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))
            describer = Describer(self.grid, self.out, self.further, settings, self.command, int(threads))
            progress = Progress(len(jobs), processes, self._known_seconds())
            keeper = Keeper(describer, checked.chosen, jobs, progress, delete_checkpoints=self.delete_checkpoints)
            for run in checked.chosen:
                keeper.write_result(RunFiles(self.out, run.row, run.seed))
            if checked.repeats:
                progress.say(f"the same as {self.grid.reference}, so not run: {', '.join(checked.repeats)}")
            progress.say(f"{processes} at a time, OMP_NUM_THREADS={threads} each; {progress.left({}, jobs)}")

            def start(job: Job) -> Child:
                return Child([*self.program, *job.words], job.log, environment, lock)

            return Scheduler(processes, start, keeper).run(jobs)

    def _half_files(self, checked: Checked) -> dict[str, Path]:
        """Lists of the halves that are asked for, written now. A split that is not there is found now too.

        Raises:
            RCAError: the data or a split of it is missing.
        """
        data = next(iter(checked.settings.values()))["data"]
        files: dict[str, Path] = {}
        for split in sorted({split for run in checked.chosen for split in run.splits}):
            whole = self.grid.half_of(split)
            ids = split_ids(data, whole or split)
            if whole is not None:
                files[split] = write_half(ids, split, self.out)
        return files

    def _processes(self, settings: dict[str, dict[str, Any]]) -> int:
        if self.processes is not None:
            return self.processes
        on_cpu = all(row["trainer"]["accelerator"] == "cpu" for row in settings.values())
        return 1 if torch.cuda.is_available() and not on_cpu else cores()

    def _known_seconds(self) -> dict[str, list[float]]:
        known: dict[str, list[float]] = defaultdict(list)
        for path in sorted((self.out / "results").glob("*.json")):
            result = read_json(path)
            if result["fit"] and result["fit"]["attempts"] == 1:
                known["fit"].append(result["fit"]["wall_seconds"])
            for split, score in result["splits"].items():
                known[f"score {split}"].append(score["wall_seconds"])
        return known
