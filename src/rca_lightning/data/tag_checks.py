"""Checks whether tags can tell classes apart: too few photographs, a tag everywhere, tags that always come together."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Sequence

from rca_lightning.data.tag_files import Tags
from rca_lightning.errors import DataError

LEAST_PHOTOGRAPHS = 10
"""Photographs of a class below which a warning is due."""


class TagStatistics:
    """Counts tags photograph by photograph, in memory that does not grow with their number.

    Args:
        class_names: of the classes.

    Attributes:
        counts: photographs of each class.
        tagged: photographs with at least one tag.

    Example:
        >>> statistics = TagStatistics(["cat", "dog"])
        >>> statistics.add("a", (0, 1))
        >>> statistics.counts, statistics.tagged
        ([1, 1], 1)
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self.counts = [0] * len(self.class_names)
        self.tagged = 0
        self._signatures = [0] * len(self.class_names)  # of the set of photographs of each class

    def add(self, image_id: str, tags: Tags) -> None:
        """Count one photograph."""
        if not tags:
            return
        self.tagged += 1
        name = int.from_bytes(
            hashlib.blake2b(image_id.encode("utf-8", "surrogatepass"), digest_size=16).digest(), "big"
        )
        for index in tags:
            self.counts[index] += 1
            self._signatures[index] ^= name

    def warnings(self) -> list[str]:
        """What the tags cannot tell, a line each.

        Raises:
            DataError: no photograph has a tag, or all have all of them, so that there is nothing to learn.
        """
        if self.tagged == 0:
            raise DataError("tags: no photograph has a tag; write tags.csv, or sort photographs into a folder a class")
        everywhere = [name for name, count in self._named() if count == self.tagged]
        if len(everywhere) == sum(count > 0 for count in self.counts):
            raise DataError(
                f"tags: every tagged photograph shows {_list(everywhere)}, so nothing tells what that is; add "
                "photographs of other things, with tags of their own"
            )
        lines = self._few()
        lines += [
            f"tag {name!r} is on every photograph, so nothing tells it apart from all else; add photographs without it"
            for name in everywhere
        ]
        lines += [
            f"tags {_list(group)} always come together, so no method can part them; add photographs of one alone, or "
            "give both one name"
            for group in self._together()
        ]
        return lines

    def _named(self) -> list[tuple[str, int]]:
        return list(zip(self.class_names, self.counts, strict=True))

    def _few(self) -> list[str]:
        """One line for each class that may be another misspelt, and one for all others with few photographs."""
        lines, others = [], []
        for name, count in self._named():
            if count >= LEAST_PHOTOGRAPHS:
                continue
            better = [other for other, number in self._named() if number > count]
            near = difflib.get_close_matches(name, better, n=1, cutoff=0.8)
            if near:
                lines.append(f"class {name!r} has {count} photograph{'s' * (count != 1)}; is it {near[0]!r} misspelt?")
            else:
                others.append(f"{name} ({count})")
        if others:
            listed = ", ".join(others)
            lines.append(f"classes with few photographs: {listed}; masks need about {LEAST_PHOTOGRAPHS} or more")
        return lines

    def _together(self) -> list[list[str]]:
        groups: dict[tuple[int, int], list[str]] = {}
        for (name, count), signature in zip(self._named(), self._signatures, strict=True):
            if 0 < count < self.tagged:
                groups.setdefault((count, signature), []).append(name)
        return [names for names in groups.values() if len(names) > 1]


def _list(names: Iterable[str]) -> str:
    *first, last = map(repr, names)
    return f"{', '.join(first)} and {last}" if first else last
