"""What tags cannot tell."""

from __future__ import annotations

import pytest

from rca_lightning.data.tag_checks import TagStatistics
from rca_lightning.errors import DataError


def statistics(classes: list[str], *photographs: tuple[int, ...]) -> TagStatistics:
    counted = TagStatistics(classes)
    for number, tags in enumerate(photographs):
        counted.add(str(number), tags)
    return counted


def test_few_photographs_and_a_name_that_is_near_another():
    lines = statistics(["elephant", "elephnat", "cow", "emu"], *[(0,)] * 10, (1,), *[(2,)] * 9).warnings()
    assert lines == [
        "class 'elephnat' has 1 photograph; is it 'elephant' misspelt?",
        "classes with few photographs: cow (9), emu (0); masks need about 10 or more",
    ]


def test_a_tag_everywhere_and_tags_together():
    photographs = [(0, 1, 2)] * 12 + [(0, 3)] * 12 + [(0,)] * 3
    lines = statistics(["sky", "horse", "rider", "cow"], *photographs).warnings()
    assert len(lines) == 2
    assert lines[0].startswith("tag 'sky' is on every photograph")
    assert lines[1].startswith("tags 'horse' and 'rider' always come together")


def test_equal_counts_on_other_photographs_are_not_together():
    assert statistics(["a", "b"], *[(0,)] * 12, *[(1,)] * 12).warnings() == []


@pytest.mark.parametrize(("photographs", "message"), [([(), ()], "no photograph has a tag"), ([(0,), (0,)], "'a', so")])
def test_nothing_to_learn_is_refused(photographs, message):
    with pytest.raises(DataError, match=message):
        statistics(["a", "b"], *photographs).warnings()
