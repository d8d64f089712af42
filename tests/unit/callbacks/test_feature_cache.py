"""Training behind a frozen backbone: features are computed once, and what is made of them is right."""

from __future__ import annotations

import logging
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tests.quiet_trainer import quiet_trainer

from rca_lightning.backbones.resnet import ResNet
from rca_lightning.callbacks.feature_cache import FeatureCacheCallback
from rca_lightning.callbacks.region_memory import RegionMemoryCallback
from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.data.synthetic.dataset import generate
from rca_lightning.errors import ArgumentError
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.rca.cam import fit_head
from rca_lightning.rca.inference import infer_class_maps, multi_scale_flip

TRAIN, VAL, SIZE = 12, 5, 64


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("generated"), seed=1, train_images=TRAIN, val_images=VAL, image_size=SIZE)


def data(root: Path, **options) -> WSSSDataModule:
    options = {"batch_size": 4, "num_workers": 0, **options}
    return WSSSDataModule(
        "synthetic", root.parent, synthetic_seed=1, synthetic_train_images=TRAIN, synthetic_val_images=VAL,
        synthetic_image_size=SIZE, **options,
    )  # fmt: skip


def frozen(**options) -> RCAModule:
    torch.manual_seed(0)
    options = {"num_prototypes": 2, "background_prototypes": 3, "output_stride": 8, "embedding_dim": 16, **options}
    return RCAModule(num_classes=6, backbone="resnet14", weights="none", backbone_mode="frozen", **options)


class Counted(L.Callback):
    """How many images the backbone has seen."""

    def __init__(self) -> None:
        self.images = 0

    def on_fit_start(self, trainer, pl_module):
        pl_module.network.backbone.register_forward_pre_hook(self._count)

    def _count(self, _, inputs):
        self.images += len(inputs[0])


def fit(root: Path, folder: Path, module: RCAModule, *, epochs: int = 2, ckpt_path=None, callbacks=(), **trainer):
    counted = Counted()
    parts = [counted, FeatureCacheCallback(str(folder / "features")), RegionMemoryCallback(backend="torch"), *callbacks]
    made = quiet_trainer(folder, max_epochs=epochs, callbacks=parts, **trainer)
    made.fit(module, datamodule=data(root), ckpt_path=ckpt_path)
    return counted.images, made


def test_features_are_computed_once_and_by_the_next_run_not_at_all(root, tmp_path):
    module = frozen()
    images, _ = fit(root, tmp_path, module, epochs=3)
    assert images == TRAIN + 2 * (TRAIN + VAL)  # for the projection, and each as it is and mirrored
    assert bool(module.network.aggregation.valid.any())
    state = {name: value.clone() for name, value in module.state_dict().items()}
    again = frozen()
    images, _ = fit(root, tmp_path, again, epochs=3)
    assert images == TRAIN
    torch.testing.assert_close(again.state_dict(), state)
    images, _ = fit(root, tmp_path, frozen(num_prototypes=3), epochs=1)
    assert images == TRAIN


def test_nothing_of_the_network_is_trained_by_gradients(root, tmp_path):
    module = frozen()
    before = {name: value.clone() for name, value in module.network.backbone.state_dict().items()}
    fit(root, tmp_path, module)
    torch.testing.assert_close(module.network.backbone.state_dict(), before)
    assert not any(weight.requires_grad for weight in module.parameters())


