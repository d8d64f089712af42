"""Files are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rca_lightning.io.atomic import write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writes_and_makes_the_folder(tmp_path):
    path = tmp_path / "a" / "b" / "file.bin"
    write_atomically(path, lambda file: file.write(b"content"))
    assert path.read_bytes() == b"content"
    assert names(path.parent) == ["file.bin"]


def test_replaces_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"a much longer former content")
    write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_failure_midway_leaves_the_former_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_bytes(b"former")

    def fail(file):
        file.write(b"half")
        file.flush()
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, fail)
    assert path.read_bytes() == b"former"
    assert names(tmp_path) == ["file.txt"]


def test_failure_without_a_former_file_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write_atomically(tmp_path / "file.txt", lambda file: 1 / 0)
    assert names(tmp_path) == []


def test_reader_never_sees_a_part(tmp_path):
    path = tmp_path / "file.txt"
    path.write_bytes(b"former")
    seen = []

    def write(file):
        file.write(b"half")
        file.flush()
        seen.append((path.read_bytes(), [name for name in names(tmp_path) if name != "file.txt"]))

    write_atomically(path, write)
    content, temporary = seen[0]
    assert content == b"former"
    assert len(temporary) == 1
    assert temporary[0].endswith(".part")


@pytest.mark.skipif(os.name != "posix", reason="file modes are those of POSIX")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_mode_follows_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file", lambda file: file.write(b"x"))
        assert os.umask(umask) == umask  # and it is still what it was
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_long_names_fit(tmp_path):
    path = tmp_path / ("n" * 250)
    write_atomically(path, lambda file: file.write(b"x"))
    assert path.read_bytes() == b"x"
