"""Two gloo processes on the CPU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import yaml

from rca_lightning.distributed import broadcast_from_first, gather_uneven
from tests.integration.conftest import config, synthetic_root  # noqa: F401  (fixtures)

ROOT = Path(__file__).resolve().parents[2]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _gather(rank: int, port: int, lengths: list[int], folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=len(lengths))
    values = torch.arange(lengths[rank] * 2, dtype=torch.float32).reshape(-1, 2) + 100 * rank
    labels = torch.full((lengths[rank],), rank)
    gathered = gather_uneven(values, labels)
    number = torch.tensor([rank + 5.0])
    broadcast_from_first(number)
    torch.save((*gathered, number), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("lengths", [[3, 1], [0, 2], [2, 0], [0, 0]])
def test_gather_uneven(lengths: list[int], tmp_path: Path):
    mp.spawn(_gather, args=(_free_port(), lengths, str(tmp_path)), nprocs=2)
    expected = torch.cat([torch.arange(n * 2.0).reshape(-1, 2) + 100 * rank for rank, n in enumerate(lengths)])
    for rank in range(2):
        values, labels, number = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(values, expected)
        assert labels.tolist() == [0] * lengths[0] + [1] * lengths[1]
        assert number.item() == 5.0


def _rca(command: str, path: Path, *more: object) -> None:
    path_of_imports = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=path_of_imports, MASTER_PORT=str(_free_port()))
    ddp = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    words = [sys.executable, "-m", "rca_lightning", command, "--config", str(path), *ddp, *map(str, more)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.parametrize("uneven", [False, True])
def test_memory_and_prototypes_equal_on_both_ranks(config: Path, tmp_path: Path, uneven: bool):  # noqa: F811
    content = yaml.safe_load(config.read_text())
    content["data"]["batch_size"] = 4
    watch = [{"class_path": "tests.distributed.observing.WriteDown", "init_args": {"folder": str(tmp_path)}}]
    drop = [{"class_path": "tests.distributed.observing.DropRegions"}] if uneven else []
    content["trainer"]["callbacks"] = drop + content["trainer"]["callbacks"] + watch
    config.write_text(yaml.safe_dump(content))
    _rca("fit", config)
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(2))
    if uneven:
        assert second["received"][0] == 0
        assert first["received"] != second["received"]
    assert int(first["memory"]["counts"].sum()) > 0
    assert bool(first["module"]["network.aggregation.valid"].any())
    for part in ("memory", "module"):
        for name, value in first[part].items():
            # Running statistics of BatchNorm are each rank's own until the next forward pass.
            if "running_" in name or name.endswith("num_batches_tracked"):
                continue
            found = second[part][name]
            assert torch.equal(value, found) if isinstance(value, torch.Tensor) else value == found, name


def test_prediction_covers_each_image_once(config: Path, tmp_path: Path):  # noqa: F811
    _rca("fit", config, "--trainer.max_epochs=1", "--trainer.limit_val_batches=0")
    checkpoint = tmp_path / "run" / "last.ckpt"
    _rca("predict", config, "--ckpt_path", checkpoint, "--data.predict_split=train")
    content = yaml.safe_load(config.read_text())
    wanted = set(Path(content["data"]["split_files"]["train"]).read_text().split())
    folder = tmp_path / "run" / "predictions"
    assert {path.stem for path in (folder / "pseudo_labels").iterdir()} == wanted
    for path in (folder / "cams").iterdir():
        with np.load(path, allow_pickle=False) as stored:
            assert np.isfinite(stored["maps"]).all()
