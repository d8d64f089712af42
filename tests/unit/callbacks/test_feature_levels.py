"""Training on crops of a cached feature pyramid, from the photographs to a trained head."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tests.frozen_fits import TRAIN, VAL, data, generated
from tests.pyramid_fit import CHANNELS, PyramidModule, fit_pyramid
from tests.quiet_trainer import quiet_trainer

from rca_lightning.callbacks.feature_cache import FeatureCacheCallback
from rca_lightning.data.crops import CachedCrops


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generated(tmp_path_factory.mktemp("generated"))


def crops(root: Path, **options):
    return data(root, crop_size=32, **options)


@pytest.fixture(autouse=True)
def _seed() -> None:
    L.seed_everything(1, verbose=False)


def test_a_head_is_trained_on_crops_and_features_are_computed_once(root, tmp_path):
    module, images, trainer = fit_pyramid(crops(root), tmp_path, epochs=8, scales=(1.0, 0.5))
    assert images == TRAIN + 4 * VAL  # two scales, as they are and mirrored
    assert module.starts == 1
    assert bool(module.mean.any())
    assert not any(weight.requires_grad for weight in module.network.parameters())
    assert sum(module.losses[-3:]) < 0.8 * sum(module.losses[:3])
    assert len(module.losses) == 8 * TRAIN // 4
    assert module.scored[0] == [
        (2, 4, 16, 16), (2, 6, 8, 8), (2, 8, 4, 4), (2, 4, 8, 8), (2, 6, 4, 4), (2, 8, 2, 2),
    ]  # fmt: skip
    assert len(module.scored) == 8 * VAL
    served = trainer.train_dataloader.dataset
    assert isinstance(served, CachedCrops)
    assert served.crop_cells == 2
    assert len(list((tmp_path / "features").rglob("*.npy"))) == len(CHANNELS) * (TRAIN + 4 * VAL)
    L.seed_everything(1, verbose=False)
    again, images, _ = fit_pyramid(crops(root), tmp_path, epochs=8, scales=(1.0, 0.5))
    assert images == 0
    torch.testing.assert_close(again.state_dict(), module.state_dict(), atol=0, rtol=0)
    assert again.seen == module.seen


def test_resumed_within_an_epoch_is_the_whole_run(root, tmp_path):
    kept = ModelCheckpoint(dirpath=tmp_path / "kept", every_n_train_steps=4, save_top_k=-1, filename="{step}")
    options = {"limit_val_batches": 0, "features": tmp_path / "features"}
    whole, _, _ = fit_pyramid(crops(root), tmp_path, epochs=3, callbacks=(kept,), enable_checkpointing=True, **options)
    L.seed_everything(1, verbose=False)
    path = tmp_path / "kept" / "step=4.ckpt"
    resumed, images, _ = fit_pyramid(crops(root), tmp_path, epochs=3, ckpt_path=path, **options)
    assert images == 0
    assert resumed.starts == 0
    assert resumed.seen == whole.seen[4:]
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), atol=0, rtol=0)


def test_validation_reads_all_levels_of_what_the_cache_holds(root, tmp_path):
    module, _, _ = fit_pyramid(crops(root), tmp_path, epochs=1)
    module.scored.clear()
    trainer = quiet_trainer(tmp_path, callbacks=[FeatureCacheCallback(str(tmp_path / "features"))])
    trainer.validate(module, datamodule=crops(root), verbose=False)  # compares them with those of the photographs
    assert module.scored == [[(2, 4, 16, 16), (2, 6, 8, 8), (2, 8, 4, 4)]] * VAL


def test_loading_processes_give_the_same_head(root, tmp_path):
    one, _, _ = fit_pyramid(crops(root), tmp_path / "one", limit_val_batches=0)
    L.seed_everything(1, verbose=False)
    other, _, _ = fit_pyramid(crops(root, num_workers=2), tmp_path / "other", limit_val_batches=0)
    torch.testing.assert_close(other.state_dict(), one.state_dict(), atol=0, rtol=0)


def test_room_for_all_levels_is_claimed(root, tmp_path, monkeypatch):
    claimed = []
    begin = FeatureCacheCallback("unused").cache.__class__.begin
    monkeypatch.setattr(
        "rca_lightning.data.features.FeatureCache.begin",
        lambda cache, needed: (claimed.append(needed), begin(cache, needed))[1],
    )
    fit_pyramid(crops(root), tmp_path, epochs=1, scales=(1.0, 0.5))
    paths = list((tmp_path / "features").rglob("*.npy"))
    numbers = sum(path.stat().st_size - 128 for path in paths)  # but for the head of each file
    assert claimed[0] == numbers


def test_key_knows_the_levels():
    keys = []
    for channels in ((4, 6, 8), (4, 6, 7)):
        torch.manual_seed(0)
        module = PyramidModule()
        module.network = type(module.network)(module.network.backbone, channels)
        keys.append(FeatureCacheCallback("unused")._key(module, torch.float32))
    assert keys[0] != keys[1]
    assert keys[0]["kind"] == "pyramid"
    assert keys[0]["channels"] == [4, 6, 8]
