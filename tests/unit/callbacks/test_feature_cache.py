"""Training behind a frozen backbone: features are computed once, and what is made of them is right."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from tests.frozen_fits import SIZE, TRAIN, VAL, Counted, data, fit, frozen, generated
from tests.quiet_trainer import quiet_trainer

from rca_lightning.backbones.resnet import ResNet
from rca_lightning.callbacks import feature_cache
from rca_lightning.callbacks.atlas import PrototypeAtlasCallback
from rca_lightning.callbacks.attention_accumulation import AttentionAccumulation
from rca_lightning.callbacks.feature_cache import FeatureCacheCallback, compute_dtype
from rca_lightning.callbacks.panels import PanelCallback
from rca_lightning.callbacks.progress import ProgressLines
from rca_lightning.callbacks.region_memory import RegionMemoryCallback
from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.data.features import FeatureCache
from rca_lightning.data.synthetic.dataset import CLASS_NAMES
from rca_lightning.errors import ArgumentError, DataError, OutputError
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.modules.segmentation_module import SegmentationModule
from rca_lightning.rca.cam import fit_head
from rca_lightning.rca.inference import infer_class_maps


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generated(tmp_path_factory.mktemp("generated"))


def own(folder: Path, **options) -> WSSSDataModule:
    """A copy of the generated images, as a folder of one's own."""
    (folder / "classes.txt").write_text("\n".join(CLASS_NAMES) + "\n")
    lists = {split: str(folder / "ImageSets" / "Segmentation" / f"{split}.txt") for split in ("train", "val")}
    options = {"batch_size": 4, "num_workers": 0, **options}
    return WSSSDataModule(
        "folder", folder, image_dir="JPEGImages", mask_dir="SegmentationClass", tags_file="image_labels.txt",
        class_file="classes.txt", split_files=lists, **options,
    )  # fmt: skip


def ids(folder: Path, split: str) -> list[str]:
    return (folder / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()


def damage(folder: Path, split: str, which: int = 0) -> str:
    """Spoil a photograph; returns its id."""
    image_id = ids(folder, split)[which]
    (path,) = (folder / "JPEGImages").glob(f"{image_id}.*")
    path.write_bytes(b"no photograph")
    return image_id


def test_features_are_computed_once_and_by_the_next_run_not_at_all(root, tmp_path):
    module = frozen()
    images, _ = fit(root, tmp_path, module, epochs=3)
    assert images == TRAIN + 2 * VAL  # to train on, and to score as they are and mirrored
    assert bool(module.network.aggregation.valid.any())
    state = {name: value.clone() for name, value in module.state_dict().items()}
    again = frozen()
    images, _ = fit(root, tmp_path, again, epochs=3)
    assert images == 0
    torch.testing.assert_close(again.state_dict(), state)
    images, _ = fit(root, tmp_path, frozen(num_prototypes=3), epochs=1)
    assert images == 0


def test_nothing_of_the_network_is_trained_by_gradients(root, tmp_path):
    module = frozen()
    before = {name: value.clone() for name, value in module.network.backbone.state_dict().items()}
    fit(root, tmp_path, module)
    torch.testing.assert_close(module.network.backbone.state_dict(), before)
    assert not any(weight.requires_grad for weight in module.parameters())


def test_head_is_fitted_to_the_mean_features_of_the_photographs(root, tmp_path, monkeypatch):
    # Means of bfloat16, where the processor has units for it, differ in the third digit.
    monkeypatch.setattr(feature_cache, "compute_dtype", lambda device, weights=torch.float32: torch.float32)
    module = frozen()
    fit(root, tmp_path, module, epochs=1)
    module.eval()
    whole = data(root)
    whole.setup("fit")
    means, tags = [], []
    for sample in (whole._train.whole()[row] for row in range(TRAIN)):
        with torch.no_grad():
            views = [module.network.stages(sample["image"][None])[0]]
        means.append(torch.cat(views).half().float().mean((0, 2, 3)))
        tags.append(sample["tags"])
    weight, bias = fit_head(torch.stack(means), torch.stack(tags), penalty=0.01)
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
    images.scored = True
    key = FeatureCacheCallback._key(FeatureCacheCallback(), module, compute_dtype(module.device))
    images.features.use(key, scales=scales, flip=True)
    batch = next(iter(photographs.val_dataloader()))
    assert len(batch["features"][0]) == len(scales)
    for tags in (batch["tags"], None):
        (cached,) = module._batch_seeds(batch, tags)
        (computed,) = infer_class_maps(
            module.network, batch["image"], tags, scales=scales, propagation_steps=1, propagation_power=2,
            tags_by_attention=True,
        )  # fmt: skip
        assert cached.classes.tolist() == computed.classes.tolist()
        torch.testing.assert_close(cached.maps, computed.maps, atol=2e-2, rtol=0)
        torch.testing.assert_close(cached.probabilities, computed.probabilities, atol=1e-2, rtol=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_validation_and_prediction_read_what_the_cache_holds_and_write_nothing(root, tmp_path, caplog, workers):
    module = frozen()
    fit(root, tmp_path, module, splits=["train", "val"])
    counted, photographs = Counted(), data(root, num_workers=workers)
    counted.on_fit_start(None, module)
    trainer = quiet_trainer(tmp_path, callbacks=[FeatureCacheCallback(str(tmp_path / "features"))])
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").rglob("*")}
    with caplog.at_level(logging.INFO):
        trainer.validate(module, datamodule=photographs, verbose=False)
        trainer.predict(module, datamodule=photographs)
    assert counted.images == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "features").rglob("*")} == files
    assert caplog.text.count(f"features: those of {VAL} of {VAL} photographs are read from") == 2
    photographs.predict_split = "train"
    stored = FeatureCacheCallback(str(tmp_path / "features"))
    stored.cache.use(stored._key(module, compute_dtype(module.device)), scales=(1.0,))
    whole = data(root)
    whole.setup("fit")
    missing = stored.cache.path(whole._train.records[3], 1.0)
    missing.unlink()
    trainer.predict(module, datamodule=photographs)
    assert counted.images == 2  # of the missing one: as it is and mirrored
    assert not missing.exists()
    caplog.clear()
    with torch.no_grad():
        next(module.network.backbone.parameters()).add_(0.1)
    with caplog.at_level(logging.INFO):
        trainer.validate(module, datamodule=photographs, verbose=False)
    assert counted.images == 2 + 2 * VAL  # features of other weights are never read
    assert "are read from" not in caplog.text
    quiet_trainer(tmp_path).validate(module, datamodule=photographs, verbose=False)
    assert photographs._eval.features is None  # without the callback of before


