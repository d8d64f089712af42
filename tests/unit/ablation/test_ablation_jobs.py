"""Which commands are left to run."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
from ablate.folders import RunFiles, write_json
from ablate.grid import Grid, Row
from ablate.identity import check_unchanged
from ablate.jobs import Job, choose, plan

from rca_lightning.errors import OutputError


def row(name: str, fit: str | None = None, seeds: tuple[int, ...] = (0,), **settings: Any) -> Row:
    named = {f"model.{key}": value for key, value in settings.items()}
    return Row(name, name, "", named, fit, seeds, ("train", "val"))


GRID = Grid(
    path=Path("grid.yaml"),
    title="",
    config=("a.yaml", "b.yaml"),
    common={"memory.slots": 9},
    rows={r.name: r for r in (row("rca", seeds=(0, 1)), row("coarse", fit="rca", final_map="coarse"))},
    baseline="rca",
    reference=None,
    fixed_threshold=0.3,
    halves=True,
)


def names(jobs: list[Job]) -> list[str]:
    return [job.name for job in jobs]


def planned(out: Path, *options: Any, halves: dict[str, Path] | None = None) -> list[Job]:
    return plan(GRID, choose(GRID, *(options or (None, None, None))), out, ["--data.root=/x"], halves or {})


def test_everything_is_to_do_at_first(tmp_path: Path):
    assert names(planned(tmp_path)) == [
        "fit rca-seed0", "score rca-seed0 on train", "score rca-seed0 on val",
        "fit rca-seed1", "score rca-seed1 on train", "score rca-seed1 on val",
        "score coarse-seed0 on train", "score coarse-seed0 on val",
    ]  # fmt: skip


def test_a_row_that_reads_brings_the_training_that_it_reads_and_no_more(tmp_path: Path):
    jobs = planned(tmp_path, ["coarse"], [0], ["val_a"], halves={"val_a": Path("/half.txt")})
    assert names(jobs) == ["fit rca-seed0", "score coarse-seed0 on val_a"]
    folder = tmp_path / "work"
    common = ("--config=a.yaml", "--config=b.yaml", "--seed_everything=0", "--memory.slots=9")
    assert jobs[0].words == (
        "fit", *common, "--data.root=/x", f"--trainer.default_root_dir={folder / 'rca-seed0'}",
        "--trainer.logger=false", "--trainer.limit_val_batches=0",
    )  # fmt: skip
    assert jobs[1].words == (
        "validate", *common, "--model.final_map=coarse", "--data.root=/x",
        f"--trainer.default_root_dir={folder / 'coarse-seed0' / 'val_a'}", "--trainer.logger=false",
        "--data.eval_split=val_a", "--data.split_files.val_a=/half.txt",
        f"--ckpt_path={folder / 'rca-seed0' / 'checkpoints' / 'last.ckpt'}",
    )  # fmt: skip


def test_what_is_done_is_not_done_again(tmp_path: Path):
    files = RunFiles(tmp_path, "rca", 0)
    write_json(files.fit, {})
    files.checkpoint.parent.mkdir()
    files.checkpoint.touch()
    write_json(files.score("val"), {})
    assert names(planned(tmp_path, ["rca"], [0], None)) == ["score rca-seed0 on train"]
    write_json(files.result, {"splits": {"train": {}, "val": {}}})
    assert planned(tmp_path, ["rca"], [0], None) == []
    # With its checkpoint deleted a finished run stays finished, but nothing new can be read from it.
    files.checkpoint.unlink()
    assert planned(tmp_path, ["rca"], [0], None) == []
    assert names(planned(tmp_path, ["rca"], [0], ["val_b"])) == ["fit rca-seed0", "score rca-seed0 on val_b"]


def test_interrupted_training_resumes_from_a_whole_checkpoint_only(tmp_path: Path):
    checkpoint = RunFiles(tmp_path, "rca", 1).checkpoint
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"PK\x03\x04 cut off")
    (fit, *_) = planned(tmp_path, ["rca"], [1], None)
    assert not any(word.startswith("--ckpt_path") for word in fit.words)
    with zipfile.ZipFile(checkpoint, "w") as archive:
        archive.writestr("data.pkl", b"")
    (fit, *_) = planned(tmp_path, ["rca"], [1], None)
    assert fit.words[-1] == f"--ckpt_path={checkpoint}"


def test_results_of_other_settings_are_not_taken_for_these(tmp_path: Path):
    files = RunFiles(tmp_path, "rca", 0)
    config = [{"file": "a.yaml", "content": {"model": {"lr": 0.1, "flip": True}, "trainer": {"max_epochs": 2}}}]
    begun = {
        "config": config,
        "overrides": {"model.flip": False},
        "further": ["--data.root=/here/voc", "--model.weights=/here/resnet.pth"],
    }
    write_json(files.settings, begun)
    check_unchanged(files, begun)
    # Where files lie does not matter, nor in which file a setting stands.
    check_unchanged(
        files,
        {
            "config": [{"file": "b.yaml", "content": {"model": {"lr": 0.1}, "trainer": {"max_epochs": 2}}}],
            "overrides": {"model.flip": False},
            "further": ["--data.root=/there/voc", "--model.weights=/there/resnet.pth"],
        },
    )
    for changed in (
        {"overrides": {"model.flip": True}},
        {"further": ["--model.weights=/here/vgg.pth"]},
        {"further": [*begun["further"], "--trainer.max_epochs=3"]},
        {"config": [{"file": "a.yaml", "content": {"model": {"lr": 0.2}, "trainer": {"max_epochs": 2}}}]},
    ):
        with pytest.raises(OutputError, match="was made with"):
            check_unchanged(files, begun | changed)
