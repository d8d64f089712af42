"""A fit behind a frozen backbone on one and on two gloo processes gives the same module."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.multiprocessing as mp

from rca_lightning import FeatureCacheCallback, RCAModule, RegionMemoryCallback, WSSSDataModule
from rca_lightning.callbacks import tag_calibration
from rca_lightning.data.synthetic.dataset import generate
from tests.distributed.launching import free_port
from tests.quiet_trainer import quiet_trainer

CASES = {"uneven": (13, 5), "seeded": (13, 5), "fewer_than_a_batch": (3, 2), "one_photograph": (1, 2)}
BATCH = 4  # of all processes together


class Shared(L.Callback):
    """How many photographs the backbone of this rank has seen."""

    def __init__(self) -> None:
        self.photographs = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.network.backbone.register_forward_pre_hook(self._count)

    def _count(self, _: Any, inputs: Any) -> None:
        self.photographs += len(inputs[0])


def _fit(rank: int, processes: int, port: int, folder: Path, case: str) -> None:
    torch.set_num_threads(1)
    os.environ["MASTER_PORT"] = str(port)
    if processes > 1:
        os.environ.update(LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
    L.seed_everything(1, verbose=False)
    train, val = CASES[case]
    data = WSSSDataModule(
        "synthetic", folder.parent / "photographs", synthetic_train_images=train, synthetic_val_images=val,
        synthetic_image_size=48, batch_size=BATCH // processes, num_workers=0,
        seed_dir="seeds" if case == "seeded" else None,
    )  # fmt: skip
    tag_calibration.LEAST_IMAGES = 10
    torch.manual_seed(rank)  # random weights of their own: those of the first rank count
    module = RCAModule(
        data.num_classes, data.class_names, backbone="resnet14", weights="none", backbone_mode="frozen",
        output_stride=8, embedding_dim=16, num_prototypes=2, background_prototypes=3, seed_threshold=0.3,
    )  # fmt: skip
    shared = Shared()
    parts = [shared, FeatureCacheCallback(str(folder / "features")), RegionMemoryCallback(backend="torch")]
    cluster = {"devices": processes, "strategy": "ddp" if processes > 1 else "auto"}
    trainer = quiet_trainer(folder, max_epochs=2, num_sanity_val_steps=0, callbacks=parts, **cluster)
    trainer.fit(module, data)
    scores = {name: float(value) for name, value in trainer.callback_metrics.items() if name[:4] in ("val/", "trai")}
    memory = parts[-1].memory.state_dict()
    state = {
        "weights": module.state_dict(), "memory": memory, "scores": scores, "photographs": shared.photographs,
        "steps": trainer.global_step,
    }  # fmt: skip
    torch.save(state, folder / f"{rank}.pt")


def _write_seeds(folder: Path, train: int, val: int) -> None:
    """The masks of every second photograph."""
    root = generate(folder, train_images=train, val_images=val, image_size=48)
    (root / "seeds").mkdir()
    for path in sorted((root / "SegmentationClass").iterdir())[::2]:
        (root / "seeds" / path.name).write_bytes(path.read_bytes())


@pytest.fixture(scope="module", params=list(CASES))
def states(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process, and each of two, ended with."""
    root, states = tmp_path_factory.mktemp(request.param), []
    if request.param == "seeded":
        _write_seeds(root / "photographs", *CASES["seeded"])
    for processes in (1, 2):
        folder = root / str(processes)
        arguments = (processes, free_port(), folder, request.param)
        mp.start_processes(_fit, args=arguments, nprocs=processes, start_method="fork")
        states += [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]
    return states


def test_module_and_memory_are_those_of_one_process(states):
    one, *ranks = states
    for rank in ranks:
        assert rank["steps"] == one["steps"]
        for part in ("weights", "memory"):
            for name, value in one[part].items():
                found = rank[part][name]
                if isinstance(value, torch.Tensor):
                    torch.testing.assert_close(
                        found, value, rtol=1e-5, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
                    )
                else:
                    assert found == value, name
        assert rank["scores"] == pytest.approx(one["scores"], abs=1e-6, nan_ok=True)
    assert bool(one["weights"]["network.pca.learned"])
    assert bool(one["weights"]["network.coarse_head.conv.weight"].any())
    assert bool(one["weights"]["tag_calibration.fitted"]) == (one["photographs"] > 13)


def test_ranks_agree_bit_for_bit(states):
    _, first, second = states
    for part in ("weights", "memory"):
        for name, value in first[part].items():
            found = second[part][name]
            assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value, name


def test_ranks_share_the_computing(states):
    one, first, second = states
    assert first["photographs"] + second["photographs"] == one["photographs"]
    assert second["photographs"] > 0
    assert 0 <= first["photographs"] - second["photographs"] <= 2 + 13  # with the sample of the projection


def test_seeds_decide_the_first_round(tmp_path):
    """Else the ranks above would agree without reading them."""
    (tmp_path / "plain").mkdir()
    (tmp_path / "seeded").mkdir()
    _write_seeds(tmp_path / "photographs", *CASES["seeded"])
    for case in ("uneven", "seeded"):
        mp.start_processes(
            _fit, args=(1, free_port(), tmp_path / {"uneven": "plain"}.get(case, case), case), nprocs=1,
            start_method="fork",
        )  # fmt: skip
    plain, seeded = (torch.load(tmp_path / name / "0.pt", weights_only=True) for name in ("plain", "seeded"))
    name = "network.aggregation.prototypes"
    assert not torch.allclose(plain["weights"][name], seeded["weights"][name], atol=1e-3)