def test_head_is_fitted_to_the_mean_features_of_the_photographs(root, tmp_path):
    module = frozen()
    fit(root, tmp_path, module, epochs=1)
    module.eval()
    whole = data(root)
    whole.setup("fit")
    means, tags = [], []
    for sample in (whole._train.whole()[row] for row in range(TRAIN)):
        with torch.no_grad():
            views = [module.network.stages(view)[0] for view, _ in multi_scale_flip(sample["image"][None])]
        means.append(torch.cat(views).half().float().mean((0, 2, 3)))
        tags.append(sample["tags"])
    weight, bias = fit_head(torch.stack(means), torch.stack(tags), penalty=0.1)
    torch.testing.assert_close(module.network.coarse_head.conv.weight[:, :, 0, 0], weight, atol=2e-3, rtol=2e-2)
    torch.testing.assert_close(module.network.coarse_head.conv.bias, bias, atol=2e-3, rtol=2e-2)


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0)])
def test_cached_features_give_the_maps_of_the_photographs(root, tmp_path, scales):
    module = frozen(scales=scales)
    fit(root, tmp_path, module)
    module.eval()
    photographs = data(root)
    photographs.setup("validate")
    images = photographs._eval
    images.features = FeatureCacheCallback(str(tmp_path / "features")).cache
    images.features.use(FeatureCacheCallback._key(FeatureCacheCallback(), module), scales=scales)
    batch = next(iter(photographs.val_dataloader()))
    assert len(batch["features"][0]) == len(scales)
    for tags in (batch["tags"], None):
        (cached,) = module._batch_seeds(batch, tags)
        (computed,) = infer_class_maps(
            module.network, batch["image"], tags, scales=scales, propagation_steps=1, propagation_power=2
        )
        assert cached.classes.tolist() == computed.classes.tolist()
        torch.testing.assert_close(cached.maps, computed.maps, atol=2e-2, rtol=0)
        torch.testing.assert_close(cached.probabilities, computed.probabilities, atol=1e-2, rtol=0)


def test_each_round_holds_the_regions_of_that_round(root, tmp_path):
    memories = []

    class Watch(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            memories.append(pl_module.memory.counts.clone())

    fit(root, tmp_path, frozen(), epochs=3, callbacks=[Watch()])
    most = 2 * TRAIN  # a region of each photograph and its mirror image
    assert all(int(counts[:-1].max()) <= most for counts in memories)
    assert len(memories) == 3


def test_resumed_between_rounds_is_the_whole_run(root, tmp_path):
    whole = frozen()
    fit(root, tmp_path, whole, epochs=3, limit_val_batches=0)
    kept = ModelCheckpoint(dirpath=tmp_path / "kept", save_last=True, save_on_train_epoch_end=True)
    fit(root, tmp_path, frozen(), epochs=2, callbacks=[kept], limit_val_batches=0, enable_checkpointing=True)
    resumed = frozen()
    images, _ = fit(root, tmp_path, resumed, epochs=3, ckpt_path=tmp_path / "kept" / "last.ckpt", limit_val_batches=0)
    assert images == 0
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict())
    loaded = RCAModule.load_from_checkpoint(tmp_path / "kept" / "last.ckpt")
    assert loaded.is_frozen
    assert loaded.network.pca_learned


def test_progress_is_told(root, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("rca_lightning.callbacks.feature_cache._EVERY", 0.0)
    with caplog.at_level(logging.INFO):
        fit(root, tmp_path, frozen(), epochs=1, limit_val_batches=0)
    assert f"features: photograph {TRAIN} of {TRAIN}" in caplog.text
    assert f"the first head is fitted to {TRAIN} photographs" in caplog.text


def test_what_cannot_be_is_one_sentence(root, tmp_path):
    with pytest.raises(ArgumentError, match=r"callbacks=None: add FeatureCacheCallback\(\) to the Trainer"):
        quiet_trainer(tmp_path, max_epochs=1, callbacks=[RegionMemoryCallback()]).fit(frozen(), datamodule=data(root))
    for name, value in (("contrast", True), ("beta", 0.5)):
        with pytest.raises(ArgumentError, match=f"{name}={value}: behind a frozen backbone it has nothing to train"):
            frozen(**{name: value})
    with pytest.raises(ArgumentError, match=r"embedding_dim=1000: give 1 to "):
        frozen(embedding_dim=1000)


def test_key_knows_the_padding(root):
    keys = []
    for mode in ("zeros", "replicate"):
        module = frozen(padding_mode=mode)
        keys.append(FeatureCacheCallback(str(root))._key(module))
    assert keys[0]["weights"] != keys[1]["weights"]


def test_frozen_is_the_default_where_weights_are_given(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(RCAModule(num_classes=1, backbone="resnet14").network.backbone.state_dict(), path)
    assert RCAModule(num_classes=1, backbone="resnet14", weights=str(path)).is_frozen
    assert not RCAModule(num_classes=1, backbone="resnet14", weights=str(path), backbone_mode="trained").is_frozen
    assert not RCAModule(num_classes=1, backbone="resnet14").is_frozen
    assert isinstance(frozen().network.backbone, ResNet)
