"""AffinityModule: what it learns from crops of features, what it scores, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from tests.frozen_fits import TRAIN, VAL, data, generated
from tests.quiet_trainer import quiet_trainer

from rca_lightning import AffinityModule, FeatureCacheCallback, PseudoLabelWriter, RCAModule, WSSSDataModule
from rca_lightning.errors import ArgumentError, DataError, NonFiniteError, WeightsError
from rca_lightning.modules.affinity_module import check_affinity, load_affinity
from rca_lightning.pseudo_labels.affinity import affinity_loss


def build(**options: Any) -> AffinityModule:
    torch.manual_seed(0)
    common: dict[str, Any] = {"backbone": "resnet14", "weights": "none", "radius": 3, "lr": 0.1}
    return AffinityModule(6, **(common | options))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generated(tmp_path_factory.mktemp("images"))


def fit(
    root: Path, folder: Path, module: AffinityModule, *, epochs: int = 2, masks: Path | None = None,
    callbacks: tuple[L.Callback, ...] = (), dataset: WSSSDataModule | None = None, **trainer: Any,
) -> L.Trainer:  # fmt: skip
    """Fits on the real masks, or those of a folder."""
    options = {"crop_size": 48} if masks is None else {"crop_size": 48, "train_mask_dir": str(masks)}
    parts = [FeatureCacheCallback(str(folder / "features")), *callbacks]
    made = quiet_trainer(folder, max_epochs=epochs, num_sanity_val_steps=0, callbacks=parts, **trainer)
    made.fit(module, datamodule=dataset or data(root, **options))
    return made


class Losses(L.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(float(outputs["loss"]))


def test_training_lowers_the_loss_of_boundaries(root: Path, tmp_path: Path):
    module, losses = build(), Losses()
    before = {name: value.clone() for name, value in module.network.backbone.state_dict().items()}
    trainer = fit(root, tmp_path, module, epochs=12, callbacks=(losses,))
    steps = len(losses.values) // 4
    assert sum(losses.values[-steps:]) < 0.9 * sum(losses.values[:steps])
    assert float(trainer.callback_metrics["val/loss"]) == module.last_loss > 0
    for name, value in module.network.backbone.state_dict().items():
        assert torch.equal(value, before[name])


def test_levels_are_standardised_by_all_photographs(root: Path, tmp_path: Path):
    module = build()
    trainer = fit(root, tmp_path, module, epochs=1)
    images = trainer.datamodule.cached_features()
    for index, part in enumerate(module.network.standardizations):
        cells = torch.cat(
            [images[row]["features"][0][index][0].flatten(1).double() for row in range(len(images))], dim=1
        )
        torch.testing.assert_close(part.mean.double(), cells.mean(1), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(part.variance.double(), cells.var(1, correction=0), atol=1e-5, rtol=1e-4)


def test_validation_is_the_mean_loss_of_whole_photographs(root: Path, tmp_path: Path):
    module = build()
    trainer = fit(root, tmp_path, module, epochs=1)
    in_fit = float(trainer.callback_metrics["val/loss"])
    dataset = data(root)
    dataset.setup("validate")
    losses = []
    for batch in dataset.val_dataloader():
        boundary = module.eval()(batch["image"])
        mask = batch["mask"][0, 2::4, 2::4]  # under the centres of cells of 4 pixels
        assert boundary.shape[1:] == mask.shape
        losses.append(float(affinity_loss(boundary.detach(), mask[None], radius=3)))
    assert len(losses) == VAL
    assert in_fit == pytest.approx(np.mean(losses), rel=0.02)  # features there are kept in half precision
    (scored,) = quiet_trainer(tmp_path).validate(module, datamodule=data(root), verbose=False)
    assert scored["val/loss"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_prediction_reads_the_cache_and_computes_the_same_without(root: Path, tmp_path: Path):
    module = build(flip=True, scales=(1.0, 1.5))
    fit(root, tmp_path, module, epochs=1)
    seen: list[int] = []
    module.network.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    cached = quiet_trainer(tmp_path, callbacks=[FeatureCacheCallback(str(tmp_path / "features"))])
    read = cached.predict(module, datamodule=data(root))
    assert seen == []
    computed = quiet_trainer(tmp_path).predict(module, datamodule=data(root))
    assert len(seen) > 0
    assert len(read) == len(computed) == VAL
    for (one,), (other,) in zip(read, computed, strict=True):
        assert one["image_id"] == other["image_id"]
        assert one["boundary"].shape == (16, 16)
        torch.testing.assert_close(one["boundary"], other["boundary"], atol=0.02, rtol=0)


def test_boundary_maps_are_averaged_over_mirror_images():
    module = build(flip=True).eval()
    images = torch.rand(2, 3, 64, 48)
    with torch.no_grad():
        expected = (module(images) + module(images.flip(3)).flip(2)) / 2
    torch.testing.assert_close(module.boundary_maps(images), expected)


def test_undecided_pixels_do_not_count(root: Path, tmp_path: Path):
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in (root / "SegmentationClass").glob("train_*.png"):
        Image.fromarray(np.full((64, 64), 255, dtype=np.uint8)).save(masks / path.name)
    losses = Losses()
    fit(root, tmp_path, build(), epochs=1, masks=masks, callbacks=(losses,), limit_val_batches=0)
    assert losses.values == [0.0] * (TRAIN // 4)


def test_training_without_cache_or_labels_is_refused(root: Path, tmp_path: Path):
    trainer = quiet_trainer(tmp_path, max_epochs=1)
    with pytest.raises(ArgumentError, match=r"callbacks=None: add FeatureCacheCallback\(\)"):
        trainer.fit(build(), datamodule=data(root))
    without = data(root, crop_size=48, train_masks=False)
    with pytest.raises(DataError, match=rf"^train_masks: {TRAIN} of {TRAIN} training images have no labels"):
        fit(root, tmp_path, build(), dataset=without)


class Spoil(L.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1:
            batch["features"][0][0] = float("nan")


def test_features_that_are_not_finite_are_named_or_left_out(root: Path, tmp_path: Path):
    with pytest.raises(NonFiniteError, match=r"^features of level 0 of '.*not finite, then boundary"):
        fit(root, tmp_path, build(), callbacks=(Spoil(),))
    module = build(on_non_finite="skip")
    fit(root, tmp_path, module, callbacks=(Spoil(),), limit_val_batches=0)
    assert module.skipped_batches == 2
    assert all(bool(torch.isfinite(weight).all()) for weight in module.parameters())


def test_checkpoints_serve_refinement_and_as_weights(root: Path, tmp_path: Path):
    module = build()
    trainer = fit(root, tmp_path, module, epochs=1, limit_val_batches=0)
    path = tmp_path / "affinity.ckpt"
    trainer.save_checkpoint(path)
    loaded = load_affinity(path)
    assert loaded.digest() == module.digest() != build().digest()
    assert not loaded.training
    first = RCAModule(6, backbone="resnet14", weights=str(path), backbone_mode="trained")
    for name, value in module.network.backbone.state_dict().items():
        assert torch.equal(first.network.backbone.state_dict()[name], value)
    trainer.strategy.connect(first)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    with pytest.raises(WeightsError, match=r"^affinity_ckpt=.*of the task 'localize'; give one of rca affinity fit"):
        load_affinity(tmp_path / "first.ckpt")


def test_refinement_and_checkpoint_belong_together():
    check_affinity(["affinity", "pamr"], "a.ckpt")
    check_affinity(["pamr"], None)
    with pytest.raises(ArgumentError, match=r"^affinity_ckpt=None: refine='affinity' needs a checkpoint"):
        check_affinity(["affinity"], None)
    with pytest.raises(ArgumentError, match=r"^affinity_ckpt='a.ckpt': nothing reads it"):
        check_affinity(["pamr"], "a.ckpt")
    with pytest.raises(ArgumentError, match=r"^affinity_ckpt=None: refine='affinity' needs a checkpoint"):
        PseudoLabelWriter("labels", refine=["affinity"])
    with pytest.raises(ArgumentError, match=r"^refine=\['pamr', 'affinity'\]: 'affinity': .*only come first"):
        PseudoLabelWriter("labels", refine=["pamr", "affinity"], affinity_ckpt="a.ckpt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": 0.5}, "^radius=0.5: give 1 or more"),
        ({"num_offsets": 0}, "^num_offsets=0: give 1 or more"),
        ({"optimizer": "adam"}, "^optimizer='adam': give one of sgd, adamw"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        build(**options)
