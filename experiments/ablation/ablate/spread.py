"""Numbers over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Mean and spread of the values that there are.

    Attributes:
        mean: of the values.
        deviation: sample standard deviation; None of a single value.
        low: the smallest.
        high: the largest.
        count: how many.
    """

    mean: float
    deviation: float | None
    low: float
    high: float
    count: int


def spread(values: Iterable[float]) -> Spread | None:
    """Spread of values, None of no value."""
    known = list(values)
    if not known:
        return None
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return Spread(statistics.fmean(known), deviation, min(known), max(known), len(known))


def paired(values: Mapping[int, float], others: Mapping[int, float]) -> Spread | None:
    """Spread of the differences seed by seed, over the seeds that both have."""
    return spread(values[seed] - others[seed] for seed in sorted(values) if seed in others)


def ratio(values: Mapping[int, float], others: Mapping[int, float]) -> float | None:
    """Quotient of the means over the seeds that both have."""
    shared = [seed for seed in values if seed in others]
    below = sum(others[seed] for seed in shared)
    return sum(values[seed] for seed in shared) / below if below else None
