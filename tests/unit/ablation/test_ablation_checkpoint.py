"""What is read from a checkpoint, whatever its callback has kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ablate.checkpoint import checkpoint_facts
from ablate.halves import half_file, write_half
from ablate.plain import plain

from rca_lightning.errors import OutputError


def save(folder: Path, callback: dict[str, Any], **weights: torch.Tensor) -> Path:
    content = {
        "state_dict": {f"network.aggregation.{name}": value for name, value in weights.items()},
        "hyper_parameters": {"num_classes": 3, "class_names": ["cat", "dog", "cow"], "num_prototypes": 2},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {}, "RegionMemoryCallback": callback},
    }
    torch.save(content, folder / "last.ckpt")
    return folder / "last.ckpt"


def test_prototypes_regions_and_diagnostics(tmp_path: Path):
    prototypes = torch.zeros(10, 4)  # 3 classes x 2, and 4 of the background
    prototypes[0], prototypes[1] = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0.6, 0.8, 0, 0])
    prototypes[2] = torch.tensor([0, 0, 1.0, 0])
    valid = torch.tensor([True, True, True, False, False, False, True, True, True, False])
    state = {
        "memory": {"counts": torch.tensor([5, 2, 0, 9]), "embeddings": torch.ones(4, 9, 4)},
        "diagnostics": {"cat": {"coverage": 0.5, "gain": None}, "dog": {"coverage": float("nan"), "dead": 1}},
    }
    facts = checkpoint_facts(save(tmp_path, state, prototypes=prototypes, valid=valid))
    assert facts["regions"] == {"cat": 5, "dog": 2, "cow": 0, "background": 9}
    assert facts["diagnostics"] == {"cat": {"coverage": 0.5, "gain": None}, "dog": {"coverage": None, "dead": 1}}
    found = facts["prototypes"]
    assert found["classes_with_one"] == pytest.approx(2 / 3)
    assert found["per_class"] == {"cat": 2, "dog": 1, "cow": 0}
    assert found["background"] == 3
    assert found["within_class_cosine"] == pytest.approx(0.6)  # dog and cow have no pair
    assert found["between_class_cosine"] == pytest.approx(0.0)


def test_plain_cam_has_none(tmp_path: Path):
    assert checkpoint_facts(save(tmp_path, {})) == {"prototypes": None, "regions": None, "diagnostics": None}


def test_values_that_json_cannot_hold():
    found = plain({"a": (1, float("inf")), 2: Path("x"), "big": torch.zeros(6000), "what": object(), "yes": True})
    assert found == {"a": [1, None], "2": "x", "big": None, "what": None, "yes": True}


def test_halves_share_no_image_and_are_not_changed_behind_scores(tmp_path: Path):
    ids = [f"photo{number}" for number in range(7)]
    first, second = (write_half(ids, name, tmp_path) for name in ("train_a", "train_b"))
    assert first == half_file(tmp_path, "train_a")
    assert first.is_absolute()
    assert first.read_text().split() == ids[::2]
    assert sorted(first.read_text().split() + second.read_text().split()) == ids
    assert write_half(ids, "train_a", tmp_path) == first  # the same again
    with pytest.raises(OutputError, match="lists other images"):
        write_half(ids[1:], "train_a", tmp_path)
