"""FrozenSegmentationModule: what it solves for from cached features and masks, keeps in checkpoints, and refuses."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateFinder, ModelCheckpoint
from PIL import Image
from tests.frozen_fits import SIZE, TRAIN, VAL, Counted, data, frozen, generated
from tests.frozen_fits import fit as fit_first
from tests.quiet_trainer import quiet_trainer

from rca_lightning import AffinityModule, FeatureCacheCallback, FrozenSegmentationModule, RCAModule, WSSSDataModule
from rca_lightning.callbacks.feature_cache import compute_dtype
from rca_lightning.callbacks.mask_writer import MaskWriter
from rca_lightning.errors import ArgumentError, DataError, RCAError, WeightsError
from rca_lightning.modules import frozen_segmentation_module
from rca_lightning.modules.frozen_segmentation_module import label_shares
from rca_lightning.segmentation.pixel_classifier import fit_pixel_classifier


@dataclass(frozen=True)
class Road:
    """Generated images, and checkpoints of what is fitted to them before."""

    root: Path
    first: Path
    affinity: Path
    features: Path
    boundaries: AffinityModule


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Road:
    folder = tmp_path_factory.mktemp("road")
    root = generated(folder / "images")
    module = frozen(output_stride=16)
    _, trainer = fit_first(root, folder / "first", module, limit_val_batches=0)
    trainer.save_checkpoint(first := folder / "first.ckpt")
    torch.manual_seed(0)
    boundaries = AffinityModule(6, backbone="resnet14", weights=str(first), radius=3, lr=0.1)
    cache = FeatureCacheCallback(str(folder / "features"))
    trainer = quiet_trainer(folder, max_epochs=1, num_sanity_val_steps=0, limit_val_batches=0, callbacks=[cache])
    trainer.fit(boundaries, datamodule=data(root, crop_size=48))
    trainer.save_checkpoint(affinity := folder / "affinity.ckpt")
    return Road(root, first, affinity, folder / "features", boundaries)


def build(road: Road, *, walks: bool = True, **options: Any) -> FrozenSegmentationModule:
    options = {"first_stage": str(road.first), "affinity": str(road.affinity) if walks else None} | options
    return FrozenSegmentationModule(6, **options)


def fit(
    road: Road, folder: Path, module: FrozenSegmentationModule, *, callbacks: tuple[L.Callback, ...] = (),
    dataset: WSSSDataModule | None = None, epochs: int = 1, ckpt_path: Path | None = None, features: Path | None = None,
    splits: tuple[str, ...] = (), **trainer: Any,
) -> L.Trainer:  # fmt: skip
    parts = [*callbacks, FeatureCacheCallback(str(features or road.features), splits=splits)]
    made = quiet_trainer(
        folder, **{"max_epochs": epochs, "num_sanity_val_steps": 0, "limit_val_batches": 0} | trainer, callbacks=parts
    )
    made.fit(module, datamodule=dataset or data(road.root), ckpt_path=ckpt_path)
    return made


def weights(module: FrozenSegmentationModule) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.network.classifier.state_dict().items()}


@pytest.fixture(scope="module")
def fitted(road: Road, tmp_path_factory: pytest.TempPathFactory) -> tuple[FrozenSegmentationModule, Path]:
    folder, module = tmp_path_factory.mktemp("fitted"), build(road)
    fit(road, folder, module).save_checkpoint(folder / "last.ckpt")
    return module.eval(), folder / "last.ckpt"


def masks_of(road: Road, folder: Path, change: Any) -> WSSSDataModule:
    """Data whose masks of training are what `change(image_id, mask)` makes of them."""
    folder.mkdir()
    for path in (road.root / "SegmentationClass").glob("train_*.png"):
        Image.fromarray(change(path.stem, np.array(Image.open(path)))).save(folder / path.name)
    return data(road.root, train_mask_dir=str(folder))


def predictions(module: FrozenSegmentationModule, root: Path, folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    found = quiet_trainer(folder).predict(module, datamodule=data(root, **options))
    return {one["image_id"]: one["labels"] for batch in found for one in batch}


@pytest.mark.parametrize(("size", "grid"), [((7, 11), (2, 3)), ((13, 9), (5, 4)), ((1, 1), (2, 2)), ((6, 6), (3, 2))])
def test_shares_are_counted_pixel_by_pixel(size: tuple[int, int], grid: tuple[int, int]):
    mask = torch.from_numpy(np.random.default_rng(0).choice([0, 1, 2, 255], size)).long()
    found = label_shares(mask, torch.Size(grid), num_labels=3)
    for row in range(grid[0]):
        for column in range(grid[1]):
            # A pixel that two cells share counts in both.
            top, bottom = row * size[0] // grid[0], -(-(row + 1) * size[0] // grid[0])
            left, right = column * size[1] // grid[1], -(-(column + 1) * size[1] // grid[1])
            part = mask[top:bottom, left:right].flatten().tolist()
            expected = [sum(pixel == label for pixel in part) / len(part) for label in range(3)]
            assert found[row * grid[1] + column].tolist() == pytest.approx(expected)


def test_classifier_is_fitted_to_all_photographs(road: Road, fitted: tuple[FrozenSegmentationModule, Path]):
    module, _ = fitted
    images = data(road.root)
    images.setup("fit")
    cells, targets, tags = [], [], []
    for row in range(TRAIN):
        sample = images._train.whole()[row]
        with torch.no_grad():
            levels = module.network.pyramid(sample["image"][None])
        cells.append(module.network.embed(levels)[0].flatten(1).T)
        mask = images._train.mask(row)
        blocks = mask.reshape(SIZE // 16, 16, SIZE // 16, 16).swapaxes(1, 2).reshape(-1, 256)
        targets.append(torch.tensor([[np.mean(block == label) for label in range(7)] for block in blocks]))
        tags.append(sample["tags"].expand(len(blocks), -1))
    solved = fit_pixel_classifier(torch.cat(cells), torch.cat(targets), torch.cat(tags))
    logits = torch.cat(cells) @ solved[0].T + solved[1]
    classifier = module.network.classifier
    own = torch.cat(cells) @ classifier.weight.T + classifier.bias
    # Features are kept in half precision, and computed in bfloat16 where the processor can.
    assert (own - logits).abs().mean() < 0.1 * logits.std()
    assert classifier.fitted


def test_backbone_and_boundaries_stay_as_they_are(road: Road, fitted: tuple[FrozenSegmentationModule, Path]):
    module, _ = fitted
    first = RCAModule.load_from_checkpoint(road.first, map_location="cpu")
    torch.testing.assert_close(module.network.first_stage.state_dict(), first.network.state_dict(), rtol=0, atol=0)
    own, before = module.network.boundary_network.state_dict(), road.boundaries.network.state_dict()
    torch.testing.assert_close(own, before, rtol=0, atol=0)
    assert not any(weight.requires_grad for weight in module.parameters())
    assert not module.train().network.training


def test_features_of_the_affinity_module_serve(road: Road, tmp_path: Path):
    counted, again = Counted(), Counted()
    module = build(road)
    key = FeatureCacheCallback()._key(module, compute_dtype(module.device))
    assert key == FeatureCacheCallback()._key(road.boundaries, compute_dtype(module.device))
    fit(road, tmp_path, module, callbacks=(counted,))
    assert counted.images == 0
    options = {"features": tmp_path / "features", "limit_val_batches": 1.0}
    fit(road, tmp_path, build(road, scales=(0.5, 1.0)), callbacks=(again,), **options)
    assert again.images == TRAIN + 2 * VAL  # validation reads photographs


def test_without_affinity_the_components_are_learned_once(road: Road, tmp_path: Path):
    counted, again = Counted(), Counted()
    module = build(road, walks=False)
    fit(road, tmp_path, module, callbacks=(counted,), features=tmp_path / "features")
    assert counted.images == TRAIN
    other = build(road, walks=False)
    fit(road, tmp_path, other, callbacks=(again,), features=tmp_path / "features")
    assert again.images == 0
    torch.testing.assert_close(other.state_dict(), module.state_dict(), rtol=0, atol=0)
    assert module.hparams["affinity"] is None
    (scored,) = quiet_trainer(tmp_path).validate(module, datamodule=data(road.root), verbose=False)
    assert 0 < scored["val/miou"] < 1


def test_checkpoints_need_no_other_file(
    road: Road, fitted: tuple[FrozenSegmentationModule, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    module, path = fitted
    expected = predictions(module, road.root, tmp_path)
    assert len(expected) == VAL
    for part in (road.first, road.affinity):
        part.rename(part.with_suffix(".gone"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            loaded = FrozenSegmentationModule.load_from_checkpoint(path, map_location="cpu")
    finally:
        for part in (road.first, road.affinity):
            part.with_suffix(".gone").rename(part)
    torch.testing.assert_close(loaded.state_dict(), module.state_dict(), rtol=0, atol=0)
    assert loaded.hparams == module.hparams
    found = predictions(loaded, road.root, tmp_path)
    for image_id, labels in expected.items():
        assert torch.equal(found[image_id], labels)
    assert loaded.network.boundary_network.backbone is loaded.network.backbone


def test_masks_of_another_classifier_are_told_apart(fitted: tuple[FrozenSegmentationModule, Path], tmp_path: Path):
    writer, (module, path) = MaskWriter(str(tmp_path)), fitted
    settings = writer.describe(module)
    assert settings == json.loads(json.dumps(settings)) | {"scales": module.hparams["scales"]}
    other = FrozenSegmentationModule.load_from_checkpoint(path, map_location="cpu", propagation_power=3.0)
    assert writer.describe(other) == settings | {"propagation_power": 3.0}
    other.network.classifier.bias[2] += 1e-6
    assert writer.describe(other)["classifier"] != settings["classifier"]
    assert path.stat().st_size < 1.2 * sum(  # what several networks share is stored once
        {part.data_ptr(): part.numel() * part.element_size() for part in module.state_dict().values()}.values()
    )


def test_training_reads_the_first_view_of_those_that_are_cached(
    road: Road, fitted: tuple[FrozenSegmentationModule, Path], tmp_path: Path
):
    module, counted = build(road, scales=(1.0, 0.5), flip=True), Counted()
    fit(road, tmp_path, module, callbacks=(counted,), splits=("train",), features=tmp_path / "features")
    assert counted.images == 4 * TRAIN  # both scales, as they are and mirrored
    torch.testing.assert_close(weights(module), weights(fitted[0]), rtol=0, atol=0)


def test_a_second_epoch_solves_for_the_same(
    road: Road, fitted: tuple[FrozenSegmentationModule, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    once, _ = fitted
    module = build(road)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(road, tmp_path, module, epochs=2, dataset=data(road.root, batch_size=5), limit_val_batches=1.0)
    assert not [one for one in caught if "training_step" in str(one.message)]
    torch.testing.assert_close(weights(module), weights(once), rtol=0, atol=0)
    assert trainer.current_epoch == 2
    assert trainer.global_step == 2 * 3
    assert float(trainer.callback_metrics["train/cells"]) == TRAIN * 16
    assert 0 < float(trainer.callback_metrics["val/miou"]) < 1


@pytest.mark.parametrize("when", ["epoch=0-step=2.ckpt", "epoch=0-step=3.ckpt", "epoch=1-step=4.ckpt"])
def test_a_run_goes_on_from_any_step(
    road: Road, fitted: tuple[FrozenSegmentationModule, Path], tmp_path: Path, when: str
):
    kept = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    fit(road, tmp_path, build(road), callbacks=(kept,), enable_checkpointing=True, epochs=2)
    module = build(road)
    read: list[str] = []
    trainer = fit(road, tmp_path, module, callbacks=(Read(read),), epochs=2, ckpt_path=tmp_path / when)
    torch.testing.assert_close(weights(module), weights(fitted[0]), rtol=0, atol=0)
    assert trainer.current_epoch == 2
    assert len(read) == {"epoch=0-step=2.ckpt": 4 + TRAIN, "epoch=0-step=3.ckpt": TRAIN}.get(when, 8)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_other_precisions_solve_for_about_the_same(
    road: Road, fitted: tuple[FrozenSegmentationModule, Path], tmp_path: Path, precision: str
):
    once, module = fitted[0], build(road)
    options: dict[str, Any] = {"limit_val_batches": 1.0, "precision": precision}
    trainer = fit(road, tmp_path, module, features=tmp_path / "features", **options)
    assert 0 < float(trainer.callback_metrics["val/miou"]) < 1
    embeddings = torch.randn(1, once.network.classifier.weight.shape[1], 8, 8)
    own, expected = (one.network.classifier.float()(embeddings)[:, :6] for one in (module, once))
    assert (own - expected).abs().mean() < {"bf16-mixed": 0.01, "bf16-true": 0.1}[precision] * expected.std()


class Read(L.Callback):
    """Which photographs are trained on."""

    def __init__(self, read: list[str]) -> None:
        self.read = read

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.read.extend(batch["image_id"])


def test_cells_are_taken_evenly_from_many(road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(frozen_segmentation_module, "MAX_CELLS", 5 * TRAIN + 3)
    trainer = fit(road, tmp_path, build(road))
    assert float(trainer.callback_metrics["train/cells"]) == 5 * TRAIN


def test_pixels_without_a_label_do_not_count(road: Road, tmp_path: Path):
    def halved(image_id: str, mask: np.ndarray) -> np.ndarray:
        mask[: SIZE // 2] = 255
        return mask

    trainer = fit(road, tmp_path, build(road), dataset=masks_of(road, tmp_path / "masks", halved))
    assert float(trainer.callback_metrics["train/cells"]) == TRAIN * 8


def test_a_mask_that_cannot_be_read_is_left_out(road: Road, tmp_path: Path):
    broken = masks_of(road, tmp_path / "masks", lambda _, mask: mask)
    sorted((tmp_path / "masks").glob("*.png"))[3].write_bytes(b"no mask")
    with pytest.raises(DataError, match=r"\.png"):
        fit(road, tmp_path, build(road), dataset=broken)
    skipping = data(road.root, train_mask_dir=str(tmp_path / "masks"), on_bad_image="skip", max_bad_images=1)
    module = build(road)
    trainer = fit(road, tmp_path, module, dataset=skipping)
    assert float(trainer.callback_metrics["train/cells"]) == (TRAIN - 1) * 16


def test_masks_are_needed(road: Road, tmp_path: Path):
    with pytest.raises(DataError, match=r"^train_masks: the batch of train_\d+ holds no masks; give train_masks=True"):
        fit(road, tmp_path, build(road), dataset=data(road.root, train_masks=False))
    void = masks_of(road, tmp_path / "void", lambda _, mask: np.full_like(mask, 255))
    with pytest.raises(DataError, match=r"^train_masks: no training image has a pixel with a label; give .*"):
        fit(road, tmp_path, build(road), dataset=void)


def test_features_are_needed_and_gradients_are_not(road: Road, tmp_path: Path):
    with pytest.raises(ArgumentError, match=r"callbacks=None: add FeatureCacheCallback\(\)"):
        quiet_trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(build(road), datamodule=data(road.root))
    with pytest.raises(ArgumentError, match=r"LearningRateFinder.*nothing is trained by gradients; leave it out"):
        fit(road, tmp_path, build(road), callbacks=(LearningRateFinder(),))


@pytest.mark.parametrize(
    ("callback", "options"),
    [
        (EarlyStopping("train/loss"), {}),
        (ModelCheckpoint(monitor="val/loss"), {"limit_val_batches": 1.0}),
        (ModelCheckpoint(monitor="val/miou"), {}),
    ],
)
def test_a_monitor_that_nothing_logs_is_refused(road: Road, tmp_path: Path, callback: Any, options: dict[str, Any]):
    saves = isinstance(callback, ModelCheckpoint)
    module, name = build(road), type(callback).__name__
    with pytest.raises(ArgumentError, match=rf"^{name}.monitor=.*nothing in this run logs it.*train/cells"):
        fit(road, tmp_path, module, callbacks=(callback,), enable_checkpointing=saves, **options)


def test_a_monitor_that_is_logged_is_taken(road: Road, tmp_path: Path):
    kept = ModelCheckpoint(tmp_path, monitor="val/miou", mode="max")
    stop = EarlyStopping("val/miou", mode="max", patience=0)
    fit(road, tmp_path, build(road), callbacks=(kept, stop), limit_val_batches=1.0, enable_checkpointing=True, epochs=4)
    assert Path(kept.best_model_path).is_file()


def save(module: L.LightningModule, path: Path) -> str:
    trainer = quiet_trainer(path.parent)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return str(path)


def other_boundaries(**options: Any) -> AffinityModule:
    torch.manual_seed(1)
    return AffinityModule(6, **({"backbone": "resnet14", "weights": "none"} | options))


def test_parts_that_do_not_belong_together_are_refused(road: Road, tmp_path: Path):
    with pytest.raises(ArgumentError, match=r"^first_stage=None: give a checkpoint of rca fit with a frozen backbone"):
        FrozenSegmentationModule(6)
    with pytest.raises(ArgumentError, match=r"^first_stage='nowhere.ckpt': there is no such file"):
        build(road, first_stage="nowhere.ckpt")
    trained = save(
        RCAModule(6, backbone="resnet14", weights="none", backbone_mode="trained"), tmp_path / "trained.ckpt"
    )
    with pytest.raises(WeightsError, match=r"^first_stage=.*is of a trained backbone; give one .*'frozen', or --task"):
        build(road, first_stage=trained, walks=False)
    with pytest.raises(WeightsError, match="of the task 'affinity', not of 'localize'"):
        build(road, first_stage=str(road.affinity))
    with pytest.raises(WeightsError, match=r"^affinity_ckpt=.*of the task 'localize'; give one of rca affinity fit"):
        build(road, affinity=str(road.first))
    other = save(other_boundaries(), tmp_path / "other.ckpt")
    with pytest.raises(WeightsError, match=r"^affinity is a checkpoint of another backbone than first_stage"):
        build(road, affinity=other)
    finer = save(other_boundaries(weights=str(road.first), output_stride=8), tmp_path / "finer.ckpt")
    with pytest.raises(ArgumentError, match=r"^affinity=8: the first stage has output_stride 16; fit affinity with"):
        build(road, affinity=finer)
    with pytest.raises(ArgumentError, match=r"^num_classes=4: the first stage knows 6 classes"):
        FrozenSegmentationModule(4, first_stage=str(road.first))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_tags": "some"}, "^eval_tags='some': give one of none, image"),
        ({"propagation_power": 0.0}, "^propagation_power=0.0: give a number above 0"),
        ({"scales": ()}, "^scales=.*: give"),
        ({"penalty": 0.0}, "^penalty=0.0: give a number above 0"),
        ({"tag_prior": -1.0}, "^tag_prior=-1.0: give 0 or more"),
    ],
)
def test_arguments_out_of_range_are_refused(road: Road, options: dict[str, Any], message: str):
    with pytest.raises(RCAError, match=message):
        build(road, **options)


def test_given_tags_are_the_only_ones_drawn(road: Road, fitted: tuple[FrozenSegmentationModule, Path], tmp_path: Path):
    _, path = fitted
    told = FrozenSegmentationModule.load_from_checkpoint(
        path, predict_tags="image", eval_tags="image", scales=(1.0, 1.5)
    )
    images = data(road.root)
    images.setup("predict")
    for image_id, labels in predictions(told, road.root, tmp_path).items():
        (record,) = [one for one in images._predict.records if one.image_id == image_id]
        assert set(labels.unique().tolist()) <= {0, *(tag + 1 for tag in record.tags)}
