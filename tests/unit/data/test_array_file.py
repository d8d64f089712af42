"""Arrays in a mapped file: they come back, and nothing else is taken for them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from rca_lightning.data.coco_index import read_arrays, write_arrays
from rca_lightning.errors import DataError

ARRAYS = {
    "text": np.frombuffer(b"hello", dtype=np.uint8),
    "none": np.zeros(0, dtype=np.int32),
    "sizes": np.array([-1, 2**31 - 1, 7], dtype=np.int32),
    "ends": np.array([0, 2**40], dtype=np.int64),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_arrays(tmp_path / "index.bin", ARRAYS, key="mine")
    return tmp_path / "index.bin"


def test_arrays_come_back_read_only(file: Path) -> None:
    found = read_arrays(file, key="mine")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    with pytest.raises(ValueError, match="read-only"):
        found["sizes"][0] = 1


def test_every_damaged_byte_is_noticed(file: Path) -> None:
    content = file.read_bytes()
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match="it"):
            read_arrays(file, key="mine")
    for length in (0, 5, 24, 100, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError):  # noqa: PT011 - cut off at another place, another message
            read_arrays(file, key="mine")


def test_a_file_of_other_sources_is_refused(file: Path) -> None:
    with pytest.raises(ValueError, match="other sources"):
        read_arrays(file, key="yours")


def test_objects_are_not_written(tmp_path: Path) -> None:
    write_arrays(tmp_path / "f.bin", {"a": np.zeros(3)}, key="k")
    with pytest.raises(ValueError, match="type '<f8'"):
        read_arrays(tmp_path / "f.bin", key="k")


def test_pickled_by_name_and_parts_by_value(tmp_path: Path) -> None:
    file = tmp_path / "large.bin"
    write_arrays(file, {"a": np.arange(10_000)}, key="k")
    array = read_arrays(file, key="k")["a"]
    assert len(pickle.dumps(array)) < 500
    for part in (array, array[5:9], array * 2):
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(part)), part)


def test_a_file_that_is_gone_or_replaced_says_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "gone.bin"
    write_arrays(file, ARRAYS, key="k")
    pickled = pickle.dumps(read_arrays(file, key="k")["ends"])
    write_arrays(file, {"ends": np.array([0, 2**41])}, key="k")
    with pytest.raises(DataError, match=r"gone\.bin.*replaced.*start the run anew"):
        pickle.loads(pickled)
    file.unlink()
    with pytest.raises(DataError, match=r"gone\.bin.*No such file"):
        pickle.loads(pickled)
