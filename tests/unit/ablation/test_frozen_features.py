"""Cached features, the backbone that serves them, windows and scores, on features whose answer is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from frozen.backbone import CachedBackbone
from frozen.features import CachedSplit
from frozen.scoring import score
from frozen.training import frozen_module
from frozen.windows import FeatureWindows, window_loader

from rca_lightning.errors import ArgumentError, DataError

CLASSES = ["cat", "dog"]
SETTINGS = {"model": {"backbone": "resnet14", "aggregation": False, "contrast": False, "final_map": "coarse"}}


def cached(*, images: int = 4, cells: tuple[int, int] = (6, 8)) -> CachedSplit:
    """The last but one channel fires for cats in the left half, the last for dogs in the right one."""
    features = torch.zeros(192, *cells)
    features[-2, :, : cells[1] // 2] = 1
    features[-1, :, cells[1] // 2 :] = 1
    mask = torch.ones(cells[0] * 16, cells[1] * 16, dtype=torch.uint8)
    mask[:, cells[1] * 8 :] = 2
    weight = torch.zeros(2, 128, 1, 1)  # the head reads just these two
    weight[0, -2], weight[1, -1] = 1, 1
    return CachedSplit(
        ids=[f"image{i}" for i in range(images)],
        stages=[features.half() for _ in range(images)],
        widths=[64, 128],
        tags=torch.ones(images, 2),
        masks=[mask] * images,
        class_names=CLASSES,
        head={"conv.weight": weight},
        checkpoint="last.ckpt",
    )


def test_backbone_takes_the_stages_apart():
    backbone, both = CachedBackbone([2, 4], 16), torch.arange(12.0).reshape(1, 6, 1, 2)
    earlier, last = backbone.last_stages(both, 2)
    assert torch.equal(torch.cat([earlier, last], dim=1), both)
    assert (earlier.shape[1], last.shape[1]) == (2, 4)
    assert torch.equal(backbone(both), last)
    assert torch.equal(backbone.last_stages(both, 1)[0], last)
    assert (backbone.stage_channels(1), backbone.stage_channels(2)) == ([4], [2, 4])
    with pytest.raises(ArgumentError, match="embedding_stages"):
        backbone.stage_channels(3)
    with pytest.raises(ArgumentError, match="embedding_stages"):
        frozen_module({"model": {"backbone": "resnet14", "embedding_stages": 3}}, cached())


def test_windows_are_parts_of_the_features_or_their_mirror_image():
    split = cached(images=1)
    split.stages[0] = torch.randn(2, 6, 8).half()
    parts = {
        tuple(whole[:, top : top + 3, left : left + 3].flatten().tolist())
        for whole in (split.stages[0], split.stages[0].flip(2))
        for top in range(4)
        for left in range(6)
    }
    windows = FeatureWindows(split, 3)
    seen = {tuple(windows[0]["image"].flatten().tolist()) for _ in range(60)}
    assert seen <= parts
    assert len(seen) > 10


def test_a_window_larger_than_the_features_is_filled_with_their_mirror_image():
    features = torch.arange(6.0).reshape(1, 2, 3)
    split = cached(images=1)
    split.stages[0] = features.half()
    window = FeatureWindows(split, 4)[0]["image"]
    assert window.shape == (1, 4, 4)
    assert set(window.flatten().tolist()) <= set(range(6))
    assert torch.equal(window[0, 0], window[0, 3])
    assert torch.equal(window[0, 1], window[0, 2])


def test_loader_gives_full_batches_of_the_data_module():
    batches = list(window_loader(cached(images=5), cells=4, batch_size=2))
    assert len(batches) == 2
    assert batches[0]["image"].shape == (2, 192, 4, 4)
    assert batches[0]["image"].dtype == torch.float32
    assert len(set(batches[0]["image_id"]) | set(batches[1]["image_id"])) == 4


def test_score_of_perfect_and_of_swapped_features():
    split = cached()
    module = frozen_module(SETTINGS, split).eval()
    right = score(module, split, "val_a")
    assert (right["split"], right["images"], right["tags"]) == ("val_a", 4, "image")
    for name in CLASSES:
        assert right["per_class_iou"][name] > 0.97
    split.stages = [torch.cat([f[:-2], f[[-1, -2]]]) for f in split.stages]
    assert score(module, split, "val_a")["miou"] < 0.05


def test_files(tmp_path: Path):
    path = tmp_path / "seed0" / "train.pt"
    with pytest.raises(DataError, match=r"train\.pt: are not there; make them with .*extract\.py"):
        CachedSplit.load(path)
    split = cached()
    split.save(path)
    found = CachedSplit.load(path)
    assert found.ids == split.ids
    assert torch.equal(found.stages[3], split.stages[3])
    half = found.part(1, 2)
    assert half.ids == ["image1", "image3"]
    assert len(half.stages) == len(half.masks) == len(half.tags) == 2
    torch.save({"other": 1}, path)
    with pytest.raises(DataError, match="make them anew"):
        CachedSplit.load(path)
