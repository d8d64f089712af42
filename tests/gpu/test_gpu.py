"""The same on a CUDA device as on the CPU."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
import torch.nn.functional as F

from rca_lightning import (
    RCAModule,
    RegionMemory,
    RegionMemoryCallback,
    WSSSDataModule,
    kmeans,
    region_contrast_loss,
)
from rca_lightning.rca import contrast as streaming
from rca_lightning.rca.contrast import Positives

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is there"),
]


def groups(classes: int = 3, points: int = 60, dim: int = 16) -> torch.Tensor:
    """Unit vectors `(classes, points, dim)` around four directions a class, so that one clustering is the best."""
    draw = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(classes, 4, dim, generator=draw), dim=2)
    noise = 0.05 * torch.randn(classes, points, dim, generator=draw)
    return F.normalize(centres.repeat_interleave(points // 4, dim=1) + noise, dim=2)


@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_clusters_as_good_as_on_the_cpu(backend: str):
    if backend == "faiss":
        pytest.importorskip("faiss", reason="pip install 'rca-lightning[gpu]'")
    points = groups()
    expected = kmeans(points, 4, backend="torch")
    found = kmeans(points.cuda(), 4, backend=backend)
    assert found.centroids.device.type == "cuda"
    assert found.backend in {"torch-cuda", "faiss-gpu", "faiss-cpu"}
    torch.testing.assert_close(found.objective.cpu(), expected.objective, rtol=1e-3, atol=1e-4)
    assert found.valid.all()


def test_memory_holds_the_same_on_either_device():
    draw = torch.Generator().manual_seed(1)
    on_cpu, on_gpu = RegionMemory(3, 5, 8), RegionMemory(3, 5, 8).to("cuda")
    for step in range(6):  # 24 regions over 15 slots: they wrap around
        regions, labels = torch.randn(4, 8, generator=draw), torch.randint(3, (4,), generator=draw)
        ids = [f"photo {step} {index}" for index in range(4)]
        on_cpu.enqueue(regions, labels, ids, step)
        on_gpu.enqueue(regions.cuda(), labels.cuda(), ids, step)
    assert on_gpu.embeddings.device.type == on_gpu.counts.device.type == "cuda"
    expected, found = on_cpu.state_dict(), on_gpu.state_dict()
    torch.testing.assert_close(found.pop("embeddings"), expected.pop("embeddings"))
    assert expected["counts"].sum() > 10
    for name, value in expected.items():
        assert torch.equal(value, found[name]) if isinstance(value, torch.Tensor) else value == found[name], name
    assert on_gpu.image_id(0, 0) == on_cpu.image_id(0, 0) != ""


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("positives", ["all", "prototypes", "hardest"])
def test_memory_on_the_host_is_read_by_blocks(dtype: str, positives: Positives, monkeypatch: pytest.MonkeyPatch):
    draw = torch.Generator().manual_seed(1)
    classes, slots, dim = 8, 500, 256
    memory = RegionMemory(classes, slots, dim, placement="host", dtype=dtype).to("cuda")
    values, labels = torch.randn(classes * slots, dim, generator=draw), torch.arange(classes * slots) % classes
    memory.enqueue(values.cuda(), labels.cuda(), ["photo"] * len(labels), step=0)
    assert memory.embeddings.device.type == "cpu"
    assert memory.embeddings.is_pinned()
    own = torch.arange(6, device="cuda")
    absent = torch.arange(classes, device="cuda")[None] != own[:, None]
    prototypes = torch.randn(classes, 2, dim, generator=draw).cuda()
    given = {"valid": memory.valid, "positives": positives, "prototypes": prototypes}
    found, expected = (torch.randn(6, dim, generator=draw).cuda().requires_grad_() for _ in range(2))
    expected.data.copy_(found.data)
    region_contrast_loss(expected, own, absent, memory.embeddings.cuda().float(), **given).backward()
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 4 * dim * 300)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    region_contrast_loss(found, own, absent, memory.embeddings, **given).backward()
    assert torch.cuda.max_memory_allocated() - before < memory.embeddings.nbytes
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("storage", [{}, {"placement": "host", "dtype": "float16"}])
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_fit_and_predict(precision: str, storage: dict[str, str], tmp_path: Path):
    data = WSSSDataModule(
        "synthetic", tmp_path / "data", synthetic_train_images=8, synthetic_val_images=2, synthetic_image_size=64,
        crop_size=64, batch_size=4, num_workers=0, train_masks=False,
    )  # fmt: skip
    module = RCAModule(
        data.num_classes, data.class_names, backbone="resnet14", output_stride=8, frozen_batchnorm=False,
        optimizer="adamw", lr=0.002, new_layer_lr_ratio=1, num_prototypes=2, background_prototypes=4, confidence=0.0,
        warmup_epochs=1,
    )  # fmt: skip
    callback = RegionMemoryCallback(slots=20, backend="torch", **storage)
    before = {name: value.clone() for name, value in module.named_parameters()}
    trainer = L.Trainer(
        accelerator="gpu", devices=1, precision=precision, max_epochs=2, limit_train_batches=1, logger=False,
        callbacks=[callback], enable_checkpointing=False, enable_progress_bar=False, num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, data)
    assert trainer.global_step == 2
    assert callback.memory.embeddings.device.type == ("cpu" if storage else "cuda")
    assert callback.memory.embeddings.dtype == (torch.float16 if storage else torch.float32)
    assert module.network.aggregation.valid.any()
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    assert all(torch.isfinite(value).all() for value in module.parameters())
    # The scale of the loss is a guess at first, so half precision may skip a step; not both of them.
    assert any(not torch.equal(before[name], value.cpu()) for name, value in module.named_parameters())
    results = [result for batch in trainer.predict(module, data) for result in batch]
    assert len(results) == 2
    for result in results:
        assert result["seeds"].maps.device.type == "cpu"
        assert result["seeds"].maps.dtype == torch.float32
        assert 0 <= float(result["seeds"].maps.min()) <= float(result["seeds"].maps.max()) <= 1
