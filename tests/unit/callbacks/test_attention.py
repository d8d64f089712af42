"""Taking in the maps of training steps."""

from __future__ import annotations

from types import SimpleNamespace

import lightning as L
import pytest
import torch

from rca_lightning import AttentionAccumulation, RCAModule
from rca_lightning.errors import ArgumentError, DataError


@pytest.fixture(scope="module")
def module() -> RCAModule:
    return RCAModule(3, backbone="resnet14", contrast=False, aggregation=False, final_map="coarse")


def batch(*names: str, tags: list[list[float]], window: list[list[float]] | None = None) -> dict:
    """Crops of 8 pixels of photographs of 8 x 16; without a window they are the left half."""
    count = len(names)
    place = torch.tensor(window or [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    return {
        "image": torch.zeros(count, 3, 8, 8),
        "image_id": list(names),
        "tags": torch.tensor(tags),
        "original_size": torch.tensor([[8, 16]] * count),
        "window": place.expand(count, 2, 3),
    }


def at(epoch: int = 1, *, last: bool = False) -> SimpleNamespace:
    return SimpleNamespace(current_epoch=epoch, is_last_batch=last)


def outputs(maps: torch.Tensor, probabilities: list[list[float]]) -> dict:
    return {"maps": maps, "probabilities": torch.tensor(probabilities)}


def started(module: RCAModule, **arguments: float) -> AttentionAccumulation:
    callback = AttentionAccumulation(cells=4, **arguments)
    callback.setup(None, module, "fit")
    return callback


def test_maps_of_tags_enter_where_the_crop_was(module: RCAModule) -> None:
    callback = started(module)
    maps = torch.zeros(2, 3, 2, 2)
    maps[0, 1, :, 0] = 7.0  # the left half of the crop of "a"
    maps[1, 2] = 3.0
    shown = batch("a", "b", tags=[[0, 1, 0], [0, 0, 1]])
    callback.on_train_batch_end(at(), module, outputs(maps, [[0.9, 0.5, 0.9], [0.0, 0.0, 0.25]]), shown, 0)
    assert len(callback.store) == 2
    assert callback.store.grid("a", 0) is None
    # Cells of 4 pixels, read at their centres: 2 of the 4 columns lie in the crop, at the centres of its cells.
    assert callback.store.grid("a", 1).tolist() == [[0.5, 0, 0, 0], [0.5, 0, 0, 0]]
    assert callback.store.grid("b", 2).tolist() == [[0.25, 0.25, 0, 0], [0.25, 0.25, 0, 0]]
    # The right half, mirrored: crop column 0 is at the right edge of the photograph.
    right = batch("a", tags=[[0, 1, 0]], window=[[-1.0, 0.0, 16.0], [0.0, 1.0, 0.0]])
    callback.on_train_batch_end(at(), module, outputs(maps[:1], [[0.0, 1.0, 0.0]]), right, 1)
    assert callback.store.grid("a", 1).tolist() == [[0.5, 0, 0, 1], [0.5, 0, 0, 1]]
    seeds = callback.seeds("a", [0, 1], (8, 16))
    assert seeds.maps.shape == (2, 8, 16)
    assert seeds.maps.amax(dim=(1, 2)).tolist() == [0.0, 1.0]
    assert seeds.classes.tolist() == [0, 1]
    assert seeds.probabilities.tolist() == [0.0, 1.0, 0.0]
    assert callback.seeds("never", torch.tensor([1]), (8, 16)) is None


def test_warm_up_and_confidence(module: RCAModule) -> None:
    callback = started(module, warmup_epochs=2, confidence=0.5)
    shown = batch("a", "b", tags=[[1, 0, 0], [1, 0, 0]])
    taken = outputs(torch.ones(2, 3, 2, 2), [[0.5, 0, 0], [0.45, 1, 1]])
    callback.on_train_batch_end(at(1), module, taken, shown, 0)
    assert len(callback.store) == 0
    callback.on_train_batch_end(at(2), module, taken, shown, 0)
    assert callback.store.grid("a", 0).max() == 0.5
    assert callback.store.grid("b", 0).max() == 0.0


def test_image_without_tags(module: RCAModule) -> None:
    callback = started(module)
    shown = batch("a", tags=[[0, 0, 0]])
    callback.on_train_batch_end(at(), module, outputs(torch.ones(1, 3, 2, 2), [[1.0, 1.0, 1.0]]), shown, 0)
    assert len(callback.store) == 0


def test_batch_of_ones_own_without_a_window(module: RCAModule) -> None:
    shown = batch("a", tags=[[1, 0, 0]])
    del shown["window"]
    with pytest.raises(DataError, match="no 'window'"):
        started(module).on_train_batch_end(at(), module, outputs(torch.ones(1, 3, 2, 2), [[1.0, 1.0, 1.0]]), shown, 0)


def test_a_second_fit_starts_empty_and_prediction_does_not(module: RCAModule) -> None:
    callback = started(module)
    shown = batch("a", tags=[[1, 0, 0]])
    callback.on_train_batch_end(at(), module, outputs(torch.ones(1, 3, 2, 2), [[1.0, 1.0, 1.0]]), shown, 0)
    callback.setup(None, module, "predict")
    assert len(callback.store) == 1
    callback.setup(None, module, "fit")
    assert len(callback.store) == 0


def test_another_module_is_refused() -> None:
    with pytest.raises(ArgumentError, match="model='LightningModule': AttentionAccumulation takes the maps of"):
        AttentionAccumulation().setup(None, L.LightningModule(), "fit")


def test_readers_are_told_what_is_missing(module: RCAModule) -> None:
    def trainer(*callbacks: L.Callback) -> SimpleNamespace:
        return SimpleNamespace(callbacks=list(callbacks), ckpt_path="last.ckpt")

    callback = started(module)
    with pytest.raises(ArgumentError, match=r"trainer\.callbacks=None: add AttentionAccumulation"):
        AttentionAccumulation.of(trainer())
    with pytest.raises(ArgumentError, match=r"ckpt_path='last\.ckpt': no accumulated maps in it"):
        AttentionAccumulation.of(trainer(callback))
    with pytest.raises(ArgumentError, match="ckpt_path"):
        AttentionAccumulation.of(trainer(AttentionAccumulation()))
    shown = batch("a", tags=[[1, 0, 0]])
    callback.on_train_batch_end(at(), module, outputs(torch.ones(1, 3, 2, 2), [[1.0, 1.0, 1.0]]), shown, 0)
    assert AttentionAccumulation.of(trainer(callback)) is callback


@pytest.mark.parametrize(("name", "value"), [("cells", 0), ("warmup_epochs", -1), ("confidence", 1.5), ("max_mib", -1)])
def test_bad_arguments_are_named(name: str, value: float) -> None:
    with pytest.raises(ArgumentError, match=name):
        AttentionAccumulation(**{name: value})
