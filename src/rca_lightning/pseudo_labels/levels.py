"""How strong a map must be for its class, unless told otherwise."""

from __future__ import annotations

from typing import NamedTuple


class Levels(NamedTuple):
    """Strengths in `[0, 1]` that maps of one kind are compared with.

    Attributes:
        threshold: of the rule "fixed".
        low: of the rules "two_thresholds" and "saliency".
        high: of the same.
    """

    threshold: float
    low: float
    high: float

    @staticmethod
    def of(*, attention: bool) -> Levels:
        """About what was best on VOC photographs: the attention is flat and wide, CAMs have peaks."""
        return Levels(0.7, 0.5, 0.8) if attention else Levels(0.2, 0.05, 0.3)

    def replaced(self, threshold: float | None, low: float | None, high: float | None) -> Levels:
        """These, but for those that are given."""
        given = zip(self, (threshold, low, high), strict=True)
        return Levels(*(own if value is None else value for own, value in given))
