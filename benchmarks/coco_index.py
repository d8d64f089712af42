"""Target 9: starting on an annotation file of the size of COCO's, and what its index costs each loader process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import coco_like
from measure.result import Result

from rca_lightning.data.dataset import TaggedImages
from rca_lightning.data.records import Record
from rca_lightning.data.sources import SourceOptions, training_records

_START_LIMIT = 5.0  # seconds
_MEMORY_LIMIT = 20.0  # MiB
_PROCESSES = 2


def run(*, quick: bool = False) -> Result:
    """Start twice with masks and twice without, then look at every record in loader processes.

    Args:
        quick: 200 images instead of 118,000.
    """
    images = 200 if quick else 118_000
    with tempfile.TemporaryDirectory() as folder, _cache(Path(folder) / "cache"):
        size = coco_like.generate(Path(folder), images)
        rows, found = [], {}
        for masks in (True, False):
            for name in ("first", "second"):
                found[name, masks], seconds = _start(Path(folder), masks=masks)
                way = f"{name} start, {'with' if masks else 'without'} masks"
                rows.append({"way": way, "seconds": seconds, "mib": _kept(Path(folder) / "cache")})
        table = found["second", True].records
        memory = {
            "fork": _memory(table, "fork"),
            "spawn": _memory(table, "spawn"),
            "fork, as a list": _memory(list(table), "fork"),
        }
    rows += [{"way": f"a process by {name}", "seconds": s, "mib": mib} for name, (s, mib) in memory.items()]
    title = f"{images} images, annotations of {size / 2**20:.0f} MiB; files kept, or memory of a process for itself"
    result = Result("coco_index", title, rows)
    result.at_most("seconds of a second start", max(rows[1]["seconds"], rows[3]["seconds"]), _START_LIMIT)
    for name in ("fork", "spawn"):
        result.at_most(f"MiB of a process by {name}", memory[name][1], _MEMORY_LIMIT)
    return result


@contextlib.contextmanager
def _cache(folder: Path) -> Iterator[None]:
    from rca_lightning.data import coco_index

    before, small = os.environ.get("RCA_CACHE"), coco_index.SMALL
    os.environ["RCA_CACHE"], coco_index.SMALL = str(folder), 0
    try:
        yield
    finally:
        coco_index.SMALL = small
        os.environ.pop("RCA_CACHE")
        if before is not None:
            os.environ["RCA_CACHE"] = before


def _start(root: Path, *, masks: bool) -> tuple[TaggedImages, float]:
    begin = time.perf_counter()
    source = SourceOptions(dataset="coco2017", root=root).open()
    records = training_records(source, "train", with_masks=masks, mask_dir=None, saliency_dir=None)
    images = TaggedImages(records, num_classes=80)
    return images, time.perf_counter() - begin


def _kept(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*.bin")) / 2**20


def _memory(records: Sequence[Record], method: str) -> tuple[float, float]:
    """Seconds and MiB of the most expensive of the processes that look at every record."""
    context = multiprocessing.get_context(method)
    barrier, answers = context.Barrier(_PROCESSES), context.Queue()
    processes = [context.Process(target=_look, args=(records, barrier, answers)) for _ in range(_PROCESSES)]
    for process in processes:
        process.start()
    found = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    return max(seconds for seconds, _ in found), max(mib for _, mib in found)


def _look(records: Sequence[Record], barrier: Barrier, answers: Any) -> None:
    records[0]
    barrier.wait()
    before, begin = _private(), time.perf_counter()
    for index in range(len(records)):
        record = records[index]
        assert len(record.image_id) == 12
        del record
    seconds = time.perf_counter() - begin
    barrier.wait()  # pages that both have read are shared only while both are there
    answers.put((seconds, _private() - before))
    barrier.wait()


def _private() -> float:
    """MiB that no other process shares; not a number where the system does not tell."""
    path = Path("/proc/self/smaps_rollup")
    if not path.is_file():
        return float("nan")
    lines = [line.split() for line in path.read_text().splitlines()]
    return sum(int(line[1]) for line in lines if line[0] in {"Private_Clean:", "Private_Dirty:"}) / 2**10
