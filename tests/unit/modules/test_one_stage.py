"""OneStageModule: its losses, its teacher, what it refuses, and that training can be resumed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from tests.quiet_trainer import quiet_trainer
from torch import Tensor
from torch.utils.data import DataLoader

from rca_lightning import MaskWriter, OneStageModule, RCAModule, RegionMemoryCallback, SegmentationModule
from rca_lightning.data.sample import collate
from rca_lightning.errors import ArgumentError, NonFiniteError, WeightsError
from rca_lightning.rca.projection import Moments, learn_projections


def sample(number: int, poison: float | None = None) -> dict[str, Any]:
    """A batch of two images; the second may have a pixel that is not finite."""
    draw = torch.Generator().manual_seed(number)
    images = F.interpolate(torch.randn(2, 3, 6, 6, generator=draw), (48, 48), mode="bilinear")
    if poison is not None:
        images[1, 0, 5, 5] = poison
    return {
        "image": images,
        "tags": torch.tensor([[1.0, 0.0], [1.0, float(number % 2)]]),
        "image_id": [f"a{number}", f"b{number}"],
        "mask": torch.randint(0, 3, (2, 48, 48), generator=draw),
        "original_size": torch.full((2, 2), 48),
    }


def build(**options: Any) -> OneStageModule:
    torch.manual_seed(0)
    common = {"backbone": "resnet14", "weights": "none", "frozen_batchnorm": False, "lr": 1e-3, "confidence": 0.0,
              "num_prototypes": 2, "background_prototypes": 2, "warmup_epochs": 1, "teacher_warmup": 1, "low": 0.4,
              "high": 0.6, "ramp_epochs": 0.0, "flip": False, "pamr_iterations": 2, "output_stride": 8}  # fmt: skip
    return OneStageModule(2, ["cat", "dog"], **(common | options))


class Watch(L.Callback):
    """Metrics and weights after each batch."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []
        self.students: list[list[Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.students.append([weight.detach().double().clone() for weight in pl_module.student.parameters()])


def fit(folder: Path, module: L.LightningModule, numbers: list[Any], *more: L.Callback, **options: Any) -> L.Trainer:
    batches = [number if isinstance(number, dict) else sample(number) for number in numbers]
    callbacks = [RegionMemoryCallback(slots=6, backend="torch"), *more]
    ckpt_path = options.pop("ckpt_path", None)
    trainer = quiet_trainer(folder, **{"max_epochs": 2, "limit_val_batches": 0, "callbacks": callbacks, **options})
    trainer.fit(module, DataLoader(batches, batch_size=None), ckpt_path=ckpt_path)
    return trainer


def test_losses_are_those_of_rca_and_of_the_pixels(tmp_path: Path):
    """The pixels have no part before the teacher's warm-up, and then half of their loss at half of the ramp."""
    module, watch = build(segmentation_weight=3.0, ramp_epochs=2.0), Watch()
    fit(tmp_path, module, [0, 1], watch, max_epochs=3)
    for step, metrics in enumerate(watch.metrics):
        weight = 3.0 * max(0.0, (step / 2 - 1) / 2)
        parts = [metrics[f"train/loss_{name}"] for name in ("coarse", "refined", "contrast", "segmentation")]
        expected = parts[0] + parts[1] + 0.01 * parts[2] + weight * parts[3]
        assert metrics["train/loss"] == pytest.approx(expected, rel=1e-5)
        assert (parts[3] > 0) == (metrics["train/labelled"] > 0) == (step >= 2)
    assert {name for name in watch.metrics[-1] if name.startswith("train/")} == set(module.logged_names())


def test_labels_are_a_quarter_of_the_size_and_carry_no_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = build()
    fit(tmp_path, module, [0, 1])
    module.train()
    monkeypatch.setattr(OneStageModule, "current_epoch", 1)
    labels, watched = module.label_batch(sample(0))
    assert set(labels.flatten().tolist()) >= {0, 255}
    assert labels.shape == (2, 12, 12)
    assert not any(value.requires_grad for value in watched.values())
    assert not any(weight.requires_grad for weight in module.teacher.parameters())
    monkeypatch.setattr(OneStageModule, "current_epoch", 0)
    assert (module.label_batch(sample(0))[0] == 255).all()


def test_teacher_is_the_average_of_the_students(tmp_path: Path):
    module, watch = build(teacher_decay=0.3), Watch()
    average = [weight.detach().double().clone() for weight in module.student.parameters()]
    fit(tmp_path, module, [0, 1, 2], watch)
    for step, weights in enumerate(watch.students):
        decay = min(0.3, (1 + step) / (10 + step))
        average = [decay * old + (1 - decay) * new for old, new in zip(average, weights, strict=True)]
    for found, expected in zip(module.teacher.parameters(), average, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    assert any(
        not torch.equal(*pair) for pair in zip(module.teacher.parameters(), module.student.parameters(), strict=True)
    )
    for copied, own in zip(module.teacher.buffers(), module.student.buffers(), strict=True):
        assert torch.equal(copied, own)
    assert module.network.has_prototypes
    assert module.teacher.network.aggregation is module.network.aggregation
    assert not any(part.training for part in module.train().teacher.modules())


def test_without_decay_teacher_and_student_draw_the_same(tmp_path: Path):
    module = build(teacher_decay=0.0)
    fit(tmp_path, module, [0, 1])
    module.eval()
    images = sample(5)["image"]
    with torch.no_grad():
        assert torch.equal(module.teacher(images), module.student(images))


def test_teacher_moves_with_steps_and_not_with_batches(tmp_path: Path):
    module, watch = build(teacher_decay=0.3), Watch()
    average = [weight.detach().double().clone() for weight in module.student.parameters()]
    fit(tmp_path, module, [0, 1, 2, 3], watch, accumulate_grad_batches=2)
    for step, weights in enumerate(watch.students[1::2]):
        decay = min(0.3, (1 + step) / (10 + step))
        average = [decay * old + (1 - decay) * new for old, new in zip(average, weights, strict=True)]
    for found, expected in zip(module.teacher.parameters(), average, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_resumed_training_ends_as_if_it_had_not_been_stopped(tmp_path: Path):
    keep = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=2, save_top_k=-1)
    whole = fit(tmp_path, build(), [0, 1], keep, max_epochs=4, enable_checkpointing=True)
    (path,) = (tmp_path / "kept").glob("epoch=1-*.ckpt")
    other = build()
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.1)  # all that counts comes from the file
    resumed = fit(tmp_path, other, [0, 1], max_epochs=4, ckpt_path=path)
    assert resumed.global_step == whole.global_step == 8
    for name, value in whole.lightning_module.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    stored = torch.load(path, weights_only=True)["state_dict"]
    assert not torch.equal(stored["teacher.head.classifiers.0.weight"], stored["head.classifiers.0.weight"])


def test_another_number_of_prototypes_begins_with_none(tmp_path: Path):
    fit(tmp_path, build(), [0, 1]).save_checkpoint(tmp_path / "a.ckpt")
    other = build(num_prototypes=3)
    with pytest.raises(WeightsError, match=r"num_prototypes 2 in the checkpoint, 3 in this run"):
        fit(tmp_path, other, [0, 1], max_epochs=3, ckpt_path=tmp_path / "a.ckpt")
    memory = RegionMemoryCallback(slots=6, backend="torch", on_mismatch="rebuild")
    trainer = quiet_trainer(tmp_path, max_epochs=3, limit_val_batches=0, callbacks=[memory])
    batches = DataLoader([sample(0), sample(1)], batch_size=None)  # type: ignore[arg-type]
    trainer.fit(other, batches, ckpt_path=tmp_path / "a.ckpt")
    assert trainer.global_step == 6
    assert other.teacher.network.aggregation.prototypes.shape == (3 * 2 + 2, other.embedding_dim)


def test_skips_and_counts_as_if_the_batch_were_not_there(tmp_path: Path):
    plain = {"contrast": False, "poly_power": 0.0, "teacher_decay": 0.05}
    module, other = build(on_non_finite="skip", **plain), build(**plain)
    fit(tmp_path, module, [0, sample(1, torch.nan), 2])
    fit(tmp_path, other, [0, 2])
    assert module.skipped_batches == 2
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=0, atol=0, msg=name)


def test_what_the_teacher_computes_is_watched(tmp_path: Path):
    class Break(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                next(pl_module.teacher.network.coarse_head.parameters()).data.fill_(torch.nan)

    with pytest.raises(NonFiniteError, match=r"teacher\.network\.coarse_head\.conv\.weight"):
        fit(tmp_path, build(final_map="coarse"), [0], Break())


def test_class_without_prototype_gives_no_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = build(low=0.2, high=0.3)
    fit(tmp_path, module, [0, 1])
    aggregation = module.network.aggregation
    valid = aggregation.valid.clone()
    valid[2:4] = False  # of the second class
    aggregation.write(aggregation.prototypes.clone(), valid)
    monkeypatch.setattr(OneStageModule, "current_epoch", 1)
    labels, _ = module.label_batch(sample(1))
    aggregation.write(aggregation.prototypes.clone(), torch.zeros_like(valid))
    none, _ = module.label_batch(sample(1))
    assert 1 in labels[0]
    assert 2 not in labels
    assert 0 not in labels[1]  # it shows the second class, somewhere
    assert (none == 255).all()


def test_images_without_a_tag_teach_background(tmp_path: Path):
    batch = sample(0)
    batch["tags"] = torch.zeros(2, 2)
    watch = Watch()
    fit(tmp_path, build(), [0, batch], watch)
    assert watch.metrics[-1]["train/labelled"] == 1.0
    assert watch.metrics[-1]["train/loss_segmentation"] > 0


def loader(*numbers: int) -> DataLoader[Any]:
    batches = [sample(number) for number in numbers]
    samples = [{name: value[row] for name, value in batch.items()} for batch in batches for row in range(2)]
    return DataLoader(samples, batch_size=2, collate_fn=collate)  # type: ignore[arg-type]


def test_scores_and_masks_are_of_the_network_that_is_asked_for(tmp_path: Path):
    module = build(teacher_decay=0.9, lr=0.05)
    trainer = fit(tmp_path, module, [0, 1, 2])
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    drawn = {}
    for who in ("teacher", "student"):
        loaded = OneStageModule.load_from_checkpoint(tmp_path / "a.ckpt", drawn_by=who)
        assert {name: loaded.hparams[name] for name in ("teacher_warmup", "low", "lr")} == {
            "teacher_warmup": 1, "low": 0.4, "lr": 0.05,
        }  # fmt: skip
        writer = MaskWriter(str(tmp_path / who))
        quiet_trainer(tmp_path, callbacks=[writer]).predict(loaded, loader(0, 1), return_predictions=False)
        assert len(list((tmp_path / who / "masks").iterdir())) == 4
        with torch.no_grad():
            drawn[who] = loaded.eval().segmenter(sample(0)["image"])
            own = loaded.teacher if who == "teacher" else loaded.student
            assert torch.equal(drawn[who], own(sample(0)["image"]))
        (score,) = quiet_trainer(tmp_path).validate(loaded, loader(0, 1), verbose=False)
        assert 0 <= score["val/miou"] <= 1
    assert not torch.equal(*drawn.values())


def test_given_tags_are_all_that_is_drawn(tmp_path: Path):
    module = build(predict_tags="image")
    with torch.no_grad():
        for classifier in module.teacher.head.classifiers:
            classifier.bias.copy_(torch.tensor([0.0, 3.0, 6.0]))
    found = quiet_trainer(tmp_path).predict(module, loader(0))[0]
    assert set(found[0]["labels"].unique().tolist()) == {1}
    module.hparams["predict_tags"] = "none"
    found = quiet_trainer(tmp_path).predict(module, loader(0))[0]
    assert set(found[0]["labels"].unique().tolist()) == {2}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("backbone_mode", "frozen"),
        ("teacher_decay", 1.0),
        ("teacher_decay", -0.1),
        ("teacher_warmup", -1),
        ("pamr_iterations", -1),
        ("low", 0.7),
        ("high", 1.5),
        ("segmentation_weight", -1.0),
        ("ramp_epochs", float("inf")),
        ("drawn_by", "both"),
        ("head", "fcn"),
        ("eval_tags", "predicted"),
        ("lr", "fast"),
    ],
)
def test_values_out_of_range_name_the_argument(name: str, value: Any):
    with pytest.raises(ArgumentError, match=f"^{name}="):
        build(**{name: value})


