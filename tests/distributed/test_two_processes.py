"""Two gloo processes on the CPU."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import yaml

from rca_lightning.distributed import broadcast_from_first, gather_uneven
from tests.distributed.launching import free_port, rca
from tests.integration.conftest import checkpoint, config, synthetic_root, trained  # noqa: F401  (fixtures)


def _gather(rank: int, port: int, lengths: list[int], folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=len(lengths))
    gathered = gather_uneven(*_mixed(rank, lengths[rank]))
    number = torch.tensor([rank + 5.0])
    broadcast_from_first(number)
    torch.save((*gathered, number), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def _mixed(rank: int, length: int) -> tuple[torch.Tensor, ...]:
    """Tensors of several types and shapes, one not contiguous and one without a column."""
    values = torch.arange(length * 2.0).reshape(2, length).T + 100 * rank
    values[:1] = torch.tensor([torch.nan, -0.0])
    labels = torch.full((length,), rank - 7)
    known = torch.arange(length * 6).reshape(length, 3, 2) % (rank + 2) == 0
    return values, labels, known, values.half()[:, :1], torch.zeros(length, 0), known[:, 0].to(torch.uint8)


@pytest.mark.parametrize("lengths", [[3, 1], [1, 0], [0, 0], [2, 0, 3]])
def test_gather_uneven(lengths: list[int], tmp_path: Path):
    mp.start_processes(_gather, args=(free_port(), lengths, str(tmp_path)), nprocs=len(lengths), start_method="fork")
    expected = [torch.cat(parts) for parts in zip(*map(_mixed, range(len(lengths)), lengths), strict=True)]
    for rank in range(len(lengths)):
        *found, number = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(found[0].signbit(), expected[0].signbit())
        assert number.item() == 5.0


def test_memory_and_prototypes_equal_on_uneven_ranks(config: Path, tmp_path: Path):  # noqa: F811
    content = yaml.safe_load(config.read_text())
    content["data"] |= {"batch_size": 4, "crop_size": 32}
    content["model"] |= {"backbone": "resnet14", "on_non_finite": "skip"}
    watch = [{"class_path": "tests.distributed.observing.WriteDown", "init_args": {"folder": str(tmp_path)}}]
    disturb = [{"class_path": f"tests.distributed.observing.{name}"} for name in ("DropRegions", "Poison")]
    content["trainer"]["callbacks"] = disturb + content["trainer"]["callbacks"] + watch
    content["trainer"]["accumulate_grad_batches"] = 2
    config.write_text(yaml.safe_dump(content))
    rca("fit", config)
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(2))
    assert second["received"][0] == 0
    assert first["received"] != second["received"]
    assert first["received"][1] == second["received"][1] == 0  # whose image it was, both left the batch out
    assert first["skipped"] == second["skipped"] == 2
    assert all(bool(torch.isfinite(value).all()) for rank in (first, second) for value in rank["module"].values())
    assert int(first["memory"]["counts"].sum()) > 0
    assert bool(first["module"]["network.aggregation.valid"].any())
    for part in ("memory", "module"):
        for name, value in first[part].items():
            # Running statistics of BatchNorm are each rank's own until the next forward pass.
            if "running_" in name or name.endswith("num_batches_tracked"):
                continue
            found = second[part][name]
            assert torch.equal(value, found) if isinstance(value, torch.Tensor) else value == found, name


def test_prediction_covers_each_image_once(config: Path, checkpoint: Path, tmp_path: Path):  # noqa: F811
    rca("predict", config, "--ckpt_path", checkpoint, "--data.predict_split=train")
    content = yaml.safe_load(config.read_text())
    wanted = set(Path(content["data"]["split_files"]["train"]).read_text().split())
    folder = tmp_path / "run" / "predictions"
    assert {path.stem for path in (folder / "pseudo_labels").iterdir()} == wanted
    for path in (folder / "cams").iterdir():
        with np.load(path, allow_pickle=False) as stored:
            assert np.isfinite(stored["maps"]).all()
