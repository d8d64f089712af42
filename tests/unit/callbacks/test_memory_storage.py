"""Training with a memory on the host or in half precision: it is told, used, saved and taken up again."""

from __future__ import annotations

import logging

import pytest
import torch
from tests.quiet_trainer import quiet_trainer
from torch.utils.data import DataLoader

from rca_lightning import RCAModule, RegionMemoryCallback, kmeans
from rca_lightning.callbacks import region_memory
from rca_lightning.cli.main import main
from rca_lightning.errors import ArgumentError
from rca_lightning.rca import prototypes as blocks


def batches() -> DataLoader:
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 64, 64, generator=draw)
    tags = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    made = [
        {"image": images[n : n + 2], "tags": tags, "image_id": [f"{n}", f"{n + 1}"], "original_size": torch.ones(2, 2)}
        for n in (0, 2)
    ]
    return DataLoader(made, batch_size=None)


def build() -> RCAModule:
    torch.manual_seed(0)
    return RCAModule(2, ["cat", "dog"], backbone="resnet14", frozen_batchnorm=False, lr=1e-3, confidence=0.0, alpha=1.0,
                     num_prototypes=2, background_prototypes=2, region_map="coarse", warmup_epochs=1)  # fmt: skip


def fit(folder, epochs: int = 2, ckpt_path=None, **options):
    owner = RegionMemoryCallback(slots=6, backend="torch", **options)
    trainer = quiet_trainer(folder, max_epochs=epochs, callbacks=[owner])
    module = build()
    trainer.fit(module, batches(), ckpt_path=ckpt_path, weights_only=True)
    return trainer, module, owner


def test_half_precision_trains_nearly_the_same(tmp_path, monkeypatch):
    _, module, owner = fit(tmp_path)
    expected, kept = module.network.aggregation.prototypes.clone(), owner.memory
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)  # class after class
    trainer, module, owner = fit(tmp_path, placement="host", dtype="float16")
    assert owner.memory.embeddings.dtype == torch.float16
    assert torch.equal(owner.memory.counts, kept.counts)
    assert torch.equal(owner.memory.ids, kept.ids)
    assert trainer.callback_metrics["train/loss_contrast"] > 0
    assert module.network.aggregation.valid.any()
    torch.testing.assert_close(module.network.aggregation.prototypes, expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("first", ["float32", "float16"])
def test_checkpoint_goes_on_with_the_other_dtype(tmp_path, first):
    trainer, _, owner = fit(tmp_path, epochs=1, dtype=first)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    then = {"float32": "float16", "float16": "float32"}[first]
    _, _, again = fit(tmp_path, epochs=1, ckpt_path=tmp_path / "last.ckpt", dtype=then, placement="host")
    assert torch.equal(again.memory.embeddings, owner.memory.embeddings.to(again.memory.embeddings.dtype))
    assert torch.equal(again.memory.ids, owner.memory.ids)


@pytest.mark.parametrize("room", [0, 1])
def test_size_is_told_before_the_memory_is_made(tmp_path, caplog, monkeypatch, room):
    def refuse(*_, **__):
        raise MemoryError

    owner, module = RegionMemoryCallback(slots=6, dtype="float16"), build()
    size = 3 * 6 * module.embedding_dim * 2
    monkeypatch.setattr(region_memory, "_total_bytes", lambda device: 4 * size - room)
    monkeypatch.setattr(region_memory, "RegionMemory", refuse)
    with caplog.at_level(logging.INFO, "rca_lightning"), pytest.raises(MemoryError):
        quiet_trainer(tmp_path, max_epochs=1, callbacks=[owner]).fit(module, batches())
    told = {record.levelname: record.message for record in caplog.records if "region memory" in record.message}
    shape = f"region memory: 3 classes x 6 slots x {module.embedding_dim} channels, float16"
    assert told["INFO"] == f"{shape}: {size / 2**20:.1f} MiB on cpu"
    assert ("--memory.placement host" in told.get("WARNING", "")) == (room > 0)


def test_memory_of_the_host_is_known():
    assert region_memory._total_bytes(torch.device("cpu")) > 2**20
    assert region_memory._total_bytes(torch.device("meta")) == float("inf")


def test_background_is_clustered_by_k_means_whatever_the_classes_are_by(tmp_path):
    _, module, owner = fit(tmp_path, epochs=1, clustering="spherical", regions_per_prototype=100, seed=4)
    found = module.network.aggregation.prototypes[-2:]
    memory = owner.memory
    expected = kmeans(memory.embeddings[2:], 2, valid=memory.valid[2:], seed=5, backend="torch").centroids[0]
    assert memory.valid[2].sum() > 2
    torch.testing.assert_close(found, torch.nn.functional.normalize(expected, dim=1))
    assert module.network.aggregation.by_class()[1].sum(dim=1).tolist() == [1, 1]


@pytest.mark.parametrize("wrong", [{"placement": "gpu"}, {"dtype": "bfloat16"}])
def test_wrong_arguments_are_refused_at_once(wrong):
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        RegionMemoryCallback(**wrong)


def test_checkpoint_that_was_only_looked_at_is_not_gone_on_from(tmp_path):
    trainer, module, owner = fit(tmp_path, epochs=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    expected = owner.memory.state_dict()
    owner = RegionMemoryCallback(slots=6, backend="torch")
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=[owner])
    trainer.predict(module, batches(), ckpt_path=tmp_path / "last.ckpt", weights_only=True, return_predictions=False)
    trainer.fit(build(), batches())
    found = owner.memory.state_dict()
    for name, value in expected.items():
        assert torch.equal(value, found[name]) if isinstance(value, torch.Tensor) else value == found[name], name


@pytest.mark.parametrize("option", ["warm_start", "rule", "merge_above"])
def test_removed_argument_on_the_command_line_is_one_line(option, capfd):
    with pytest.raises(SystemExit) as left:
        main(["fit", f"--memory.{option}", "1"])
    assert left.value.code == 2
    first, *rest = capfd.readouterr().err.splitlines()
    assert first.startswith(f"rca: memory.{option}: gone since 0.2; ")
    assert rest == ["See: rca fit --help"]