def test_defaults_follow_the_maps_and_the_warmup():
    module = build(teacher_warmup=None, low=None, high=None, warmup_epochs=4)
    assert [module.hparams[name] for name in ("teacher_warmup", "low", "high")] == [5, 0.5, 0.8]
    module = build(final_map="coarse", low=None, high=None)
    assert [module.hparams[name] for name in ("low", "high")] == [0.05, 0.3]
    assert not set(module.hparams) & {"options", "weights"}


def test_checkpoints_of_other_tasks_are_refused(tmp_path: Path):
    kinds = {
        "localize": RCAModule(2, backbone="resnet14", output_stride=8, num_prototypes=2),
        "segment": SegmentationModule(2, backbone="resnet14"),
        "one_stage": build(),
    }
    for task, module in kinds.items():
        trainer = quiet_trainer(tmp_path)
        trainer.strategy.connect(copy.deepcopy(module))
        trainer.save_checkpoint(tmp_path / f"{task}.ckpt")
    for task, module in kinds.items():
        for other in set(kinds) - {task}:
            with pytest.raises(WeightsError, match=f"is of the task '{other}', not of '{task}'"):
                type(module).load_from_checkpoint(tmp_path / f"{other}.ckpt")
        assert type(module).load_from_checkpoint(tmp_path / f"{task}.ckpt").task == task


