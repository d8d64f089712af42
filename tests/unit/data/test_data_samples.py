"""Samples and batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.data.sample import Sample, collate
from rca_lightning.errors import DataError


def sample(name: str, *, mask: bool = False, saliency: bool = False) -> Sample:
    one = Sample(
        image=torch.rand(3, 4, 5),
        tags=torch.tensor([1.0, 0.0]),
        image_id=name,
        original_size=torch.tensor([8, 10]),
    )
    if mask:
        one["mask"] = torch.randint(0, 3, (4, 5))
    if saliency:
        one["saliency"] = torch.rand(4, 5)
    return one


def test_collate_stacks_in_order() -> None:
    samples = [sample(name, mask=True, saliency=True) for name in "abc"]
    batch = collate(samples)
    assert batch["image_id"] == ["a", "b", "c"]
    for key in ("image", "tags", "original_size", "mask", "saliency"):
        assert batch[key].shape == (3, *samples[0][key].shape)
        assert batch[key].dtype == samples[0][key].dtype
        assert torch.equal(batch[key][1], samples[1][key])


def test_collate_gives_masks_only_if_all_have_one() -> None:
    batch = collate([sample("a", mask=True, saliency=True), sample("b", saliency=True)])
    assert "mask" not in batch
    assert batch["saliency"].shape == (2, 4, 5)


def test_training_and_evaluation_batches(make_voc: Callable[..., Path]) -> None:
    data = WSSSDataModule("voc2012", make_voc(5), num_workers=0, batch_size=2, crop_size=32)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert len(batches) == 2  # the incomplete third is dropped
    for batch in batches:
        assert {key: (tuple(value.shape), value.dtype) for key, value in batch.items() if key != "image_id"} == {
            "image": ((2, 3, 32, 32), torch.float32),
            "tags": ((2, 20), torch.float32),
            "original_size": ((2, 2), torch.int64),
            "mask": ((2, 32, 32), torch.int64),
            "window": ((2, 2, 3), torch.float32),
        }
        assert batch["original_size"].tolist() == [[40, 60], [40, 60]]
        for name, tags in zip(batch["image_id"], batch["tags"], strict=True):
            assert tags.nonzero().flatten().tolist() == [int(name[-3:])]
    evaluation = list(data.val_dataloader())
    assert [batch["image_id"] for batch in evaluation] == [[f"img_{number:03d}"] for number in range(5)]
    assert all(batch["image"].shape == (1, 3, 40, 60) for batch in evaluation)
    assert all("window" not in batch for batch in evaluation)
    assert evaluation[3]["mask"].unique().tolist() == [0, 4]


def test_a_single_incomplete_batch_is_kept(make_voc: Callable[..., Path]) -> None:
    data = WSSSDataModule("voc2012", make_voc(3), num_workers=0, batch_size=16, crop_size=32)
    data.setup("fit")
    assert [len(batch["image_id"]) for batch in data.train_dataloader()] == [3]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_damaged_image_surfaces_as_one_data_error(make_voc: Callable[..., Path], num_workers: int) -> None:
    root = make_voc(2)
    file = root / "JPEGImages" / "img_001.jpg"
    file.write_bytes(file.read_bytes()[:600])
    data = WSSSDataModule("voc2012", root, num_workers=num_workers, crop_size=32)
    data.setup("fit")
    with pytest.raises(DataError, match=r"img_001\.jpg: cut off or damaged"):
        list(data.train_dataloader())
