"""Keywords of image files, written as photo programs write them."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rca_lightning.data.keyword_tags import MAX_XMP_BYTES, parse_xmp, read_keywords

XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title><rdf:Alt><rdf:li>no tag</rdf:li></rdf:Alt>'
    "</dc:title><dc:subject><rdf:Bag>{}</rdf:Bag></dc:subject></rdf:Description></rdf:RDF></x:xmpmeta>"
)


def packet(*names: str) -> bytes:
    return XMP.format("".join(f"<rdf:li>{name}</rdf:li>" for name in names)).encode()


def iptc(*values: bytes, coding: bytes | None = None) -> bytes:
    """APP13 segment of a JPEG: Photoshop resource 0x0404 with IPTC records."""
    records = b"" if coding is None else b"\x1c\x01\x5a" + struct.pack(">H", len(coding)) + coding
    records += b"".join(b"\x1c\x02\x19" + struct.pack(">H", len(value)) + value for value in values)
    block = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(records)) + records + b"\0" * (len(records) % 2)
    content = b"Photoshop 3.0\0" + block
    return b"\xff\xed" + struct.pack(">H", len(content) + 2) + content


def jpeg(path: Path, segment: bytes = b"", **options) -> Path:
    Image.new("RGB", (16, 16)).save(path, **options)
    data = path.read_bytes()
    path.write_bytes(data[:2] + segment + data[2:])
    return path


def test_xmp_of_each_format(tmp_path: Path):
    xmp = packet("dog", "r&amp;b", "dog", " two  words ")
    expected = ("dog", "r&b", "two words")
    assert read_keywords(jpeg(tmp_path / "a.jpg", xmp=xmp)) == expected
    Image.new("RGB", (16, 16)).save(tmp_path / "a.webp", xmp=xmp)
    assert read_keywords(tmp_path / "a.webp") == expected
    Image.new("RGB", (16, 16)).save(tmp_path / "a.tif", tiffinfo={700: xmp})
    assert read_keywords(tmp_path / "a.tif") == expected
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png", pnginfo=text)
    assert read_keywords(tmp_path / "a.png") == expected


def test_iptc_one_many_and_other_codings(tmp_path: Path):
    assert read_keywords(jpeg(tmp_path / "a.jpg", iptc(b"dog"))) == ("dog",)
    assert read_keywords(jpeg(tmp_path / "b.jpg", iptc("Käse".encode(), b"dog", coding=b"\x1b%G"))) == ("Käse", "dog")
    assert read_keywords(jpeg(tmp_path / "c.jpg", iptc("Käse".encode("latin-1")))) == ("Käse",)
    assert read_keywords(jpeg(tmp_path / "d.jpg", iptc(b"dog; cat"), xmp=packet("cow", "dog"))) == ("cow", "dog", "cat")


@pytest.mark.parametrize(
    "bad",
    [
        b"<not xml",
        b'<!DOCTYPE a [<!ENTITY b "cccc">]>' + packet("&b;"),
        packet("dog") + b" " * MAX_XMP_BYTES,
        b"",
    ],
)
def test_what_is_no_xmp_or_might_be_an_attack_has_no_keywords(bad: bytes):
    assert parse_xmp(bad) == []
    assert parse_xmp(packet("dog")) == ["dog"]


def test_files_without_keywords_and_damaged_ones(tmp_path: Path):
    assert read_keywords(jpeg(tmp_path / "a.jpg")) == ()
    (tmp_path / "b.jpg").write_bytes(b"no image")
    assert read_keywords(tmp_path / "b.jpg") == ()
    assert read_keywords(tmp_path / "absent.jpg") == ()
    assert read_keywords(jpeg(tmp_path / "c.jpg", iptc(b"d" * 200, b"\x01\x02"))) == ()


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
@pytest.mark.parametrize(
    ("ending", "fields"),
    [
        (".jpg", ["XMP-dc:Subject"]),
        (".jpg", ["IPTC:Keywords"]),
        (".jpg", ["XMP-dc:Subject", "IPTC:Keywords"]),
        (".tif", ["XMP-dc:Subject", "IPTC:Keywords"]),
        (".png", ["XMP-dc:Subject"]),
        (".webp", ["XMP-dc:Subject"]),
    ],
)
def test_keywords_that_exiftool_has_written(tmp_path, ending, fields):
    path = tmp_path / f"photograph{ending}"
    Image.new("RGB", (16, 16)).save(path)
    words = [f"-{name}={keyword}" for name in fields for keyword in ("big dog", "Zoë")]
    coding = ["-IPTC:CodedCharacterSet=UTF8"] * ("IPTC:Keywords" in fields)
    subprocess.run(["exiftool", "-q", "-overwrite_original", *coding, *words, str(path)], check=True)
    assert sorted(read_keywords(path)) == ["Zoë", "big dog"]
