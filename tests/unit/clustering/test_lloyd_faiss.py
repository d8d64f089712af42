"""Lloyd's iterations by FAISS: the same for any number of threads, and no setting of the process is changed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from rca_lightning.clustering import kmeans_faiss as lloyd_faiss
from rca_lightning.clustering.cluster import _runs_in_faiss as runs_in_faiss
from rca_lightning.clustering.kmeans import lloyd
from rca_lightning.clustering.kmeans_faiss import lloyd_by_faiss

faiss = pytest.importorskip("faiss")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def problem(classes: int = 5) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(0)
    points = torch.randn(classes, 60, 6, generator=random)
    valid = torch.rand(classes, 60, generator=random) < 0.8
    valid[-1] = torch.arange(60) < 2  # fewer points than seeds
    seeds, usable = points[:, :4].clone(), torch.ones(classes, 4, dtype=torch.bool)
    usable[-1, 2:] = False
    return points, valid, seeds, usable


@pytest.mark.parametrize("count", [2, 3, 8])
def test_any_number_of_threads_gives_the_same_bits(count, threads):
    torch.set_num_threads(1)
    alone, backend = lloyd_by_faiss(*problem(), 10, unit=False)
    torch.set_num_threads(count)
    beside, _ = lloyd_by_faiss(*problem(), 10, unit=False)
    assert backend == "faiss-cpu"
    assert torch.equal(alone, beside)


def test_it_is_what_plain_iterations_give():
    points, valid, seeds, usable = problem()
    found, _ = lloyd_by_faiss(points, valid, seeds, usable, 50, unit=False)
    torch.testing.assert_close(found, lloyd(points, valid, seeds, usable, iterations=50, unit=False))


def test_threads_of_faiss_elsewhere_stay_as_they_are():
    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(3)
        lloyd_by_faiss(*problem(), 3, unit=False)
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)


def test_error_of_a_class_comes_out(threads):
    torch.set_num_threads(2)
    points, valid, seeds, usable = problem()
    points[3, 5] = float("nan")
    valid[3, 5] = True
    with pytest.raises(RuntimeError, match="NaN"):
        lloyd_by_faiss(points, valid, seeds, usable, 3, unit=False)


@pytest.mark.parametrize(("count", "pool"), [(1, 1), (2, 2), (8, 5)])
def test_classes_share_the_threads_and_each_has_one(count, pool, threads, monkeypatch):
    found: list[tuple[int, int]] = []
    sizes: list[int] = []

    class Noted(faiss.Kmeans):
        def train(self, *values: object, **named: object) -> float:
            found.append((threading.get_ident(), faiss.omp_get_max_threads()))
            return super().train(*values, **named)

    def pool_of(size: int, **options: object) -> ThreadPoolExecutor:
        sizes.append(size)
        return ThreadPoolExecutor(size, **options)

    monkeypatch.setattr(faiss, "Kmeans", Noted)
    monkeypatch.setattr(lloyd_faiss, "ThreadPoolExecutor", pool_of)
    torch.set_num_threads(count)
    lloyd_by_faiss(*problem(5), 3, unit=False)
    assert sizes == [pool]
    assert len(found) == 4  # the last class has no more points than seeds
    assert threading.get_ident() not in {thread for thread, _ in found}
    assert {own for _, own in found} == {1}


def test_few_points_are_no_reason_for_a_warning(capfd):
    lloyd_by_faiss(*problem(), 3, unit=False)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_index_goes_to_the_gpu_of_the_points(monkeypatch):
    moved: list[tuple[object, int]] = []

    class Resources:
        def setTempMemory(self, size: int) -> None:  # noqa: N802 - as in FAISS
            assert 0 < size <= 2**28

    def index_cpu_to_gpu(resources: object, device: int, index: object) -> object:
        moved.append((resources, device))
        return index

    gpus = SimpleNamespace(get_num_gpus=lambda: 4, StandardGpuResources=Resources, index_cpu_to_gpu=index_cpu_to_gpu)
    assert lloyd_faiss._to_gpu(gpus, torch.device("cpu")) is None
    assert lloyd_faiss._to_gpu(SimpleNamespace(), torch.device("cuda", 2)) is None
    assert lloyd_faiss._to_gpu(SimpleNamespace(get_num_gpus=lambda: 0), torch.device("cuda", 2)) is None
    expected, _ = lloyd_by_faiss(*problem(), 3, unit=False)
    to_gpu = lloyd_faiss._to_gpu(gpus, torch.device("cuda", 2))
    monkeypatch.setattr(lloyd_faiss, "_to_gpu", lambda faiss, device: to_gpu)
    found, backend = lloyd_by_faiss(*problem(), 3, unit=False)
    assert backend == "faiss-gpu"
    assert [device for _, device in moved] == [2] * 4  # the last class has no more points than seeds
    assert len({id(resources) for resources, _ in moved}) == 1
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("gpus", "on_cuda"), [(None, False), (0, False), (2, True)])
def test_auto_is_faiss_only_where_it_can_run_beside_the_points(monkeypatch, gpus: int | None, on_cuda: bool):
    if gpus is None:
        monkeypatch.delattr(faiss, "get_num_gpus", raising=False)
    else:
        monkeypatch.setattr(faiss, "get_num_gpus", lambda: gpus, raising=False)
    assert runs_in_faiss("auto", torch.device("cuda")) == on_cuda
    assert runs_in_faiss("auto", torch.device("cpu"))
    assert runs_in_faiss("faiss", torch.device("cuda"))
    assert not runs_in_faiss("torch", torch.device("cpu"))
