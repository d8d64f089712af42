"""Keeps what jobs give: seconds, scores, and the one JSON of a run."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ablate.checkpoint import checkpoint_facts
from ablate.child import Usage, tail
from ablate.folders import RunFiles, read_json, write_json
from ablate.jobs import Chosen, Job, missing_splits
from ablate.progress import Progress, duration
from ablate.record import Describer


class Keeper:
    """Told by the scheduler what begins and ends.

    Args:
        describer: writes down what a run is.
        chosen: the runs that are wanted.
        jobs: all that is to be done.
        progress: prints.
        delete_checkpoints: whether to delete checkpoints that nothing of this call will read any more.
    """

    def __init__(
        self,
        describer: Describer,
        chosen: Sequence[Chosen],
        jobs: Sequence[Job],
        progress: Progress,
        *,
        delete_checkpoints: bool,
    ) -> None:
        self._describer = describer
        self._splits = {RunFiles(describer.out, run.row, run.seed): run.splits for run in chosen}
        self._unfinished = list(jobs)
        self._progress = progress
        self._delete_checkpoints = delete_checkpoints

    def started(self, job: Job) -> None:
        write_json(job.files.settings, self._describer.identity(job.files.row))
        if job.split is None:
            job.files.fit.unlink(missing_ok=True)
            resumed = any(word.startswith("--ckpt_path=") for word in job.words)
            # Without a checkpoint all begins anew, and what was spent before is lost.
            attempts = (read_json(job.files.attempts) or []) if resumed else []
            write_json(job.files.attempts, [*attempts, {"started": time.time()}])
            self._progress.say(f"{'resumed' if resumed else 'started'}: {job.name}")
        else:
            (job.folder / "validate.json").unlink(missing_ok=True)
            self._progress.say(f"started: {job.name}")

    def ended(self, job: Job, usage: Usage) -> str | None:
        self._unfinished.remove(job)
        problem = f"exit status {usage.status}" if usage.status else None
        if job.split is None:
            self._end_attempt(job, usage)
        if problem is None:
            problem = self._keep_fit(job) if job.split is None else self._keep_score(job, usage)
        self._progress.count(job, None if problem else usage.wall_seconds)
        if problem is not None:
            self._progress.say(f"FAILED: {job.name}: {problem}; the end of {job.log}:\n{tail(job.log)}")
            return problem
        self._progress.say(f"done: {job.name}, {duration(usage.wall_seconds)}")
        if job.split is not None:
            self.write_result(job.files)
        self._clean_up(job)
        return None

    def stopped(self, job: Job, usage: Usage) -> None:
        if job.split is None:
            self._end_attempt(job, usage)
        self._progress.say(f"stopped: {job.name}")

    def left_out(self, job: Job) -> None:
        self._unfinished.remove(job)
        self._progress.count(job, None)
        self._progress.say(f"LEFT OUT: {job.name}: there is no checkpoint to read")

    def waiting(self, running: Mapping[Job, float], remaining: Sequence[Job]) -> None:
        self._progress.waiting(running, remaining)

    def write_result(self, files: RunFiles) -> None:
        """Write the JSON of a run, once all of its splits have a score."""
        before = read_json(files.result) or {"splits": {}}
        new = {split: read_json(files.score(split)) for split in missing_splits(files, self._splits[files])}
        if new and None not in new.values():
            write_json(files.result, self._describer.record(files, {**before["splits"], **new}))

    def _end_attempt(self, job: Job, usage: Usage) -> None:
        attempts = read_json(job.files.attempts)
        attempts[-1].update(wall_seconds=usage.wall_seconds, cpu_seconds=usage.cpu_seconds)
        write_json(job.files.attempts, attempts)

    def _keep_fit(self, job: Job) -> str | None:
        if not job.files.checkpoint.is_file():
            return f"no checkpoint {job.files.checkpoint}"
        attempts = read_json(job.files.attempts)
        content = {
            "wall_seconds": sum(attempt.get("wall_seconds", 0) for attempt in attempts),
            "cpu_seconds": sum(attempt.get("cpu_seconds", 0) for attempt in attempts),
            "attempts": len(attempts),
            # An attempt that was killed with the tool left no measure.
            "complete": all("cpu_seconds" in attempt for attempt in attempts),
            **self._describer.surroundings(),
            "checkpoint": checkpoint_facts(job.files.checkpoint),
        }
        write_json(job.files.fit, content)
        return None

    def _keep_score(self, job: Job, usage: Usage) -> str | None:
        report: dict[str, Any] | None = read_json(job.folder / "validate.json")
        if report is None:
            return f"no {job.folder / 'validate.json'}"
        seconds = {"wall_seconds": usage.wall_seconds, "cpu_seconds": usage.cpu_seconds}
        assert job.split is not None
        write_json(job.files.score(job.split), {**report, **seconds, **self._describer.surroundings()})
        return None

    def _clean_up(self, job: Job) -> None:
        if self._delete_checkpoints and not any(other.fitted == job.fitted for other in self._unfinished):
            shutil.rmtree(job.fitted.checkpoint.parent, ignore_errors=True)
