"""The faults found in a set of results, all of them told in one refusal."""

from __future__ import annotations

from dataclasses import dataclass

from rca_lightning.errors import ResultsError
from rca_lightning.io.listing import first_few


@dataclass(frozen=True)
class Passed:
    """What was found in results without a fault.

    Attributes:
        images: how many images have a result.
        values: the label values or category ids that occur, ascending.
    """

    images: int
    values: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.images} images pass; found: {', '.join(map(str, self.values))}"


class Findings:
    """Faults by kind, in the order in which they were found.

    Example:
        >>> findings = Findings()
        >>> findings.add("missing", "a")
        >>> findings.add("missing", "b")
        >>> findings.refuse("results='out'")
        Traceback (most recent call last):
        rca_lightning.errors.ResultsError: results='out': 2 faults; correct them before anything is uploaded
          2 missing: a, b
    """

    def __init__(self) -> None:
        self._faults: dict[str, list[str]] = {}

    def add(self, kind: str, what: str) -> None:
        """Note one fault.

        Args:
            kind: what is wrong, as it reads after a number.
            what: the file or entry it is wrong with.
        """
        self._faults.setdefault(kind, []).append(what)

    def refuse(self, where: str) -> None:
        """Tell of every kind how often it was found and where first, if anything was found at all.

        Args:
            where: argument and value of what was checked.

        Raises:
            ResultsError: at least one fault was noted.
        """
        if not self._faults:
            return
        total = sum(map(len, self._faults.values()))
        lines = [f"{where}: {total} fault{'s' if total > 1 else ''}; correct them before anything is uploaded"]
        lines += [f"  {len(found)} {kind}: {first_few(found)}" for kind, found in self._faults.items()]
        raise ResultsError("\n".join(lines))
