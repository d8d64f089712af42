"""SegmentationModule: it learns, scores what it draws, and says what is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from tests.quiet_trainer import quiet_trainer
from torch.utils.data import DataLoader

from rca_lightning.data.sample import Sample, collate
from rca_lightning.data.synthetic.scene import render_scene
from rca_lightning.errors import ArgumentError, DataError, MissingExtraError, WeightsError
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.modules.segmentation_module import SegmentationModule
from rca_lightning.segmentation.network import pixel_cross_entropy

CLASSES = 6


def scenes(count: int, size: int = 64, *, masks: bool = True) -> list[Sample]:
    samples = []
    for index in range(count):
        scene = render_scene(np.random.default_rng(index), size)
        sample = Sample(
            image=torch.from_numpy(scene.image.astype(np.float32)).permute(2, 0, 1) / 64 - 2,
            tags=torch.zeros(CLASSES),
            image_id=f"scene_{index}",
            original_size=torch.tensor([size, size]),
        )
        if masks:
            sample["mask"] = torch.from_numpy(scene.mask.astype(np.int64))
        samples.append(sample)
    return samples


def loader(samples: list[Sample], batch_size: int = 4) -> DataLoader:
    return DataLoader(samples, batch_size=batch_size, collate_fn=collate)


def small(**options) -> SegmentationModule:
    defaults = {"backbone": "resnet14", "frozen_batchnorm": False, "flip": False, "lr": 0.003}
    L.seed_everything(0, verbose=False)
    return SegmentationModule(CLASSES, **{**defaults, **options})


def test_overfits_a_handful_of_true_masks(tmp_path: Path):
    module = small(output_stride=8, optimizer="adamw", new_layer_lr_ratio=1.0)
    samples = scenes(4)
    trainer = quiet_trainer(tmp_path, max_epochs=60, num_sanity_val_steps=0, check_val_every_n_epoch=60)
    trainer.fit(module, loader(samples), loader(samples, batch_size=1))
    assert float(trainer.callback_metrics["val/miou"]) > 0.9
    assert module.evaluation.last_result.images == 4
    predicted = trainer.predict(module, loader(samples, batch_size=1))
    labels = torch.stack([image["labels"] for (image,) in predicted])
    masks = torch.stack([sample["mask"] for sample in samples])
    assert (labels == masks)[masks != 255].float().mean() > 0.95


def test_decoder_of_v3plus_learns_too(tmp_path: Path):
    module = small(head="deeplabv3plus", optimizer="adamw", new_layer_lr_ratio=1.0)
    trainer = quiet_trainer(tmp_path, max_epochs=12, limit_val_batches=0)
    trainer.fit(module, loader(scenes(2, size=48)))
    assert float(trainer.callback_metrics["train/loss"]) < 0.7 * np.log(CLASSES + 1)


def step(module: SegmentationModule, sample: Sample) -> torch.Tensor:
    module.log = lambda *args, **kwargs: None
    return module.training_step(collate([sample]), 0)


def test_pixels_without_a_label_teach_nothing():
    """The same as if the loss had been summed by hand over the others."""
    module = small(frozen_batchnorm=True).train()
    sample = scenes(1, size=48)[0]
    sample["mask"][:, 24:] = 255
    step(module, sample).backward()
    found = {name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.requires_grad}
    module.zero_grad()
    logits = torch.nn.functional.interpolate(module(sample["image"][None]), (48, 48), mode="bilinear")[0]
    logarithms = logits - logits.exp().sum(0).log()
    labelled = torch.nonzero(sample["mask"] != 255).tolist()
    loss = -sum(logarithms[sample["mask"][row, column], row, column] for row, column in labelled) / len(labelled)
    loss.backward()
    assert any(gradient.abs().max() > 1e-4 for gradient in found.values())
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-5, rtol=1e-3, msg=name)


def test_tag_head_adds_its_loss_and_learns_the_tags(tmp_path: Path):
    module = small(head="linear", tag_weight=2.0, optimizer="adamw", new_layer_lr_ratio=1.0)
    samples = scenes(4, size=48)
    for sample in samples:
        sample["tags"][(sample["mask"][(sample["mask"] > 0) & (sample["mask"] < 255)] - 1).unique()] = 1
    batch = collate(samples)
    logged = {}
    module.log = lambda name, value, **options: logged.update({name: value})
    module.train()
    total = module.training_step(batch, 0)
    probabilities = module.network.branches(batch["image"])[1].mean((2, 3)).sigmoid()
    expected = -torch.where(batch["tags"] > 0, probabilities, 1 - probabilities).log().mean()
    torch.testing.assert_close(logged["train/tag_loss"], expected.detach())
    pixels = pixel_cross_entropy(module.network.branches(batch["image"])[0], batch["mask"])
    torch.testing.assert_close(total, pixels + 2 * expected)
    assert logged["train/loss"] == total.detach()
    del module.log
    quiet_trainer(tmp_path, max_epochs=40, limit_val_batches=0).fit(module, loader(samples))
    module.eval()
    with torch.no_grad():
        found = module.network.branches(batch["image"])[1].mean((2, 3)) > 0
    assert torch.equal(found, batch["tags"] > 0)


@pytest.mark.parametrize("stage", ["validate", "predict"])
def test_given_tags_are_all_that_is_drawn(tmp_path: Path, stage: str):
    samples = scenes(2, size=48)
    samples[0]["tags"][2] = 1
    samples[1]["tags"][:] = -1
    module = small(eval_tags="image", predict_tags="image")
    if stage == "predict":
        found = quiet_trainer(tmp_path).predict(module, loader(samples))[0]
        assert set(found[0]["labels"].unique().tolist()) <= {0, 3}
        free = quiet_trainer(tmp_path).predict(small(), loader(samples))[0]
        assert torch.equal(free[1]["labels"], found[1]["labels"])  # unknown tags: any class
        assert not torch.equal(free[0]["labels"], found[0]["labels"])
    else:
        quiet_trainer(tmp_path).validate(module, loader(samples[:1]), verbose=False)
        drawn = module.evaluation.last_result.precision  # NaN: never drawn
        assert not torch.isfinite(drawn[[1, 2, 4, 5, 6]]).any()


def test_first_stage_gives_backbone_and_tag_head(tmp_path: Path):
    first = RCAModule(CLASSES, backbone="resnet14", num_prototypes=2)
    trainer = quiet_trainer(tmp_path, limit_predict_batches=0)
    trainer.predict(first, DataLoader([0]), return_predictions=False)
    trainer.save_checkpoint(tmp_path / "first.ckpt", weights_only=True)
    module = small(weights=str(tmp_path / "first.ckpt"), tag_weight=1.0)
    images = torch.randn(1, 3, 48, 48)
    first.eval(), module.eval()
    with torch.no_grad():
        torch.testing.assert_close(module.network.branches(images)[1], first(images).coarse)


def test_images_without_any_label_leave_finite_gradients():
    module = small().train()
    sample = scenes(1, size=48)[0]
    sample["mask"].fill_(255)
    loss = step(module, sample)
    loss.backward()
    assert loss.item() == 0.0
    assert all(not parameter.grad.any() for parameter in module.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_score_is_of_the_images_with_a_mask(tmp_path: Path, stage: str):
    module = small()
    samples = scenes(3, size=48)
    samples[1] = scenes(2, size=48, masks=False)[1]
    (logged,) = getattr(quiet_trainer(tmp_path), stage)(module, loader(samples, batch_size=1), verbose=False)
    result = module.evaluation.last_result
    assert result.images == 2
    assert logged == {f"{'val' if stage == 'validate' else 'test'}/miou": pytest.approx(result.miou)}
    module.eval()
    pixels = sum(int((samples[index]["mask"] != 255).sum()) for index in (0, 2))
    right = 0
    for index in (0, 2):
        labels = module.label_images(samples[index]["image"][None])[0].labels
        right += int((labels == samples[index]["mask"]).sum())
    shares = torch.stack([(samples[i]["mask"][None] == torch.arange(7)[:, None, None]).sum((1, 2)) for i in (0, 2)])
    assert float((result.recall.nan_to_num() * shares.sum(0)).sum()) == pytest.approx(right)
    assert int(shares.sum()) == pixels


def test_split_without_masks_has_no_score(tmp_path: Path):
    module = small()
    assert quiet_trainer(tmp_path).validate(module, loader(scenes(1, size=48, masks=False)), verbose=False) == [{}]
    assert module.evaluation.last_result is None


def test_prediction_is_on_the_cpu_at_the_size_of_the_photograph(tmp_path: Path):
    ((found,),) = quiet_trainer(tmp_path).predict(small(), loader(scenes(1, size=50)))
    assert found.keys() == {"image_id", "labels", "confidence"}
    assert (found["image_id"], found["labels"].shape, found["labels"].dtype) == ("scene_0", (50, 50), torch.uint8)
    assert found["labels"].device.type == "cpu"
    assert 1 / (CLASSES + 1) <= found["confidence"] <= 1


def test_batch_without_masks_is_refused_with_the_remedy(tmp_path: Path):
    with pytest.raises(DataError, match=r"train_masks: the batch of scene_0 holds no masks; .*train_mask_dir"):
        quiet_trainer(tmp_path, max_epochs=1).fit(small(), loader(scenes(2, size=48, masks=False)))


def test_missing_crf_is_told_when_testing_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    module, data = small(crf=True), loader(scenes(2, size=48))
    module.label_images = None  # no image gets this far
    for stage in ("validate", "test", "predict"):
        with pytest.raises(MissingExtraError, match=r"crf=True.*rca-lightning\[crf\]"):
            getattr(quiet_trainer(tmp_path), stage)(module, data)


def test_crf_is_left_out_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    module, data = small(crf=True), loader(scenes(2, size=48))
    quiet_trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0).fit(module, data, data)
    assert module.evaluation.last_result.images == 2


def test_weights_that_are_not_frozen_are_all_trained_at_two_rates(tmp_path: Path):
    module = small(frozen_stages=2, lr=0.01, new_layer_lr_ratio=5.0, poly_power=0.5)
    trainer = quiet_trainer(tmp_path, max_epochs=2, limit_val_batches=0)
    trainer.fit(module, loader(scenes(2, size=48), batch_size=1))
    backbone, head = trainer.optimizers[0].param_groups
    assert (backbone["initial_lr"], head["initial_lr"]) == (0.01, 0.05)
    assert backbone["lr"] == 0.0  # after the last of four steps
    trained = {id(parameter) for group in (backbone, head) for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in module.parameters() if parameter.requires_grad}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    trainer = quiet_trainer(tmp_path, limit_predict_batches=0)
    trainer.predict(small(class_names=list("abcdef")), DataLoader([0]), return_predictions=False)
    trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    return tmp_path / "last.ckpt"


def test_checkpoint_alone_rebuilds_the_module(checkpoint: Path):
    image = scenes(1, size=48)[0]["image"][None]
    module = SegmentationModule.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    assert module.class_names == list("abcdef")
    assert "weights" not in module.hparams
    torch.testing.assert_close(module(image), small().eval()(image))


def test_checkpoint_of_the_other_task_is_one_sentence(checkpoint: Path, tmp_path: Path):
    with pytest.raises(WeightsError, match=r"of the task 'segment', not of 'localize'; give --task segment"):
        RCAModule.load_from_checkpoint(checkpoint)
    trainer = quiet_trainer(tmp_path, limit_predict_batches=0)
    trainer.predict(RCAModule(CLASSES, backbone="resnet14", num_prototypes=2), DataLoader([0]))
    trainer.save_checkpoint(tmp_path / "rca.ckpt", weights_only=True)
    with pytest.raises(WeightsError, match=r"of the task 'localize', not of 'segment'; give --task localize"):
        SegmentationModule.load_from_checkpoint(tmp_path / "rca.ckpt")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_classes", 0),
        ("num_classes", 255),
        ("class_names", ["one"]),
        ("scales", ()),
        ("scales", (0.0,)),
        ("max_side", 3),
        ("tag_weight", -1.0),
        ("head", "fcn"),
        ("backbone", "resnet99"),
    ],
)
def test_arguments_out_of_range_are_named(name, value):
    with pytest.raises(ArgumentError, match=rf"^{name}="):
        SegmentationModule(**{"num_classes": 3, "backbone": "resnet14", name: value})
