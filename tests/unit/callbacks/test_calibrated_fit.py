"""Calibration at the end of a frozen fit: each photograph is scored by what other photographs have taught."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping
from tests.quiet_trainer import quiet_trainer
from tests.unit.callbacks.test_feature_cache import TRAIN, data, frozen
from tests.unit.callbacks.test_feature_cache import root as root

from rca_lightning.callbacks import tag_calibration
from rca_lightning.callbacks.feature_cache import FeatureCacheCallback
from rca_lightning.callbacks.region_memory import RegionMemoryCallback
from rca_lightning.callbacks.tag_calibration import FOLDS
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.rca.cam import fit_head
from rca_lightning.rca.prototype_contrast import contrast_prototypes
from rca_lightning.rca.prototypes import make_prototypes
from rca_lightning.rca.tag_calibration import TagCalibration


class Given:
    """What `TagCalibration.fit` was given, each time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]] = []
        fit = TagCalibration.fit

        def noted(calibration, logits, evidence, tags):
            self.calls.append((logits.clone(), None if evidence is None else evidence.clone(), tags.clone()))
            fit(calibration, logits, evidence, tags)

        monkeypatch.setattr(TagCalibration, "fit", noted)


def fit(root: Path, folder: Path, module: RCAModule, *, epochs: int = 2, before=(), ckpt_path=None, **trainer):
    parts = [RegionMemoryCallback(backend="torch"), *before, FeatureCacheCallback(str(folder / "features"))]
    made = quiet_trainer(folder, max_epochs=epochs, callbacks=parts, **trainer)
    made.fit(module, datamodule=data(root), ckpt_path=ckpt_path)
    return made


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tag_calibration, "LEAST_IMAGES", 1)


@pytest.mark.usefixtures("few")
def test_each_photograph_is_scored_by_the_head_and_prototypes_of_other_folds(root, tmp_path, monkeypatch):
    given, module = Given(monkeypatch), frozen()
    trainer = fit(root, tmp_path, module)
    ((logits, evidence, tags),) = given.calls
    images = trainer.datamodule.cached_features()
    features = [sample["features"][0].float() for sample in images]
    assert torch.equal(tags, torch.stack([sample["tags"] for sample in images]).float())
    reader, means = module.network.aggregation, torch.stack([views[0].mean(dim=(1, 2)) for views in features])
    found = []
    for image in range(TRAIN):
        batch = {"features": [[features[image]]], "tags": tags[image : image + 1], "image_id": [""]}
        found.append(module.training_step(batch, 0))
    for held_out in range(FOLDS):
        others = [image for image in range(TRAIN) if image % FOLDS != held_out]
        weight, bias = fit_head(means[others], tags[others])
        vectors = torch.cat([F.normalize(found[image]["regions"].embeddings, dim=1) for image in others])
        labels = torch.cat([found[image]["regions"].labels for image in others])
        prototypes, valid, owners = [], [], []
        for classes, count in ((range(6), 2), (range(6, 7), 3)):
            points, known = torch.zeros(len(classes), len(labels), 16), torch.zeros(len(classes), len(labels)).bool()
            for row, label in enumerate(classes):
                own = vectors[labels == label]
                points[row, : len(own)], known[row, : len(own)] = own, True
            made = make_prototypes(
                points, known, count, clustering="kmeans", backend="torch", iterations=20, seed=held_out
            )
            prototypes.append(made.vectors.flatten(0, 1))
            valid.append(made.valid.flatten())
            owners.append(torch.tensor([label for label in classes for _ in range(count)]))
        used, owners = torch.cat(valid), torch.cat(owners)
        cells = torch.cat([found[image]["cells"].embeddings for image in others])
        of_cells = torch.cat([found[image]["cells"].labels for image in others])
        moved, _ = contrast_prototypes(
            torch.cat(prototypes)[used], owners[used], cells, of_cells, temperature=reader.temperature, epochs=4,
            seed=held_out,
        )  # fmt: skip
        for image in range(held_out, TRAIN, FOLDS):
            torch.testing.assert_close(logits[image], weight @ means[image] + bias, atol=1e-4, rtol=1e-3)
            pixels = F.normalize(features[image][0].flatten(1), dim=0)  # (D, HW)
            attention = (moved @ pixels / reader.temperature).softmax(dim=0)
            for label in range(6):
                mine = owners[used] == label
                if not mine.any():
                    assert evidence[image, label].isnan()
                    continue
                strongest = attention[mine].sum(dim=0).topk(max(1, pixels.shape[1] // 50)).values.mean()
                assert float(evidence[image, label]) == pytest.approx(float(strongest), abs=5e-3)


@pytest.mark.usefixtures("few")
def test_prototypes_and_head_stay_those_of_all_photographs(root, tmp_path, monkeypatch):
    calibrated, plain = frozen(), frozen()
    fit(root, tmp_path / "a", calibrated)
    monkeypatch.setattr(tag_calibration, "LEAST_IMAGES", TRAIN + 1)
    fit(root, tmp_path / "b", plain)
    assert calibrated.tag_calibration.fitted
    assert not plain.tag_calibration.fitted
    for name, value in plain.network.state_dict().items():
        assert torch.equal(calibrated.network.state_dict()[name], value), name


class Fitted(L.Callback):
    """Whether tags are calibrated at each validation."""

    def __init__(self) -> None:
        self.at_validation: list[bool] = []

    def on_validation_epoch_start(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.at_validation.append(bool(pl_module.tag_calibration.fitted))


@pytest.mark.usefixtures("few")
def test_only_the_last_round_is_calibrated_before_it_is_validated(root, tmp_path):
    noted, module = Fitted(), frozen(tag_threshold=0.3, eval_tags="predicted")
    trainer = fit(root, tmp_path, module, epochs=3, before=[noted])
    assert noted.at_validation == [False, False, True]
    assert module.tag_threshold == 0.3
    path = tmp_path / "a.ckpt"
    trainer.save_checkpoint(path)
    loaded = RCAModule.load_from_checkpoint(path, tag_threshold=None)
    assert torch.equal(loaded.tag_threshold, module.tag_calibration.threshold)
    resumed = frozen()
    fit(root, tmp_path, resumed, epochs=4, before=[again := Fitted()], ckpt_path=path)
    assert again.at_validation == [True]
    assert not torch.equal(resumed.tag_calibration.weight, module.tag_calibration.weight)


@pytest.mark.usefixtures("few")
def test_a_round_that_a_callback_ends_with_is_calibrated(root, tmp_path):
    stop = EarlyStopping("train/label_change", stopping_threshold=2.0, check_on_train_epoch_end=True)
    module = frozen()
    trainer = fit(root, tmp_path, module, epochs=50, before=[stop], limit_val_batches=0)
    assert trainer.current_epoch == 1
    assert module.tag_calibration.fitted


@pytest.mark.usefixtures("few")
def test_without_prototypes_the_head_alone_is_calibrated(root, tmp_path, monkeypatch):
    given, module = Given(monkeypatch), frozen(aggregation=False, background_prototypes=0)
    fit(root, tmp_path, module, epochs=1)
    ((_, evidence, _),) = given.calls
    assert evidence is None
    assert float(module.tag_calibration.weight[0]) == pytest.approx(float(module.tag_calibration.weight[1]))
