"""Stored maps that somebody made to do harm."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rca_lightning.errors import DataError, DatasetNotFoundError
from rca_lightning.io.npz import read_npz
from rca_lightning.pseudo_labels.files import read_maps, read_qualities

SIZE = (4, 5)


def sound(**changes: Any) -> dict[str, np.ndarray]:
    arrays: dict[str, Any] = {
        "maps": np.linspace(0, 1, 40).reshape(2, *SIZE).astype(np.float16),
        "classes": np.array([0, 2]),
        "probabilities": np.array([0.5, 1], dtype=np.float32),
        "coverage": np.array([0.1, 0.2], dtype=np.float32),
        "confidence": np.float32(0.5),
        "ignored": np.float32(0),
    }
    return arrays | changes


def written(folder: Path, **changes: Any) -> Path:
    np.savez_compressed(folder / "a.npz", **sound(**changes))
    return folder / "a.npz"


def read(path: Path) -> Any:
    return read_maps(path, size=SIZE, num_classes=3)


def head(shape: str, dtype: str = "<f2", *, version: int = 1) -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text


def with_member(path: Path, name: str, content: bytes, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, content, compression)
    return path


def test_what_was_written_is_read(tmp_path: Path):
    found = read(written(tmp_path))
    assert torch.equal(found.maps, torch.from_numpy(sound()["maps"]).float())
    assert found.classes.tolist() == [0, 2]
    assert found.probabilities.tolist() == [0.5, 1.0]
    by_column = np.asfortranarray(sound()["maps"])
    assert torch.equal(read(written(tmp_path, maps=by_column)).maps, found.maps)
    none = {"maps": np.zeros((0, *SIZE), dtype=np.float16), "classes": np.zeros(0, dtype=np.int64)}
    assert read(written(tmp_path, **none, probabilities=np.zeros(0))).maps.shape == (0, *SIZE)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"maps": np.zeros((2, 5, 4), dtype=np.float16)}, "for a photograph of"),
        ({"maps": np.full((2, *SIZE), np.nan, dtype=np.float16)}, "NaN or infinite"),
        ({"maps": np.full((2, *SIZE), 1e300)}, "NaN or infinite"),
        ({"maps": np.full((2, *SIZE), 7, dtype=np.float16)}, "values from 7 to 7"),
        ({"maps": np.full((2, *SIZE), "a")}, "not numbers"),
        ({"maps": np.zeros(3)}, "maps of"),
        ({"classes": np.array([2, 0])}, r"classes \[2, 0\] of 3"),
        ({"classes": np.array([0, 3])}, r"classes \[0, 3\] of 3"),
        ({"classes": np.array([-1, 0])}, r"classes \[-1, 0\] of 3"),
        ({"classes": np.array([0.0, 1.0])}, "classes"),
        ({"probabilities": np.array([0.5, np.nan])}, "probabilities"),
        ({"probabilities": np.zeros((2, 2))}, "more than 3 numbers"),
    ],
)
def test_maps_that_cannot_be_are_refused(changes: dict[str, Any], said: str, tmp_path: Path):
    with pytest.raises(DataError, match=rf"a\.npz: .*{said}.*let rca predict make them anew"):
        read(written(tmp_path, **changes))


@pytest.mark.parametrize(
    "content",
    [
        head("(1000000, 1000000000, 1000)"),  # petabytes
        head("(2, 4, 5)", "|O"),
        head("(-2, 4, 5)"),
        head("(2, 4, 5)"),  # no numbers after it
        head("(2, 4, 5)") + bytes(10_000),
        head("(2, 4, 5)", version=2) + bytes(80),
        head("(" * 5000),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
        b"",
    ],
)
def test_heads_that_cannot_be_are_refused(content: bytes, tmp_path: Path):
    arrays = sound()
    del arrays["maps"]
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=r"a\.npz: its arrays could not be read"):
        read(with_member(tmp_path / "a.npz", "maps.npy", content))


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(compression: int, tmp_path: Path):
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    with_member(tmp_path / "a.npz", "maps.npy", file.getvalue(), compression)
    with pytest.raises(DataError, match="compressed in an unknown way"):
        read_npz(tmp_path / "a.npz", {"maps": 3}, remedy="leave it")


@pytest.mark.parametrize("reader", [read, lambda path: read_qualities([("a", path)])])
def test_what_inflates_to_gigabytes_takes_no_memory(reader, tmp_path: Path):
    arrays = sound()
    del arrays["maps"], arrays["coverage"]
    np.savez(tmp_path / "a.npz", **arrays)
    for name, dtype in (("maps", "<f2"), ("coverage", "<f4")):
        with_member(tmp_path / "a.npz", f"{name}.npy", head("(200000000,)", dtype) + bytes(1 << 25))
    tracemalloc.start()
    with pytest.raises(DataError, match="200000000"):
        reader(tmp_path / "a.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 22


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def test_pickles_are_not_run(tmp_path: Path):
    mark = tmp_path / "mark"
    objects = np.empty((2, *SIZE), dtype=object)
    objects[:] = Hostile(mark)
    path = written(tmp_path, maps=objects)
    assert not mark.exists()
    with pytest.raises(DataError, match="object, not numbers"):
        read(path)
    read_qualities([("a", path)])  # does not look at the maps
    path.write_bytes(pickle.dumps(Hostile(mark)))
    for reader in (read, lambda path: read_qualities([("a", path)])):
        with pytest.raises(DataError):
            reader(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"coverage": np.zeros(3)},
        {"classes": np.array([0, 300])},
        {"classes": np.array([0, -1])},
        {"confidence": np.array([0.5])},
        {"ignored": np.float32(np.nan)},
    ],
)
def test_qualities_that_cannot_be_are_refused(changes: dict[str, Any], tmp_path: Path):
    with pytest.raises(DataError, match=r"a\.npz: no quality could be read .*; delete it and predict again"):
        read_qualities([("a", written(tmp_path, **changes))], num_classes=3)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DatasetNotFoundError, match=r"a\.npz: no such file; let rca predict make them anew"):
        read(tmp_path / "a.npz")
