"""`rca compare`: its words and its exit status."""

from __future__ import annotations

import pytest
from tests.unit.evaluation.counted_images import count_labels, label_pairs
from tests.unit.evaluation.test_comparison import write

from rca_lightning.cli.main import console, main
from rca_lightning.errors import ResultsError


@pytest.fixture
def files(tmp_path) -> list[str]:
    counts = count_labels(label_pairs(4))
    return [str(write(tmp_path / f"{name}.json", counts, tags=name)) for name in ("image", "predicted")]


def test_scores_are_printed_and_nothing_is_returned(files, capsys):
    assert main(["compare", files[0], files[0]]) is None
    assert "b - a: +0.0 mIoU, 95 % interval +0.0 to +0.0" in capsys.readouterr().out


def test_an_unfair_comparison_is_refused_unless_it_is_wanted(files, capsys):
    with pytest.raises(ResultsError, match=r'supervision\.tags: "image" and "predicted"'):
        main(["compare", *files])
    assert capsys.readouterr().out == ""
    main(["compare", *files, "--anyway"])
    assert "NOT A FAIR COMPARISON" in capsys.readouterr().out


def test_a_refusal_ends_with_status_1_and_a_line_for_each_reason(files, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["rca", "compare", *files])
    with pytest.raises(SystemExit) as ended:
        console()
    # Python prints a text that a process ends with, and makes its status 1.
    assert str(ended.value.code).splitlines()[1:] == ['  supervision.tags: "image" and "predicted"']


@pytest.mark.parametrize("words", [[], ["a.json"], ["a.json", "b.json", "c.json"], ["a.json", "b.json", "--any"]])
def test_other_words_are_refused(words):
    with pytest.raises(SystemExit) as ended:
        main(["compare", *words])
    assert ended.value.code == 2


def test_help_fits_a_screen(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
