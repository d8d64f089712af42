"""RCA behind a transformer of timm on one and on two gloo processes: trained in part, and frozen with its attention."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.multiprocessing as mp

from rca_lightning import FeatureCacheCallback, RCAModule, RegionMemoryCallback, WSSSDataModule
from tests.distributed import equality_data as given
from tests.distributed.launching import free_port
from tests.quiet_trainer import quiet_trainer

pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)

_BACKBONE = "timm:vit_tiny_patch16_224"
_SMALL = {"num_prototypes": 2, "background_prototypes": 2, "confidence": 0.0, "embedding_stages": 2, "flip": False}
_FROZEN_STAGES = 10  # patches, positions and nine blocks


def _trained(folder: Path, cluster: dict[str, Any]) -> RCAModule:
    module = RCAModule(
        given.CLASSES, backbone=_BACKBONE, lr=1e-3, warmup_epochs=1, frozen_stages=_FROZEN_STAGES, **_SMALL
    )  # fmt: skip
    memory = RegionMemoryCallback(slots=5, backend="torch")
    options = {"max_epochs": 2, "precision": "64-true", "limit_val_batches": 0, "use_distributed_sampler": False}
    trainer = quiet_trainer(folder, callbacks=[memory], **cluster, **options)
    trainer.fit(module, given.loader(given.random_tags(12), [6, 6]))
    return module


def _frozen(folder: Path, cluster: dict[str, Any]) -> RCAModule:
    data = WSSSDataModule(
        "synthetic", folder.parent / "photographs", synthetic_train_images=9, synthetic_val_images=2,
        synthetic_image_size=48, batch_size=4 // cluster["devices"], num_workers=0,
    )  # fmt: skip
    module = RCAModule(
        data.num_classes, data.class_names, backbone=_BACKBONE, weights="none", backbone_mode="frozen",
        embedding_dim=8, propagation_affinity="attention", seed_threshold=0.3, **_SMALL,
    )  # fmt: skip
    parts = [FeatureCacheCallback(str(folder / "features")), RegionMemoryCallback(backend="torch")]
    quiet_trainer(folder, max_epochs=3, num_sanity_val_steps=0, callbacks=parts, **cluster).fit(module, data)
    return module


def _run(rank: int, processes: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["MASTER_PORT"] = str(port)
    if processes > 1:
        os.environ.update(LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
    cluster = {"devices": processes, "strategy": "ddp" if processes > 1 else "auto"}
    folder.mkdir(exist_ok=True)
    for case in (_trained, _frozen):
        L.seed_everything(1, verbose=False)
        module = case(folder, cluster)
        torch.save(module.state_dict(), folder / f"{case.__name__}-{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """State of the module after each case, of each process: `<number of processes>/<case>-<rank>.pt`."""
    root = tmp_path_factory.mktemp("transformer")
    for processes in (1, 2):
        mp.start_processes(
            _run, args=(processes, free_port(), root / str(processes)), nprocs=processes, start_method="fork"
        )
    return root


@pytest.mark.parametrize("case", ["_trained", "_frozen"])
def test_two_processes_end_as_one(folder: Path, case: str):
    one, first, second = (
        torch.load(folder / place / f"{case}-{rank}.pt", weights_only=True)
        for place, rank in (("1", 0), ("2", 0), ("2", 1))
    )
    assert bool(one["network.aggregation.valid"].any())
    for name, value in one.items():
        torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
        assert torch.equal(second[name], first[name]), name


def test_frozen_blocks_do_not_move_and_the_others_do(folder: Path):
    L.seed_everything(1, verbose=False)
    before = RCAModule(given.CLASSES, backbone=_BACKBONE, frozen_stages=_FROZEN_STAGES).state_dict()
    after = torch.load(folder / "2" / "_trained-0.pt", weights_only=True)
    for name in before:
        if not name.startswith("network.backbone.model."):
            continue
        block = name.split("blocks.")[1].split(".")[0] if "blocks." in name else None
        frozen = int(block) < 9 if block else not name.endswith(("model.norm.weight", "model.norm.bias"))
        moved = not torch.equal(after[name].float(), before[name].float())
        assert moved != frozen, name