def test_fit_computes_further_splits_and_none_that_it_does_not_validate_on(root, tmp_path):
    module, folder = frozen(), tmp_path / "features"
    fit(root, tmp_path, module, epochs=1, check_val_every_n_epoch=2)
    assert len(list(folder.rglob("*.npy"))) == TRAIN
    for splits, more in ((["val"], 2 * VAL), (["train", "val"], TRAIN + 2 * VAL)):  # with the mirror images
        again = frozen()
        fit(root, tmp_path, again, epochs=1, splits=splits, limit_val_batches=0)
        assert len(list(folder.rglob("*.npy"))) == TRAIN + more
        torch.testing.assert_close(again.state_dict(), module.state_dict())
    wrong = quiet_trainer(tmp_path, max_epochs=1, callbacks=[FeatureCacheCallback(str(folder), splits=["night"])])
    with pytest.raises(ArgumentError, match="splits='night': no such split; give one of"):
        wrong.fit(frozen(aggregation=False), datamodule=data(root))


def test_progress_is_told(root, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("rca_lightning.io.progress.SECONDS", 0.0)
    monkeypatch.setattr("rca_lightning.callbacks.feature_cache._SAMPLE", 2)
    with caplog.at_level(logging.INFO):
        fit(root, tmp_path, frozen(), epochs=1, limit_val_batches=0)
    assert f"features: image {TRAIN - 3} of {TRAIN - 2}, about " in caplog.text
    assert f"the first head is fitted to {TRAIN} photographs" in caplog.text


def test_what_cannot_be_is_one_sentence(root, tmp_path):
    with pytest.raises(ArgumentError, match=r"callbacks=None: add FeatureCacheCallback\(\) to the Trainer"):
        quiet_trainer(tmp_path, max_epochs=1, callbacks=[RegionMemoryCallback()]).fit(frozen(), datamodule=data(root))
    with pytest.raises(ArgumentError, match=r"beta=0\.5: behind a frozen backbone it has nothing to train"):
        frozen(beta=0.5)
    with pytest.raises(ArgumentError, match="contrast=True: behind a frozen backbone it trains the prototypes"):
        frozen(contrast=True, aggregation=False)
    assert not frozen(aggregation=False).needs_memory
    with pytest.raises(ArgumentError, match=r"embedding_dim=1000: give 1 to "):
        frozen(embedding_dim=1000)


def test_key_knows_the_padding(root):
    keys = []
    for mode in ("zeros", "replicate"):
        module = frozen(padding_mode=mode)
        keys.append(FeatureCacheCallback(str(root))._key(module, torch.float32))
    assert keys[0] != keys[1]
    assert {name: value for name, value in keys[1].items() if name != "padding_mode"} == keys[0]


def test_frozen_is_the_default_where_weights_are_given(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(RCAModule(num_classes=1, backbone="resnet14").network.backbone.state_dict(), path)
    assert RCAModule(num_classes=1, backbone="resnet14", weights=str(path)).is_frozen
    assert not RCAModule(num_classes=1, backbone="resnet14", weights=str(path), backbone_mode="trained").is_frozen
    assert not RCAModule(num_classes=1, backbone="resnet14").is_frozen
    assert isinstance(frozen().network.backbone, ResNet)


def test_a_run_that_was_killed_goes_on_with_what_is_missing(root, tmp_path, monkeypatch):
    whole = frozen()
    fit(root, tmp_path / "whole", whole)
    written = []
    write = FeatureCache.write

    def killed(cache, record, *rest, **named):
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(record.image_id)
        write(cache, record, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureCache, "write", killed)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            fit(root, tmp_path / "killed", frozen())
    again = frozen()
    images, _ = fit(root, tmp_path / "killed", again)
    assert images == TRAIN - 5 + 2 * VAL  # nothing for the projection
    torch.testing.assert_close(again.state_dict(), whole.state_dict())


def test_a_photograph_that_has_changed_is_computed_anew(root, tmp_path):
    images = shutil.copytree(root, tmp_path / "images")
    options = {"folder": images}
    fit(root, tmp_path, frozen(), dataset=own(**options))
    one = min((images / "JPEGImages").glob("*"))
    os.utime(one, ns=(1, 1))
    computed, _ = fit(root, tmp_path, frozen(), dataset=own(**options))
    # Its stamp is part of the key of the projection, which it was learned from.
    assert computed in {TRAIN, TRAIN + 2 * VAL}


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_photographs_are_left_out_and_listed(root, tmp_path, workers):
    images = shutil.copytree(root, tmp_path / "images")
    bad = [damage(images, split) for split in ("train", "val")]
    options = {"on_bad_image": "skip", "max_bad_images": 0.5, "num_workers": workers}
    module = frozen()
    _, trainer = fit(root, tmp_path, module, dataset=own(images, **options))
    lines = (tmp_path / "bad_images.csv").read_text().splitlines()
    assert sorted(line.split(",")[1] for line in lines[1:]) == sorted(bad)
    stored = list((tmp_path / "features").rglob("*.npy"))
    assert len(stored) == TRAIN - 1 + 2 * (VAL - 1)
    seen = {module.memory.image_id(label, slot) for label, slot in torch.nonzero(module.memory.valid).tolist()}
    assert bad[0] not in seen
    assert len(seen) > 1
    assert len(trainer.datamodule.cached_features()) == TRAIN - 1
    assert trainer.datamodule.num_train_images == TRAIN
    again, _ = fit(root, tmp_path, frozen(), dataset=own(images, **options))
    assert again == 0


def test_bad_photographs_end_the_run_unless_they_are_skipped(root, tmp_path):
    images = shutil.copytree(root, tmp_path / "images")
    damage(images, "train")
    with pytest.raises(DataError, match="not an image"):
        fit(root, tmp_path, frozen(), dataset=own(images))
    damage(images, "train", which=1)
    few = {"on_bad_image": "skip", "max_bad_images": 0.1}
    with pytest.raises(DataError, match=r"split 'train': 2 of 12 images could not be read, and max_bad_images=0\.1"):
        fit(root, tmp_path, frozen(), dataset=own(images, **few))
    for which in range(TRAIN):
        damage(images, "train", which=which)
    with pytest.raises(DataError, match="could be read"):
        fit(root, tmp_path, frozen(), dataset=own(images, on_bad_image="skip", max_bad_images=1.0))


def test_photographs_without_known_tags_are_not_trained_on(root, tmp_path):
    images = shutil.copytree(root, tmp_path / "images")
    tags = images / "image_labels.txt"
    lines = [line for line in tags.read_text().splitlines() if line.split()[0] != ids(images, "train")[0]]
    tags.write_text("\n".join(lines) + "\n")
    module = frozen()
    fit(root, tmp_path, module, dataset=own(images), limit_val_batches=0)
    assert len(list((tmp_path / "features").rglob("*.npy"))) == TRAIN - 1
    assert bool(torch.isfinite(module.network.coarse_head.conv.weight).all())


def test_loading_processes_read_the_cache(root, tmp_path):
    one, other = frozen(), frozen()
    fit(root, tmp_path / "one", one)
    images, _ = fit(root, tmp_path / "other", other, dataset=data(root, num_workers=2))
    assert images == TRAIN + 2 * VAL
    torch.testing.assert_close(other.state_dict(), one.state_dict())


def test_no_room_is_told_before_anything_is_computed(root, tmp_path):
    counted = Counted()
    parts = [counted, FeatureCacheCallback(str(tmp_path / "features"), max_gib=1e-7), RegionMemoryCallback()]
    with pytest.raises(OutputError, match=r"features\.max_gib=1e-07: the features need"):
        quiet_trainer(tmp_path, max_epochs=1, callbacks=parts).fit(frozen(), datamodule=data(root))
    assert counted.images == 0


@pytest.mark.parametrize(
    ("units", "device", "weights", "expected"),
    [
        (("avx512",), "cpu", torch.float32, torch.bfloat16),
        (("amx",), "cpu", torch.float32, torch.bfloat16),
        ((), "cpu", torch.float32, torch.float32),
        (("avx512",), "cpu", torch.float64, torch.float64),
        (("cuda",), "cuda", torch.float32, torch.bfloat16),
        (("avx512",), "cuda", torch.float32, torch.float32),
        (("cuda", "avx512"), "cuda", torch.float16, torch.float16),
        (("cuda", "avx512"), "mps", torch.float32, torch.float32),
    ],
)
def test_bfloat16_only_where_there_are_units_for_it(monkeypatch, units, device, weights, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: "avx512" in units)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: "amx" in units)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: "cuda" in units)
    assert compute_dtype(torch.device(device), weights) == expected


