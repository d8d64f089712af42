"""Image ids as fixed-size bytes, so that they travel between ranks and into checkpoints as tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

ID_BYTES = 64
_DIGEST = 16


def encode_ids(image_ids: Sequence[str]) -> Tensor:
    """Encode ids to `(R, ID_BYTES)` uint8, zero-padded UTF-8.

    An id longer than `ID_BYTES` keeps its end and gets a digest of the whole in front, so that two long ids
    stay different.
    """
    rows = torch.zeros(len(image_ids), ID_BYTES, dtype=torch.uint8)
    for row, image_id in zip(rows, image_ids, strict=True):
        data = image_id.encode(errors="surrogatepass")  # what Python makes of file names that are no UTF-8
        if len(data) > ID_BYTES:
            digest = hashlib.blake2b(data, digest_size=_DIGEST // 2).hexdigest()
            data = digest.encode() + b"~" + data[-(ID_BYTES - _DIGEST - 1) :]
        row[: len(data)] = torch.tensor(list(data), dtype=torch.uint8)
    return rows


def decode_id(row: Tensor) -> str:
    """The id in one row of `encode_ids`."""
    return bytes(row.tolist()).rstrip(b"\0").decode(errors="replace")
