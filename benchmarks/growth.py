"""How time and memory of RCA's own operations and of the clustering grow with what they depend on, with a model."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
from clustering import MemorySize, memory_like
from forecast import forecast
from growth_plot import plot
from measure.result import Result
from measure.timing import in_turns
from operations import Inputs, OperationSize, library

from rca_lightning.clustering.cluster import kmeans

_BASE = OperationSize(batch=8, classes=20, channels=256, side=16, slots=500)
_VARIED: dict[str, tuple[int, ...]] = {
    "classes": (20, 80, 200, 1000),
    "slots": (100, 500, 1000, 4000),
    "channels": (128, 256, 512, 2048),
    "batch": (4, 8, 16, 32),
    "ranks": (1, 2, 4, 8),
}
_TINY = {"classes": (3, 6), "slots": (5, 10), "channels": (4, 8), "batch": (2, 4), "ranks": (1, 2)}
_STEP_TERMS = ("contrast_products", "attention_products", "written_values")
_KMEANS_TERMS = ("kmeans_products",)


def run(*, quick: bool = False, rounds: int = 3) -> Result:
    """One quantity is varied at a time, the others stay at the base.

    More ranks write more regions into the memory of each, `ranks` times those of its own batch; the rest of a step
    does not see them. What moving the regions between the ranks takes is not measured: only their bytes are told.
    Seconds are those of the processor where no accelerator is waited for.
    """
    base = OperationSize(batch=2, classes=3, channels=4, side=4, slots=5, prototypes=2) if quick else _BASE
    result = Result("growth", "forward and backward of regions, contrast and aggregation; k-means", rows := [])
    for name, values in (_TINY if quick else _VARIED).items():
        sizes = [dataclasses.replace(base, **{name: value}) for value in values]
        rows.extend({"varied": name, **_measure(size, rounds)} for size in sizes)
    models = {
        "step_seconds": fit(rows, "step_seconds", _STEP_TERMS),
        "kmeans_seconds": fit(rows, "kmeans_seconds", _KMEANS_TERMS),
    }
    result.notes["model of step seconds"] = models["step_seconds"]
    result.notes["model of k-means seconds"] = models["kmeans_seconds"]
    result.notes["forecast"] = forecast(models["kmeans_seconds"])
    result.drawings["growth.png"] = partial(plot, rows, models)
    return result


def _measure(size: OperationSize, rounds: int) -> dict[str, float | int]:
    inputs = Inputs(size)
    memory = MemorySize(size.classes, size.slots, size.channels, limit=0, clusters=size.prototypes)
    points = memory_like(memory)
    ways = {"step": partial(library, inputs), "kmeans": partial(kmeans, points, size.prototypes)}
    times = in_turns(ways, rounds=rounds)
    cells, regions = size.batch * size.side**2, int(inputs.tags.sum())
    bank = size.classes * size.slots
    return {
        "classes": size.classes,
        "slots": size.slots,
        "channels": size.channels,
        "batch": size.batch,
        "ranks": size.ranks,
        "step_seconds": times["step"].steady,
        "kmeans_seconds": times["kmeans"].steady,
        "bank_mib": bank * size.channels * 4 / 2**20,
        "contrast_products": regions * bank * size.channels,
        "attention_products": cells * size.classes * size.prototypes * size.channels,
        "written_values": regions * size.ranks * size.channels,
        "kmeans_products": bank * size.prototypes * size.channels,
    }


def fit(rows: list[dict[str, float | int]], of: str, on: tuple[str, ...]) -> dict[str, float]:
    """Least squares on relative errors: a constant, and seconds for each unit of the terms, none below 0.

    Args:
        rows: measured points.
        of: column of the seconds.
        on: columns of the terms.

    Returns:
        The coefficients by name, and `median_error`, the median of how far the model is off, as a share.
    """
    found = np.array([float(row[of]) for row in rows])
    names = ["constant", *on]
    terms = np.array([[1.0, *(float(row[name]) for name in on)] for row in rows])
    kept = list(range(len(names)))
    while True:
        solved, *_ = np.linalg.lstsq(terms[:, kept] / found[:, None], np.ones(len(found)), rcond=None)
        if solved.min() >= 0:
            break
        del kept[int(solved.argmin())]  # no term makes anything faster; noise can make it look so
    coefficients = np.zeros(len(names))
    coefficients[kept] = solved
    error = float(np.median(np.abs(terms @ coefficients / found - 1)))
    return {**dict(zip(names, coefficients.tolist(), strict=True)), "median_error": error}
