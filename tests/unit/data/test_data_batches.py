"""Evaluation in batches of photographs of one size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.data.loaders import GroupedBatchSampler, ShardSampler
from rca_lightning.errors import ArgumentError


@given(st.lists(st.integers(0, 3), min_size=3, max_size=40), st.integers(1, 5), st.integers(1, 3))
def test_each_image_once_and_only_like_ones_together(keys, batch_size, world_size):
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        for rank in range(world_size):
            monkeypatch.setattr("rca_lightning.data.loaders.world_size_and_rank", lambda rank=rank: (world_size, rank))
            sampler = GroupedBatchSampler(keys, batch_size=batch_size)
            batches = list(sampler)
            assert len(batches) == len(sampler)
            own = [index for batch in batches for index in batch]
            assert sorted(own) == list(ShardSampler(keys))
            seen += own
            for batch in batches:
                assert 1 <= len(batch) <= batch_size
                assert len({keys[index] for index in batch}) == 1
                assert batch == sorted(batch)
            assert [batch[0] for batch in batches] == sorted(batch[0] for batch in batches)
            # No batch could take in another one of its key.
            open_batches = Counter(keys[batch[0]] for batch in batches if len(batch) < batch_size)
            assert all(count == 1 for count in open_batches.values())
    assert sorted(seen) == list(range(len(keys)))


@pytest.fixture
def root(make_voc: Callable[..., Path]) -> Path:
    """Eight photographs, every third one turned on its side, one without a mask."""
    folder = make_voc(8)
    for place, path in enumerate(sorted((folder / "JPEGImages").iterdir())):
        if place % 3 == 0:
            for image in (path, folder / "SegmentationClass" / f"{path.stem}.png"):
                with Image.open(image) as picture:
                    turned = picture.transpose(Image.Transpose.ROTATE_90)
                turned.save(image)
    return folder


def loaded(root: Path, stage: str, **arguments: object) -> list[dict]:
    data = WSSSDataModule("voc2012", root, eval_split="train", num_workers=0, **arguments)
    data.setup(stage)
    return list(data.predict_dataloader() if stage == "predict" else data.val_dataloader())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_hold_what_single_images_hold(root: Path, num_workers: int):
    single = {batch["image_id"][0]: batch for batch in loaded(root, "validate")}
    data = WSSSDataModule("voc2012", root, eval_split="train", num_workers=num_workers, eval_batch_size=3)
    data.setup("validate")
    batches = list(data.val_dataloader())
    assert max(len(batch["image_id"]) for batch in batches) == 3
    assert sorted(name for batch in batches for name in batch["image_id"]) == sorted(single)
    for batch in batches:
        for place, name in enumerate(batch["image_id"]):
            for field in ("image", "tags", "mask", "original_size"):
                assert torch.equal(batch[field][place], single[name][field][0])


def test_an_image_without_a_mask_takes_no_mask_away(root: Path):
    lost = sorted((root / "SegmentationClass").iterdir())[1]
    lost.unlink()
    batches = loaded(root, "predict", eval_batch_size=8)
    masked = {name: "mask" in batch for batch in batches for name in batch["image_id"]}
    assert [name for name, has in masked.items() if not has] == [lost.stem]
    assert np.prod([len(batch["image_id"]) for batch in batches]) > 1


def test_a_batch_of_none_is_refused(root: Path):
    with pytest.raises(ArgumentError, match=r"^eval_batch_size=0: "):
        WSSSDataModule("voc2012", root, eval_batch_size=0)
