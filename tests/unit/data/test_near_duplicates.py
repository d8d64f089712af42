"""Near-duplicates, against all pairs compared in a plain loop."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from PIL import Image

from rca_lightning.data import near_duplicates as module
from rca_lightning.data.near_duplicates import difference_hash, hash_photographs, near_duplicates


def picture(path: Path, seed: int, *, size: tuple[int, int] = (96, 72), **options) -> Path:
    coarse = np.random.default_rng(seed).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, **options)
    return path


def test_every_near_pair_is_found():
    draw = np.random.default_rng(0)
    across, down = draw.integers(0, 2**64, (2, 60), dtype=np.uint64)
    for row, bits in ((1, 1), (2, 3), (3, 4), (4, 0)):  # near to row 0, but row 3
        flips = sum(1 << int(bit) for bit in draw.choice(64, bits, replace=False))
        across[row], down[row] = int(across[0]) ^ flips, down[0]
    down[4] = ~down[0]  # near across, not down
    expected = [
        (one, other)
        for one in range(60)
        for other in range(one + 1, 60)
        if bin(int(across[one]) ^ int(across[other])).count("1") <= 3
        and bin(int(down[one]) ^ int(down[other])).count("1") <= 3
    ]
    assert (0, 2) in expected
    assert (0, 3) not in expected
    assert near_duplicates(across, down) == expected


def test_a_photograph_saved_anew_is_near_and_another_is_not(tmp_path: Path):
    first = difference_hash(picture(tmp_path / "a.png", 0))
    small = difference_hash(picture(tmp_path / "b.jpg", 0, size=(640, 480), quality=60))
    other = difference_hash(picture(tmp_path / "c.png", 1))
    across, down = (np.array(values, dtype=np.uint64) for values in zip(first, small, other, strict=True))
    assert near_duplicates(across, down) == [(0, 1)]


def test_hashes_are_kept_and_bad_files_named(tmp_path: Path, monkeypatch):
    images = {name: picture(tmp_path / f"{name}.png", seed) for seed, name in enumerate("abc")}
    images["d"] = tmp_path / "d.png"
    images["d"].write_bytes(b"no image")
    calls = []
    across, down, unread = hash_photographs(images, tmp_path / "kept.npz", each=lambda *at: calls.append(at))
    assert calls[-1] == (4, 4)
    assert set(unread) == {"d"}
    assert (int(across[1]), int(down[1])) == difference_hash(images["b"])
    calls.clear()
    picture(images["b"], 7, size=(50, 50))
    again, _, unread = hash_photographs(images, tmp_path / "kept.npz", each=lambda *at: calls.append(at))
    assert len(calls) == 2  # the one that has changed, and the one that cannot be read
    assert again[0] == across[0]
    assert int(again[1]) == difference_hash(images["b"])[0]


def test_many_copies_take_little_time():
    begun = time.monotonic()
    assert near_duplicates(np.zeros(20_000, np.uint64), np.zeros(20_000, np.uint64))
    assert time.monotonic() - begun < 10  # all pairs would be 200 million


def test_pairs_of_a_folder_of_copies_are_bounded(monkeypatch):
    monkeypatch.setattr(module, "MOST_PAIRS", 10)
    pairs = near_duplicates(np.zeros(40, np.uint64), np.zeros(40, np.uint64))
    assert pairs == [(0, other) for other in range(1, 11)]
