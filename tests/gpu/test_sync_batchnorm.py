"""`--trainer.sync_batchnorm true`: two processes, which may share a GPU, learn what a single one learns."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rca_lightning import RCAModule
from rca_lightning.rca.loss import RCALoss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is there; SyncBatchNorm needs one"),
]


def network() -> nn.Module:
    torch.manual_seed(0)
    module = RCAModule(3, backbone="resnet14", frozen_batchnorm=False, num_prototypes=2, background_prototypes=0)
    return module.network.cuda().double().train()


def learn(model: nn.Module, images: torch.Tensor, tags: torch.Tensor) -> None:
    RCALoss()(model(images, tags), tags).total.backward()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    tags = (torch.rand(6, 3, generator=draw) < 0.5).float()
    return torch.randn(6, 3, 64, 64, generator=draw).double().cuda(), tags.cuda()


def _process(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)  # NCCL wants a GPU for each
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(network())
    images, tags = batch()
    learn(DistributedDataParallel(synchronised, device_ids=[0]), images[rank::2], tags[rank::2])
    gradients = {name: value.grad.cpu() for name, value in synchronised.named_parameters()}
    state = {name: value.cpu() for name, value in synchronised.state_dict().items()}
    torch.save((gradients, state), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_learn_what_one_learns(tmp_path: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    mp.spawn(_process, args=(port, str(tmp_path)), nprocs=2)
    alone = network()
    learn(alone, *batch())
    gradients = {name: value.grad.cpu() for name, value in alone.named_parameters()}
    state = {name: value.cpu() for name, value in alone.state_dict().items()}
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, (gradients, state), rtol=1e-4, atol=1e-5)
