"""What `gpu.py --root` tells `rca`; the run itself takes a GPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import gpu_training
import pytest
import torch

VOC, WEIGHTS = Path("/data/VOC2012"), Path("/data/resnet50.pth")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """Words of each command; validations score 0.25, 0.5, ... and the last one fails."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    commands: list[list[str]] = []

    def rca(words: list[str]) -> None:
        commands.append(words)
        torch.set_float32_matmul_precision("high")
        folder = next(Path(word.partition("=")[2]) for word in words if "default_root_dir" in word)
        validations = sum(words[0] == "validate" for words in commands)
        if validations == 4:
            raise RuntimeError("lost the device")
        score = {"images": 3, "oracle_miou": validations / 4, "oracle_threshold": 0.1, "classification_map": 0.9}
        (folder / "validate.json").write_text(json.dumps(score))

    monkeypatch.setattr(gpu_training, "rca", rca)
    yield commands
    torch.set_float32_matmul_precision(before)


def test_each_method_is_trained_and_scored_on_both_splits(told: list[list[str]]):
    found: dict = {}
    with pytest.raises(RuntimeError, match="lost the device"):
        gpu_training.train(found, root=VOC, weights=WEIGHTS, stride_in="1x1", workers=5, quick=False)
    assert [words[0] for words in told] == ["fit", "validate", "validate"] * 2
    assert [(row["method"], row["split"], row["miou"]) for row in found["rows"]] == [
        ("cam", "train", 0.25),
        ("cam", "val", 0.5),
        ("rca", "train", 0.75),
    ]
    assert torch.get_float32_matmul_precision() == "medium"
    for words, method in zip(told, ["cam"] * 3 + ["rca"] * 3, strict=True):
        assert Path(words[words.index("--config") + 1]) == gpu_training._EXPERIMENT / f"trained_{method}.yaml"
        options = {word.partition("=")[0]: word.partition("=")[2] for word in words if "=" in word}
        assert options["--data.root"] == str(VOC)
        assert options["--data.num_workers"] == "5"
        assert options["--trainer.precision"] == "bf16-mixed"
        assert all(Path(path).is_file() for path in json.loads(options["--data.split_files"]).values())
        fitting = {"--trainer.max_epochs": "10", "--model.weights": str(WEIGHTS), "--model.stride_in": "1x1"}
        assert {name: options.get(name) for name in fitting} == (
            fitting if words[0] == "fit" else dict.fromkeys(fitting)
        )


def test_without_photographs_it_is_skipped(told: list[list[str]], capsys: pytest.CaptureFixture[str]):
    found: dict = {}
    gpu_training.train(found, root=None, weights=None, stride_in="3x3", workers=5, quick=False)
    assert found == {"skipped": "give --root VOC2012 --weights resnet50.pth to train on photographs"}
    assert found["skipped"] in capsys.readouterr().out
    assert told == []
