"""`experiments/ablation/paired.py`: the difference of two rows, at thresholds of another split."""

from __future__ import annotations

import json
from pathlib import Path

import paired
import pytest
import torch

from rca_lightning.errors import DataError
from rca_lightning.evaluation.counting import ImageCounter

MASK = torch.tensor([[0, 0, 1, 1]])


def write(folder: Path, row: str, seed: int, drawn_above: list[int], best: str) -> None:
    """A run whose pixels lie above so many of the thresholds 0.2 and 0.4; `best` is the one of train_a."""
    counter = ImageCounter(1, (0.2, 0.4))
    counter.add("image", MASK, MASK.flatten(), torch.ones(4, dtype=torch.int64), torch.tensor(drawn_above))
    counts = counter.gather(torch.device("cpu"))
    assert counts is not None
    work = folder / "work" / f"{row}-seed{seed}" / "val"
    work.mkdir(parents=True)
    counts.save(work / "validate_images.npz")
    curve = {"0.2": 0.5, "0.4": 0.5, best: 0.9}
    splits = {"train_a": {"curve": curve}, "val": {"curve": curve}}
    (folder / "results").mkdir(exist_ok=True)
    (folder / "results" / f"{row}-seed{seed}.json").write_text(json.dumps({"row": row, "seed": seed, "splits": splits}))


def test_both_rows_are_scored_at_their_own_thresholds(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path, "cam", 0, [0, 0, 0, 2], best="0.4")  # half of the object: IoU 2/3 and 1/2
    for seed in (0, 1):
        write(tmp_path, "rca", seed, [0, 0, 1, 1], best="0.2")  # all of it
    paired.main([str(tmp_path), "cam", "rca"])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"val, seed {seed}: rca over cam +41.7 (+41.7 to +41.7)" for seed in (0, 1)]


def test_a_row_without_a_finished_run_is_named(tmp_path: Path):
    write(tmp_path, "cam", 0, [0, 0, 0, 2], best="0.4")
    with pytest.raises(DataError, match=r"row 'rca' has no finished run"):
        paired.main([str(tmp_path), "cam", "rca"])
    write(tmp_path, "rca", 1, [0, 0, 1, 1], best="0.2")
    with pytest.raises(DataError, match="no seed in common"):
        paired.main([str(tmp_path), "rca", "cam"])
