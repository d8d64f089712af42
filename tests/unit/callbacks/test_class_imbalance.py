"""Training where classes are as uneven as can be: nothing fails, nothing is NaN, and the log says what is amiss."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from tests.quiet_trainer import quiet_trainer
from torch.utils.data import DataLoader

from rca_lightning import RCAModule, RegionMemoryCallback
from rca_lightning.callbacks import region_memory

NAMES = ["cat", "dog", "cow"]


def batches(classes: list[int]) -> list[dict[str, Any]]:
    """Two images a batch, each of one class, with a mask that has it in one half."""
    draw = torch.Generator().manual_seed(0)
    made = []
    for first in range(0, len(classes), 2):
        labels = torch.tensor(classes[first : first + 2])
        mask = torch.zeros(len(labels), 64, 64, dtype=torch.long)
        mask[:, :32] = labels[:, None, None] + 1
        made.append(
            {
                "image": torch.randn(len(labels), 3, 64, 64, generator=draw),
                "tags": torch.nn.functional.one_hot(labels, len(NAMES)).float(),
                "image_id": [f"i{first + n}" for n in range(len(labels))],
                "mask": mask,
                "original_size": torch.full((len(labels), 2), 64),
            }
        )
    return made


def fit(folder, data, module_options=None, **memory_options):
    torch.manual_seed(0)
    options = {"confidence": 0.0, "num_prototypes": 3, "background_prototypes": 2, "warmup_epochs": 1, "alpha": 1.0}
    module = RCAModule(3, NAMES, backbone="resnet14", lr=1e-3, flip=False, **(options | (module_options or {})))
    owner = RegionMemoryCallback(slots=4, **{"backend": "torch", **memory_options})
    trainer = quiet_trainer(folder, max_epochs=3, callbacks=[owner], num_sanity_val_steps=0)
    trainer.fit(module, DataLoader(data, batch_size=None), DataLoader(data, batch_size=None))
    for name, value in module.state_dict().items():
        assert torch.isfinite(value).all(), name
    for name, value in trainer.callback_metrics.items():
        # The mean over classes that occur, where none does.
        of_tags = name in ("val/classification_map", "val/tag_f1", "val/tag_f1_macro")
        assert math.isfinite(value) or (of_tags and not data[0]["tags"].any()), name
    return module, owner, trainer


# Prototypes by each way that divides by the regions, or the prototypes of a class.
WAYS = [
    {},
    {"backend": "faiss", "regions_per_prototype": 2},
    {"clustering": "sinkhorn", "drop_below": 0.0},
    {"clustering": "spherical"},
]


@pytest.mark.parametrize("memory_options", WAYS, ids=lambda options: options.get("clustering", str(len(options))))
def test_class_with_one_image(tmp_path, caplog, monkeypatch, memory_options):
    tables = {}
    monkeypatch.setattr(
        region_memory, "log_table", lambda _, name, columns, rows: tables.update({name: (columns, rows)})
    )
    with caplog.at_level(logging.WARNING, "rca_lightning"):
        module, owner, _ = fit(tmp_path, batches([0, 1, 0, 1, 0, 2]), **memory_options)
    _, valid = module.network.aggregation.by_class()
    assert owner.memory.counts[2] > 0
    assert valid[2].any()
    assert len({owner.memory.image_id(2, slot) for slot in range(int(owner.memory.counts[2]))}) == 1
    assert owner.diagnostics["cow"]["regions"] == int(owner.memory.counts[2])
    columns, rows = tables["prototypes/by_class"]
    assert [dict(zip(columns, row, strict=True)) for row in rows] == [
        {"class": name, **of_class} for name, of_class in owner.diagnostics.items()
    ]
    assert "no region in memory" not in caplog.text


def test_class_that_is_never_seen_with_confidence(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "rca_lightning"):
        module, owner, trainer = fit(tmp_path, batches([0, 1, 0, 1, 2, 2]), {"confidence": 1.0})
    assert owner.memory.counts[:3].tolist() == [0, 0, 0]
    assert not module.network.aggregation.by_class()[1].any()
    assert "cat, dog, cow: no region in memory, so no prototype. Remedy: lower --model.confidence" in caplog.text
    assert trainer.callback_metrics["train/loss_contrast"] == 0
    assert trainer.callback_metrics["memory/empty_classes"] == 3


def test_all_images_of_one_class(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "rca_lightning"):
        module, _, trainer = fit(tmp_path, batches([1, 1, 1, 1]))
    assert module.network.aggregation.by_class()[1].any(dim=1).tolist() == [False, True, False]
    assert "cat, cow: no region in memory, so no prototype" in caplog.text
    assert "dog: the only class in memory, so the contrast has no negatives and is 0. Remedy: give" in caplog.text
    assert trainer.callback_metrics["train/loss_contrast"] == 0
    assert trainer.callback_metrics["val/miou_true_tags"] > 0


def test_images_without_a_tag(tmp_path):
    data = batches([0, 1])
    for batch in data:
        batch["tags"].zero_()
    _, owner, _ = fit(tmp_path, data)
    assert owner.memory.counts.tolist() == [0, 0, 0, 0]


def test_class_whose_prototypes_are_all_dropped(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "rca_lightning"):
        module, owner, _ = fit(tmp_path, batches([0, 1, 0, 2]), drop_below=1.0)
    assert (owner.memory.counts[:3] > 0).all()
    valid = module.network.aggregation.by_class()[1].any(dim=1)
    if not valid.all():
        assert "regions in memory, but no prototype. Remedy: lower --memory.drop_below" in caplog.text
