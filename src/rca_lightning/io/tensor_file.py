"""Files of tensors that `torch.save` has written, read without running or inflating anything in them."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Of all that `weights_only` lets a file call, this alone fills as much memory as the file asks for.
_FILLS_MEMORY = b"bytearray"
_CHUNK = 1 << 24
_MOST_DIGITS = 6


def load_tensors(path: str | Path, *, map_location: str) -> Any:
    """What `torch.load(path, weights_only=True)` gives, of files that take no more memory than they are long.

    Args:
        path: the file.
        map_location: device of the tensors; `"meta"` reads everything but them.

    Raises:
        Exception: pickle, zip and torch each have errors of their own for a damaged or hostile file.
    """
    path = Path(path)
    with path.open("rb") as file:
        is_archive = file.read(2) == b"PK"
    if is_archive:
        _check_archive(path)
    else:
        _check_plain(path)
    return torch.load(path, map_location=map_location, weights_only=True)


def is_whole(value: Tensor) -> bool:
    """Whether a tensor has as many numbers as its shape says: one number may be stretched to any shape."""
    if value.layout != torch.strided or value.is_quantized or value.is_nested:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        # torch packs nothing, so all of it together is as long as the file, unless members lie over each other.
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if packed or sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("it unpacks to more than it is long")
        for member in members:
            if member.filename.endswith(".pkl") and _FILLS_MEMORY in archive.read(member):
                raise ValueError("it asks for a bytearray")
            if member.filename.endswith(".storage_alignment") and not _is_alignment(archive.read(member)):
                raise ValueError("its storage alignment is none")


def _is_alignment(content: bytes) -> bool:
    # torch divides by it without looking, and a 0 ends the process
    return content.isdigit() and len(content) <= _MOST_DIGITS and int(content) > 0


def _check_plain(path: Path) -> None:
    """Files from before torch 1.6: pickles, then the numbers. Still older ones would be unpacked."""
    if tarfile.is_tarfile(path):
        raise ValueError("it is a tar archive")
    end = b""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            if _FILLS_MEMORY in end + chunk:
                raise ValueError("it asks for a bytearray")
            end = chunk[-len(_FILLS_MEMORY) :]
