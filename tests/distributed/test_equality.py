"""The same global batch on one and on three gloo processes gives the same losses, gradients, memory and scores."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from tests.distributed.equality_cases import CASES, VAL_IMAGES, run
from tests.distributed.launching import free_port

EVERY = [*CASES, "photographs"]
WITH_MEMORY = [name for name in EVERY if name != "segmentation"]
SEVERAL = 3  # processes; two are started in `test_two_processes`, and prove no more of this


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each process has written: `<number of processes>/<case>-<rank>.pt`."""
    root = tmp_path_factory.mktemp("equality")
    for processes in (1, SEVERAL):
        arguments = (processes, free_port(), root / str(processes))
        mp.start_processes(_run, args=arguments, nprocs=processes, start_method="fork")
    return root


def _run(rank: int, processes: int, port: int, folder: Path) -> None:
    """Every case on this process, one of several started before Lightning looks, as `torchrun` and `srun` do it."""
    torch.set_num_threads(1)
    os.environ["MASTER_PORT"] = str(port)
    if processes > 1:
        os.environ.update(LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
    run(folder, processes)


def read(folder: Path, processes: int, case: str, rank: int = 0) -> Any:
    return torch.load(folder / str(processes) / f"{case}-{rank}.pt", weights_only=True)


def assert_close(found: Any, expected: Any, name: object) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("case", EVERY)
def test_losses_and_gradients(folder: Path, case: str):
    expected = read(folder, 1, case)
    for rank in range(SEVERAL):
        found = read(folder, SEVERAL, case, rank)
        assert_close(found["losses"], expected["losses"], "losses of every batch")
        assert_close(found["gradients"], expected["gradients"], "gradients of every step")
        assert_close(found["weights"], expected["weights"], "weights, running statistics and prototypes")
    assert len(expected["gradients"]) >= 4
    assert all(bool(gradient.any()) for gradient in expected["gradients"])


@pytest.mark.parametrize("case", WITH_MEMORY)
def test_memory_and_provenance(folder: Path, case: str):
    expected, found = read(folder, 1, case)["memory"], read(folder, SEVERAL, case)["memory"]
    assert_close(found.pop("embeddings"), expected.pop("embeddings"), "embeddings")
    for name, value in expected.items():  # images, steps, counts and cursors: slot by slot
        assert torch.equal(found[name], value) if isinstance(value, torch.Tensor) else found[name] == value, name
    regions = [label for batch in read(folder, 1, case)["regions"] for label in batch]
    assert len(regions) > expected["counts"].sum() > 10  # so some were overwritten


@pytest.mark.parametrize("case", EVERY)
def test_ranks_agree_bit_for_bit(folder: Path, case: str):
    first = read(folder, SEVERAL, case)
    for rank in range(1, SEVERAL):
        other = read(folder, SEVERAL, case, rank)
        for part in ("memory", "weights"):
            for name, value in first[part].items():
                found = other[part][name]
                assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value, name


@pytest.mark.parametrize("case", WITH_MEMORY)
def test_prototypes_come_at_the_end_of_the_warmup(folder: Path, case: str):
    expected, found = read(folder, 1, case), read(folder, SEVERAL, case)
    assert_close(found["prototypes"], expected["prototypes"], "prototypes of every epoch")
    assert all(torch.equal(*pair) for pair in zip(found["valid"], expected["valid"], strict=True))
    assert bool(expected["valid"][0].any())  # clustered at the end of the one epoch of warm-up
    contrast = [losses["train/loss_contrast"] for losses in found["losses"]]
    steps = len(contrast) // len(expected["valid"])
    assert contrast[:steps] == [0.0] * steps
    assert contrast[steps] > 0


def test_cases_are_what_they_say(folder: Path):
    labelled = [losses["train/labelled"] for losses in read(folder, 1, "one_stage")["losses"]]
    assert labelled[:2] == [0.0, 0.0]
    assert all(0 < share < 1 for share in labelled[2:])

    def regions(case: str) -> list[list[list[int]]]:
        return [read(folder, SEVERAL, case, rank)["regions"] for rank in range(SEVERAL)]

    assert any(len(set(map(len, of_step))) > 1 for of_step in zip(*regions("uneven_regions"), strict=True))
    for case in ("none_on_a_rank", "accumulation"):
        first, *others = regions(case)
        assert all(first)
        assert not any(labels for rank in others for labels in rank)
    last = [2 in {label for labels in rank for label in labels} for rank in regions("class_on_one_rank")]
    assert last == [True] + [False] * (SEVERAL - 1)


def test_score_counts_each_image_once(folder: Path):
    expected, found = read(folder, 1, "photographs")["scores"], read(folder, SEVERAL, "photographs")["scores"]
    assert found == pytest.approx(expected, abs=1e-4)  # a pixel may lie on a threshold; an image counts for more
    assert 0 < expected["val/miou_true_tags"] < 1


def test_each_image_is_predicted_once(folder: Path):
    expected = dict(read(folder, 1, "predicted"))
    ranks = [read(folder, SEVERAL, "predicted", rank) for rank in range(SEVERAL)]
    every = [image_id for rank in ranks for image_id, _ in rank]
    assert sorted(every) == sorted(expected)
    assert len(expected) == VAL_IMAGES
    assert len({len(rank) for rank in ranks}) == 2  # some have one image less, and none is filled up
    for image_id, number in (pair for rank in ranks for pair in rank):
        assert number == pytest.approx(expected[image_id], rel=1e-5)
