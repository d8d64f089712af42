"""Image files that somebody made to do harm."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from PIL import Image

from rca_lightning.data.images import image_size, open_image, read_image, read_mask, read_saliency
from rca_lightning.errors import DataError, DatasetNotFoundError

SIDE = 60_000


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *more: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def jpeg(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "jpeg")
    whole = stream.getvalue()
    at = whole.index(b"\xff\xc0") + 5  # after the marker, the length and the depth
    return whole[:at] + struct.pack(">HH", height, width) + whole[at + 4 :]


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)


def gif(width: int, height: int) -> bytes:
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x08\x00;"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + frame


def tiff(width: int, height: int) -> bytes:
    entries = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 9)]
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + rows + bytes(4)


@pytest.mark.parametrize("make", [png, jpeg, bmp, gif, tiff], ids=lambda make: make.__name__)
@pytest.mark.parametrize("read", [read_image, read_saliency, image_size, lambda path: read_mask(path, num_classes=20)])
def test_heads_of_60000_pixels_a_side_are_refused(make, read, tmp_path: Path):
    path = tmp_path / "wide.png"
    path.write_bytes(make(SIDE, SIDE))
    with pytest.raises(DataError, match=r"wide\.png: Image size \(3600000000 pixels\) exceeds limit"):
        read(path)


def test_text_that_inflates_to_gigabytes_is_refused(tmp_path: Path):
    packed = zlib.compress(bytes(1 << 25), 9)
    path = tmp_path / "text.png"
    path.write_bytes(png(10, 10, chunk(b"zTXt", b"a\0\0" + packed)))
    with pytest.raises(DataError, match="cut off or damaged"):
        read_image(path)


@pytest.mark.parametrize("name", ["a.jpg", "a.eps"])
def test_postscript_is_not_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / name
    Image.new("RGB", (8, 8)).save(path, "EPS")
    started = []
    monkeypatch.setattr(subprocess, "check_call", lambda *words, **_: started.append(words))
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **_: started.append(words))
    with pytest.raises(DataError, match="not an image that Pillow can read"):
        read_image(path)
    assert started == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg: not a regular file"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("target", ["/dev/zero", "/", "missing"])
def test_links_to_what_is_no_file_are_refused(target: str, tmp_path: Path):
    (tmp_path / "a.png").symlink_to(target)
    with pytest.raises((DataError, DatasetNotFoundError), match=r"a\.png: (not a regular|no such) file"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("error", [ValueError("a"), IndexError("a"), OverflowError("a"), ZeroDivisionError("a")])
def test_every_error_of_a_decoder_is_one_of_the_library(error: Exception, tmp_path: Path):
    Image.new("L", (3, 3)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="cut off or damaged"), open_image(tmp_path / "a.png"):
        raise error


def test_too_little_memory_is_said(tmp_path: Path):
    Image.new("L", (3, 3)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="not enough memory"), open_image(tmp_path / "a.png"):
        raise MemoryError