def test_starts_from_a_checkpoint_of_rca(tmp_path: Path):
    first = RCAModule(2, ["cat", "dog"], backbone="resnet14", num_prototypes=2)
    trainer = quiet_trainer(tmp_path)
    trainer.strategy.connect(first)
    trainer.save_checkpoint(tmp_path / "rca.ckpt")
    module = build(weights=str(tmp_path / "rca.ckpt"))
    for name, value in first.network.backbone.state_dict().items():
        assert torch.equal(module.network.backbone.state_dict()[name], value)
        assert torch.equal(module.teacher.network.backbone.state_dict()[name], value)
    assert module.hparams["backbone_mode"] == "trained"
    assert module.hparams["teacher_decay_warmup"] is True  # the checkpoint has no prototypes


def test_teacher_that_starts_with_prototypes_is_not_forgotten(tmp_path: Path):
    """Behind weights with prototypes the decay is that of the argument from the first step on."""
    first = RCAModule(2, ["cat", "dog"], backbone="resnet14", num_prototypes=2, background_prototypes=2,
                      output_stride=8, backbone_mode="frozen", embedding_dim=12)  # fmt: skip
    (features,) = first.network.eval().features(torch.randn(4, 3, 64, 64))
    moments = Moments(features.shape[1])
    moments.add(features.transpose(0, 1).flatten(1).T)
    learn_projections(first.network.projections, [moments])
    first.network.aggregation.write(torch.randn_like(first.network.aggregation.prototypes), torch.tensor([True] * 6))
    trainer = quiet_trainer(tmp_path)
    trainer.strategy.connect(first)
    trainer.save_checkpoint(tmp_path / "rca.ckpt")
    start = {"weights": str(tmp_path / "rca.ckpt"), "teacher_decay": 0.9}
    assert build(**start, teacher_decay_warmup=True).hparams["teacher_decay_warmup"] is True
    module, watch = build(**start), Watch()
    assert module.hparams["teacher_decay_warmup"] is False
    average = [weight.detach().double().clone() for weight in module.student.parameters()]
    fit(tmp_path, module, [0, 1, 2], watch)
    for weights in watch.students:
        average = [0.9 * old + 0.1 * new for old, new in zip(average, weights, strict=True)]
    for found, expected in zip(module.teacher.parameters(), average, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_checkpoints_of_before_the_warmup_of_the_decay_could_be_left_out_have_it(tmp_path: Path):
    trainer = quiet_trainer(tmp_path)
    trainer.strategy.connect(build())
    trainer.save_checkpoint(tmp_path / "new.ckpt")
    content = torch.load(tmp_path / "new.ckpt", weights_only=True)
    del content["hyper_parameters"]["teacher_decay_warmup"]
    torch.save(content, tmp_path / "old.ckpt")
    assert OneStageModule.load_from_checkpoint(tmp_path / "old.ckpt").hparams["teacher_decay_warmup"] is True
