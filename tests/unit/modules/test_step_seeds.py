"""Dropout is a function of seed, epoch, batch and rank."""

from __future__ import annotations

import pytest
import torch

from rca_lightning.modules.segmentation_module import SegmentationModule


class Place:
    """What of a Trainer tells where a step is."""

    def __init__(self, epoch: int, rank: int) -> None:
        self.current_epoch = epoch
        self.global_rank = rank


def drawn(module: SegmentationModule, epoch: int = 0, batch: int = 0, rank: int = 0) -> list[float]:
    module._trainer = Place(epoch, rank)
    module._fabric = None
    torch.rand(3)  # whatever was drawn before
    module.on_train_batch_start({}, batch)
    return torch.rand(4).tolist()


def test_the_same_step_draws_the_same_and_others_do_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    module = SegmentationModule(num_classes=2, backbone="resnet14")
    places = [(0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1)]
    first = [drawn(module, *place) for place in places]
    assert [drawn(module, *place) for place in reversed(places)] == first[::-1]
    assert len({tuple(numbers) for numbers in first}) == 4
    monkeypatch.setenv("PL_GLOBAL_SEED", "6")
    assert drawn(module) != first[0]
