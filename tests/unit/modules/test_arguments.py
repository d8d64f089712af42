"""What `RCAModule` accepts, and what of it a checkpoint keeps."""

from __future__ import annotations

import enum
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.quiet_trainer import quiet_trainer

from rca_lightning import SegmentationModule
from rca_lightning.errors import ArgumentError
from rca_lightning.modules.hyperparameters import checked_arguments
from rca_lightning.modules.rca_module import RCAModule

GOOD = {
    "self": object(),
    "__class__": RCAModule,
    "num_classes": 2,
    "class_names": ["cat", "dog"],
    "weights": "/somewhere/resnet.pth",
    "weights_sha256": "0" * 64,
    "backbone": "resnet18",
    "stride_in": "3x3",
    "backbone_mode": "trained",
    "padding_mode": "zeros",
    "channels_last": False,
    "attention_region_threshold": 0.5,
    "attention_background_threshold": 0.05,
    "propagation_steps": 1,
    "propagation_power": 2.0,
    "propagation_affinity": "cosine",
    "region_threshold": 0.5,
    "background_threshold": 0.05,
    "confidence": 0.5,
    "tag_threshold": None,
    "seed_threshold": None,
    "alpha": 0.1,
    "beta": 1.0,
    "warmup_epochs": 1,
    "projection": "learned",
    "embedding_stages": None,
    "contrast": True,
    "aggregation": True,
    "final_map": "attention",
    "positives": "all",
    "scales": (1.0,),
    "max_side": 1280,
    "on_non_finite": "raise",
}


def test_keeps_all_but_where_weights_came_from():
    kept = checked_arguments(GOOD)
    assert kept == {k: v for k, v in GOOD.items() if k not in {"self", "__class__", "weights", "weights_sha256"}}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_classes", 1000),
        ("class_names", None),
        *((name, share) for name in ("region_threshold", "confidence", "seed_threshold") for share in (0.0, 1.0)),
        ("alpha", 0.0),
        ("beta", 0.0),
        ("warmup_epochs", 0),
        ("propagation_steps", 0),
        ("attention_region_threshold", 1.0),
        ("embedding_stages", 1),
        ("scales", (0.5, 2.0)),
    ],
)
def test_edges_are_accepted(name, value):
    given = {**GOOD, "class_names": None, name: value}
    assert checked_arguments(given)[name] == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_classes", 0),
        ("class_names", ["cat"]),
        ("embedding_stages", 0),
        ("propagation_steps", -1),
        ("propagation_power", 0.0),
        ("attention_region_threshold", 1.5),
        ("attention_background_threshold", -0.5),
        ("class_names", []),
        ("region_threshold", -0.1),
        ("background_threshold", 1.1),
        ("confidence", 2.0),
        ("tag_threshold", float("nan")),
        ("seed_threshold", 20.0),
        ("seed_threshold", -0.01),
        ("alpha", -1.0),
        ("beta", -0.5),
        ("warmup_epochs", -1),
        ("scales", ()),
        ("scales", (1.0, 0.0)),
        ("max_side", 8),
    ],
)
def test_value_out_of_range_names_the_argument(name, value):
    with pytest.raises(ArgumentError) as caught:
        checked_arguments({**GOOD, name: value})
    assert str(caught.value).startswith(f"{name}={value!r}: ")


@pytest.mark.parametrize("kind", ["attention", "keys"])
def test_affinity_of_a_transformer_is_refused_where_nothing_is_propagated_or_there_is_none(kind):
    checked_arguments({**GOOD, "propagation_affinity": kind})
    with pytest.raises(ArgumentError, match=rf"propagation_affinity='{kind}': nothing is propagated"):
        checked_arguments({**GOOD, "propagation_affinity": kind, "propagation_steps": 0})
    with pytest.raises(ArgumentError, match=r"backbone='ResNet': it has no attention"):
        RCAModule(num_classes=2, backbone="resnet14", propagation_affinity=kind)


def test_module_checks_before_it_builds_and_keeps_no_path():
    with pytest.raises(ArgumentError, match=r"beta=-1\.0"):
        RCAModule(num_classes=2, backbone="no such network", beta=-1.0)
    module = RCAModule(num_classes=2, backbone="resnet18", alpha=0.3)
    assert module.hparams["alpha"] == 0.3
    assert not {"self", "__class__", "weights", "weights_sha256"} & set(module.hparams)


def test_positives_cannot_be_prototypes_where_there_are_none():
    checked_arguments({**GOOD, "positives": "prototypes"})
    with pytest.raises(ArgumentError, match="positives"):
        checked_arguments({**GOOD, "positives": "prototypes", "aggregation": False})
    checked_arguments({**GOOD, "positives": "prototypes", "aggregation": False, "contrast": False})


@pytest.mark.parametrize("needs_it", [{"final_map": "refined"}, {"final_map": "mean"}])
def test_a_second_head_without_weight_is_refused_where_it_is_needed(needs_it):
    checked_arguments({**GOOD, "beta": 0.0})
    with pytest.raises(ArgumentError, match=r"beta.*second head"):
        checked_arguments({**GOOD, "beta": 0.0, **needs_it})
    checked_arguments({**GOOD, "beta": 0.0, **needs_it, "aggregation": False})
    checked_arguments({**GOOD, "beta": 0.5, **needs_it})


class Optimizer(str, enum.Enum):
    SGD = "sgd"


FOREIGN = {
    "num_classes": np.int64(2),
    "class_names": np.array(["cat", "dog"]),
    "backbone": np.str_("resnet14"),
    "frozen_batchnorm": np.bool_(True),
    "scales": torch.tensor([0.5, 1.0]),
    "optimizer": Optimizer.SGD,
    "lr": np.float64(0.1),
    "weight_decay": torch.tensor(0.5),
    "output_stride": np.int32(16),
}


@pytest.mark.parametrize("kind", [RCAModule, SegmentationModule])
def test_arguments_of_numpy_can_be_loaded_again(kind: Any, tmp_path: Path):
    module = kind(**FOREIGN, weights="none")
    trainer = quiet_trainer(tmp_path)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = kind.load_from_checkpoint(tmp_path / "a.ckpt")  # reads no classes, but plain values
    assert loaded.hparams == module.hparams
    for name in FOREIGN:
        assert type(loaded.hparams[name]) in (int, str, bool, float, list), name
    assert loaded.class_names == ["cat", "dog"]


@pytest.mark.parametrize(
    "value", [object(), lambda: 1, Path, torch.zeros(2, 2), {"a": 1}], ids=lambda value: type(value).__name__
)
@pytest.mark.parametrize("kind", [RCAModule, SegmentationModule])
def test_whatever_no_checkpoint_can_hold_is_one_sentence(kind: Any, value: Any):
    for name in inspect.signature(kind).parameters:
        with pytest.raises(ArgumentError, match=rf"^{name}="):
            kind(**{"num_classes": 2, "backbone": "resnet14", name: value})
