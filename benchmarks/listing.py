"""Memory of `rca masks` on a million photographs: its list, its checks of tags, and what each process reads of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measure.result import Result
from PIL import Image

_LIMIT = 150.0  # MiB above the imports
_CLASSES = 80
_PARTS = 8


def run(*, quick: bool = False) -> Result:
    """Lists links to one small photograph, with a tag file, and does in a new process what a run does with the list.

    Args:
        quick: 2,000 photographs instead of a million.
    """
    count = 2_000 if quick else 1_000_000
    with tempfile.TemporaryDirectory() as root:
        generate(Path(root), count)
        rows = measure(Path(root))
    return result(rows, count)


def result(rows: list[dict[str, Any]], count: int) -> Result:
    """The table and targets of what `measure` has found of so many photographs."""
    title = f"{count:,} photographs: MiB above the imports at the most, of memory of the process for itself"
    found = Result("listing", title, rows)
    found.at_most("MiB of listing", rows[0]["mib"], _LIMIT)
    found.at_most("MiB of any step", max(row["mib"] for row in rows), _LIMIT)
    return found


def generate(root: Path, count: int) -> None:
    """Make a folder of links to one photograph, and a tag file in another order; a tenth has no tags."""
    folder = root / "photographs" / "images"
    folder.mkdir(parents=True)
    names = [f"class{number:02}" for number in range(_CLASSES)]
    first = folder
    with (root / "photographs" / "tags.csv").open("w") as file:
        file.write("image,tags\n")
        for place in range(count):
            number = place * 7919 % count  # every number once, as 7919 is a prime that divides no count used here
            if place % 50_000 == 0:  # a file system allows 65,000 links to a file
                first = folder / f"IMG_{number:08}.jpg"
                Image.new("RGB", (32, 24), (number % 256, 0, 0)).save(first)
            else:
                os.link(first, folder / f"IMG_{number:08}.jpg")
            if place % 10:
                tags = {names[number % _CLASSES], names[number * number % _CLASSES]}
                file.write(f"IMG_{number:08},{';'.join(sorted(tags))}\n")


def measure(root: Path) -> list[dict[str, Any]]:
    """Seconds and memory of each step, measured in a process of its own."""
    told = subprocess.run([sys.executable, __file__, str(root)], check=True, stdout=subprocess.PIPE, text=True).stdout
    rows: list[dict[str, Any]] = json.loads(told.splitlines()[-1])
    return rows


def _steps(root: Path) -> Iterator[tuple[str, Any]]:
    """Names of steps and what does them, as a run without the network does."""
    from rca_lightning.cli.fit_photographs import Model, RunPhotographs
    from rca_lightning.cli.plan_masks import Choices, Plan, find_photographs
    from rca_lightning.cli.run_folder import Part, RunFolder
    from rca_lightning.cli.steps import Steps
    from rca_lightning.data.near_duplicates import near_duplicates
    from rca_lightning.data.tag_checks import TagStatistics

    photographs, out, steps = root / "photographs", root / "masks", Steps({"look": 0.0}, every=1e9)
    choices = Choices(photographs, None, None, None, None, (), False, False, False)
    whole, part = RunFolder(out), RunFolder(out, Part(2, _PARTS))
    for run in (whole, part):
        run.own.mkdir(parents=True, exist_ok=True)
    made: dict[str, Any] = {}

    def listed() -> None:
        made["list"] = find_photographs(whole, choices, steps)

    def tags() -> None:
        statistics = TagStatistics(made["list"].facts.class_names)
        for image_id, known in made["list"].tags.items():
            statistics.add(image_id, known)
        statistics.warnings()

    def hashes() -> None:
        near_duplicates(*np.random.default_rng(0).integers(0, 2**63, (2, len(made["list"].table)), dtype=np.uint64))

    def plan() -> None:
        whole.state = whole._read_state()
        Plan(whole, made["list"], choices, Model()).carry_out(made["list"])

    def lacking(run: RunFolder) -> None:
        from rca_lightning.cli.fit_photographs import feature_cache

        features = feature_cache(run)
        features.cache.use({"weights": "none"}, scales=[1.0])
        data = RunPhotographs(run, find_photographs(run, choices, steps))
        data.setup("predict")
        features._lack(data.photographs_to_predict())

    def predicted(run: RunFolder) -> None:
        labels = run.predictions()
        data = RunPhotographs(run, find_photographs(run, choices, steps))
        data.setup("predict")
        data.leave_out_of_prediction(labels.done())
        loader = data.predict_dataloader()
        for row in loader.sampler:
            labels.claim(loader.dataset.records[row].image_id)

    yield "list photographs and tags", listed
    yield "count tags", tags
    yield "near duplicates by hashes", hashes
    yield "plan, tags.csv", plan
    yield f"list again, as a part of {_PARTS}", lambda: find_photographs(part, choices, steps)
    yield f"look for features of a part of {_PARTS}", lambda: lacking(part)
    yield f"walk through the photographs of a part of {_PARTS}", lambda: predicted(part)
    yield "walk through all photographs", lambda: predicted(whole)


def _main(root: Path) -> None:
    """Print the steps' seconds and memory as JSON."""
    rows = []
    steps = list(_steps(root))  # imports first
    import torch.utils.data  # noqa: F401

    base = _own_mib()
    for name, do in steps:
        ended, most = threading.Event(), [0.0]

        def watch(ended: threading.Event = ended, most: list[float] = most) -> None:
            while not ended.wait(0.01):
                most[0] = max(most[0], _own_mib())

        watcher = threading.Thread(target=watch)
        watcher.start()
        begin = time.perf_counter()
        do()
        seconds = time.perf_counter() - begin
        ended.set()
        watcher.join()
        rows.append({"step": name, "seconds": round(seconds, 1), "mib": round(max(most[0], _own_mib()) - base, 1)})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(json.dumps(rows))


def _own_mib() -> float:
    """Memory of this process but for pages of files, which the system takes back where it needs them."""
    with Path("/proc/self/status").open() as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon:")) / 1024


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
