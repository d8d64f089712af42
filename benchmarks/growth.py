"""How time and memory of RCA's own operations and of the clustering grow with classes, slots, channels and batch."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
from clustering import Size as Memory
from clustering import memory_like
from measure.result import Result
from measure.timing import in_turns
from operations import Inputs, Size, library

from rca_lightning.memory.clustering import kmeans

_BASE = Size(batch=8, classes=20, channels=256, side=16, slots=500)
_VARIED: dict[str, tuple[int, ...]] = {
    "classes": (20, 80, 200, 1000),
    "slots": (100, 500, 1000, 4000),
    "channels": (128, 256, 512, 2048),
    "batch": (4, 8, 16, 32),
}
_TINY = {"classes": (3, 6), "slots": (5, 10), "channels": (4, 8), "batch": (2, 4)}


def run(*, quick: bool = False, rounds: int = 3) -> Result:
    """One quantity is varied at a time, the others stay at the base."""
    base = Size(batch=2, classes=3, channels=4, side=4, slots=5, prototypes=2) if quick else _BASE
    result = Result("growth", "forward and backward of regions, contrast and aggregation; k-means", rows := [])
    for name, values in (_TINY if quick else _VARIED).items():
        sizes = [dataclasses.replace(base, **{name: value}) for value in values]
        rows.extend({"varied": name, **_measure(size, rounds)} for size in sizes)
    result.notes["model of step seconds"] = fit(rows, "step_seconds", ("contrast_products", "attention_products"))
    result.notes["model of k-means seconds"] = fit(rows, "kmeans_seconds", ("kmeans_products",))
    return result


def _measure(size: Size, rounds: int) -> dict[str, float | int]:
    inputs = Inputs(size)
    memory = Memory(size.classes, size.slots, size.channels, limit=0, clusters=size.prototypes)
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
        "step_seconds": times["step"].seconds,
        "kmeans_seconds": times["kmeans"].seconds,
        "bank_mib": bank * size.channels * 4 / 2**20,
        "contrast_products": regions * bank * size.channels,
        "attention_products": cells * size.classes * size.prototypes * size.channels,
        "kmeans_products": bank * size.prototypes * size.channels,
    }


def fit(rows: list[dict[str, float | int]], of: str, on: tuple[str, ...]) -> dict[str, float]:
    """Least squares on relative errors: a constant, and seconds for each product of two numbers.

    Returns:
        The coefficients by name, and `median_error`, the median of how far the model is off, as a share.
    """
    found = np.array([float(row[of]) for row in rows])
    terms = np.array([[1.0, *(float(row[name]) for name in on)] for row in rows])
    coefficients, *_ = np.linalg.lstsq(terms / found[:, None], np.ones(len(found)), rcond=None)
    error = float(np.median(np.abs(terms @ coefficients / found - 1)))
    return {
        "constant": float(coefficients[0]),
        **dict(zip(on, coefficients[1:].tolist(), strict=True)),
        "median_error": error,
    }