def test_features_of_other_precision_have_another_key(root, tmp_path, monkeypatch):
    by_type = {}
    for units in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda units=units: units)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        by_type[units] = frozen()
        images, trainer = fit(root, tmp_path, by_type[units], limit_val_batches=0)
        assert images == TRAIN
        key = trainer.datamodule.features.key
        assert key["computed in"] == ("bfloat16" if units else "float32")
        (kept,) = trainer.datamodule.features.read(trainer.datamodule._train.records[0])
        assert bool(torch.isfinite(kept).all())
    exact, rounded = (module.network.pca.weight for module in by_type.values())
    assert not torch.equal(exact, rounded)


def test_double_precision_is_kept(root, tmp_path):
    module = frozen()
    fit(root, tmp_path, module, precision="64-true", limit_val_batches=0)
    assert module.network.pca.weight.dtype == torch.float64
    assert bool(module.network.has_prototypes)


@pytest.mark.parametrize(
    "callback",
    [LearningRateFinder(), BatchSizeFinder(), StochasticWeightAveraging(0.1), AttentionAccumulation()],
    ids=lambda callback: type(callback).__name__,
)
def test_callbacks_that_need_gradients_are_refused(root, tmp_path, callback):
    match = rf"trainer\.callbacks='{type(callback).__name__}': behind a frozen backbone .*; leave it out"
    with pytest.raises(ArgumentError, match=match):
        fit(root, tmp_path, frozen(), callbacks=[callback])
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize("averaging", [EMAWeightAveraging, WeightAveraging])
def test_averaged_weights_are_those_of_the_run(root, tmp_path, averaging):
    plain, averaged = frozen(), frozen()
    _, plain_trainer = fit(root, tmp_path, plain)
    _, trainer = fit(root, tmp_path, averaged, callbacks=[averaging()])
    torch.testing.assert_close(averaged.state_dict(), plain.state_dict())
    assert trainer.callback_metrics["val/miou_true_tags"] == plain_trainer.callback_metrics["val/miou_true_tags"]


