"""Decoded photographs that stay in memory."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.data.images import DecodedCache
from rca_lightning.errors import ArgumentError


def module(root: Path, **options: Any) -> WSSSDataModule:
    arguments: dict[str, Any] = {"num_workers": 0, "crop_size": 32, "batch_size": 2, "scale": (1.0, 2.0), **options}
    data = WSSSDataModule("voc2012", root, **arguments)
    data.setup("fit")
    return data


def epochs(data: WSSSDataModule, count: int = 2, between: Callable[[], object] = lambda: None) -> list[Any]:
    loader = data.train_dataloader()
    found = []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        found += list(loader)
        between()
    return found


def assert_same(one: list[Any], other: list[Any]) -> None:
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        assert a["image_id"] == b["image_id"]
        for name in a.keys() - {"image_id"}:
            np.testing.assert_array_equal(a[name].numpy(), b[name].numpy())


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("mib", [0.02, 10])
@pytest.mark.parametrize("crop", [32, 60])  # 60: the long side of the photographs, which need no change of size then
@pytest.mark.filterwarnings("error:The given NumPy array is not writable")
def test_same_batches(make_voc: Callable[..., Path], mib: float, reduced: bool, crop: int) -> None:
    root = make_voc(6)
    options = {"reduced_decoding": reduced, "crop_size": crop, "scale": (1.0, 1.0) if crop == 60 else (0.4, 2.0)}
    assert_same(epochs(module(root, **options)), epochs(module(root, **options, cache_decoded=mib)))


@pytest.mark.parametrize("workers", [0, 1])
def test_second_epoch_needs_no_files(make_voc: Callable[..., Path], workers: int) -> None:
    root = make_voc(4)
    expected = epochs(module(root, num_workers=0))
    data = module(root, num_workers=workers, cache_decoded=10)

    def remove() -> None:
        for file in [*root.glob("JPEGImages/*"), *root.glob("SegmentationClass/*")]:
            file.unlink()

    assert_same(expected, epochs(data, between=remove))


def test_room_is_never_exceeded_and_the_first_stay() -> None:
    cache = DecodedCache(1.0)
    made: list[int] = []

    def make(number: int) -> np.ndarray:
        made.append(number)
        return np.full(300_000, number, dtype=np.uint8)

    for _ in range(3):
        for number in range(6):
            assert (cache.get(number, lambda number=number: make(number)) == number).all()
            assert cache.used <= 2**20
    assert made == [0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5]
    assert cache.used >= 900_000


def test_what_is_kept_cannot_be_changed() -> None:
    cache = DecodedCache(1.0)
    cache.get("a", lambda: np.zeros(3))
    with pytest.raises(ValueError, match="read-only"):
        cache.get("a", lambda: np.ones(3))[0] = 1


def test_small_values_take_room_as_well() -> None:
    cache = DecodedCache(0.01)
    for number in range(1000):
        cache.get(number, lambda: (1, 2))
    assert cache.used <= 0.01 * 2**20
    assert len(cache._kept) < 50


def test_content_is_not_sent_to_other_processes() -> None:
    cache = DecodedCache(1.0)
    cache.get("a", lambda: np.zeros(100_000, dtype=np.uint8))
    other = pickle.loads(pickle.dumps(cache))
    assert len(pickle.dumps(cache)) < 500
    assert other.used == 0
    assert other.get("a", lambda: 7) == 7
    assert other.max_mib == 1.0


def test_new_processes_every_epoch_are_warned_about(
    make_voc: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    data = module(make_voc(2), cache_decoded=1, num_workers=1)
    progress = SimpleNamespace(current=SimpleNamespace(processed=0))
    fit_loop = SimpleNamespace(epoch_progress=progress)
    for every, warnings in ((0, 0), (1, 1)):
        data.trainer = SimpleNamespace(reload_dataloaders_every_n_epochs=every, fit_loop=fit_loop)  # type: ignore
        data.train_dataloader()
        assert sum("cache_decoded" in record.getMessage() for record in caplog.records) == warnings


@pytest.mark.parametrize("value", [-1, float("inf"), float("nan")])
def test_room_out_of_range(tmp_path: Path, value: float) -> None:
    with pytest.raises(ArgumentError, match="cache_decoded"):
        WSSSDataModule("voc2012", tmp_path, cache_decoded=value)
