"""Image ids as bytes."""

from __future__ import annotations

import pytest
import torch

from rca_lightning.rca.memory_bank import ID_BYTES, decode_id, encode_ids


@pytest.mark.parametrize("image_id", ["", "2007_000032", "a" * ID_BYTES, "é" * (ID_BYTES // 2), "日本 photo.v2", "~"])
def test_ids_that_fit_come_back_whole(image_id):
    rows = encode_ids([image_id])
    assert rows.shape == (1, ID_BYTES)
    assert rows.dtype == torch.uint8
    assert decode_id(rows[0]) == image_id


def test_long_ids_keep_their_end_and_stay_different():
    end = "/photo_000123"
    ids = [("x" * 80) + end, ("y" * 80) + end, "z" + ("x" * 80) + end]
    rows = encode_ids(ids)
    decoded = [decode_id(row) for row in rows]
    assert len(set(decoded)) == 3
    for whole, text in zip(ids, decoded, strict=True):
        assert len(text) == ID_BYTES
        digest, _, tail = text.partition("~")
        assert int(digest, 16) >= 0
        assert len(tail) >= len(end)
        assert whole.endswith(tail)


def test_one_byte_more_than_fits_is_told_apart_from_what_fits():
    assert decode_id(encode_ids(["b" + "a" * ID_BYTES])[0]) != "a" * ID_BYTES


@pytest.mark.parametrize("shift", range(4))
def test_cut_inside_a_character_decodes(shift):
    text = decode_id(encode_ids(["é€😀"[: 1 + shift % 3] * 40 + "x" * shift])[0])
    assert "~" in text
    assert len(text.encode()) >= ID_BYTES - 6


def test_file_names_that_are_no_utf8_are_accepted_and_told_apart():
    names = [b"photo\xff".decode(errors="surrogateescape"), b"photo\xfe".decode(errors="surrogateescape")]
    rows = encode_ids(names)
    assert not torch.equal(rows[0], rows[1])
    assert decode_id(rows[0]).startswith("photo")


def test_no_ids():
    assert encode_ids([]).shape == (0, ID_BYTES)


def test_checkpoints_hold_64_bytes_an_id():
    assert encode_ids(["a"]).shape == (1, 64)