def test_monitors_know_what_is_logged(root, tmp_path):
    fit(root, tmp_path, frozen(), callbacks=[EarlyStopping("val/miou_true_tags", mode="max")])
    monitored = EarlyStopping("train/loss")
    parts = [FeatureCacheCallback(str(tmp_path / "features")), RegionMemoryCallback(backend="torch"), monitored]
    for limit, match in ((None, "logs it; give one of val/"), (0, r"or no masks\); give one of train/label_change")):
        trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=parts, limit_val_batches=limit)
        with pytest.raises(ArgumentError, match=match):
            trainer.fit(frozen(), datamodule=data(root))


def test_panels_and_lines_of_progress(root, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        fit(root, tmp_path, frozen(), epochs=1, callbacks=[PanelCallback(images=2), ProgressLines(0)])
    assert (tmp_path / "panels" / "epoch-000.png").is_file()
    assert "fit: epoch 1 of 1, batch 3 of 3" in caplog.text
    fit(root, tmp_path / "without", frozen(), epochs=1, callbacks=[PanelCallback(images=2)], limit_val_batches=0)


def test_advice_that_helps_comes_once(root, tmp_path, caplog):
    module = frozen(num_prototypes=20, scales=(0.5, 1.0))
    memory = RegionMemoryCallback(backend="torch", slots=200)
    parts = [FeatureCacheCallback(str(tmp_path / "features")), memory]
    quiet_trainer(tmp_path, max_epochs=3, callbacks=parts, limit_val_batches=0).fit(module, datamodule=data(root))
    advice = [record.message for record in caplog.records if "Remedy" in record.message]
    assert advice
    assert len(advice) == len({line.split(": ")[1].split(" (")[0] for line in advice})
    assert not any("confidence" in line for line in advice)


def test_atlas_of_a_frozen_fit(root, tmp_path):
    module = frozen()
    fit(root, tmp_path, module, callbacks=[PrototypeAtlasCallback(str(tmp_path / "atlas"), regions=2)])
    assert (tmp_path / "atlas" / "index.html").is_file()
    assert len(list((tmp_path / "atlas").glob("*.png"))) >= 2


def test_backbone_of_a_frozen_fit_starts_a_segmenter(root, tmp_path, caplog):
    kept = ModelCheckpoint(dirpath=tmp_path / "kept", save_last=True)
    module = frozen()
    fit(root, tmp_path, module, callbacks=[kept], enable_checkpointing=True)
    with caplog.at_level(logging.INFO):
        path = str(tmp_path / "kept" / "last.ckpt")
        segmenter = SegmentationModule(6, backbone="resnet14", weights=path, tag_weight=0.1)
    torch.testing.assert_close(segmenter.network.backbone.state_dict(), module.network.backbone.state_dict())
    assert "tag_weight: the tag head begins anew" in caplog.text
    options = {"output_stride": 8, "num_prototypes": 2, "background_prototypes": 3, "beta": 0.0, "channels_last": True}
    tuned = RCAModule(num_classes=6, backbone="resnet14", weights=path, backbone_mode="trained", **options)
    assert not tuned.is_frozen
    photograph = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        before, now = module.eval()(photograph), tuned.eval()(photograph)
    assert torch.equal(now.coarse, before.coarse)
    assert torch.equal(now.attention, before.attention)
    torch.testing.assert_close(tuned.network.backbone.state_dict(), module.network.backbone.state_dict())


def test_two_runs_at_once_share_a_cache(root, tmp_path):
    context = multiprocessing.get_context("fork")
    runs = [context.Process(target=_fit_and_save, args=(root, tmp_path, name)) for name in ("one", "two")]
    for process in runs:
        process.start()
    for process in runs:
        process.join()
        assert process.exitcode == 0
    one, two = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("one", "two"))
    torch.testing.assert_close(one, two)
    assert len(list((tmp_path / "features").rglob("*.npy"))) == TRAIN + 2 * VAL
    assert not list((tmp_path / "features").rglob("*.part"))


def _fit_and_save(root: Path, folder: Path, name: str) -> None:
    torch.set_num_threads(1)
    module = frozen()
    parts = [FeatureCacheCallback(str(folder / "features")), RegionMemoryCallback(backend="torch")]
    quiet_trainer(folder / name, max_epochs=2, callbacks=parts).fit(module, datamodule=data(root))
    torch.save(module.state_dict(), folder / f"{name}.pt")
