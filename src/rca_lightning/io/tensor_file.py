"""Safe loading of `torch.save` files: runs no code, and takes no more memory than the file is long."""

from __future__ import annotations

import hashlib
import re
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# The only callable that `weights_only` allows and that allocates as much memory as the file asks for.
_BYTEARRAY = b"bytearray"
_CHUNK = 1 << 24
_COMPILED = "_orig_mod."
_ALIGNMENT = rb"0{0,5}[1-9][0-9]{0,5}"  # torch divides by it unchecked: a 0 ends the process


class TorchScriptError(ValueError):
    """A file is a program of TorchScript, not one of tensors."""


def load_tensors(path: str | Path, *, map_location: str) -> Any:
    """Loads tensors by `torch.load(path, weights_only=True)`; refuses files that unpack to more than their length.

    Args:
        path: the file.
        map_location: device of the tensors; `"meta"` reads everything but them.

    Raises:
        TorchScriptError: for a program, which would be run.
        Exception: pickle, zip and torch each have errors of their own for a damaged or hostile file.
    """
    path = Path(path)
    with path.open("rb") as file:
        is_archive = file.read(2) == b"PK"
    (_check_archive if is_archive else _check_pickle)(path)
    return torch.load(path, map_location=map_location, weights_only=True)


def plain_name(name: str) -> str:
    """Name of a weight without what `torch.compile` puts into it where a compiled network was assigned."""
    return name.replace(_COMPILED, "")


def is_whole(value: Tensor) -> bool:
    """Whether the storage of a tensor has all the values of its shape; an expanded one has fewer."""
    if value.layout != torch.strided or value.is_quantized or value.is_nested:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.filename.endswith("/constants.pkl") for member in members):
            raise TorchScriptError("it is a program of TorchScript")
        # torch compresses nothing, so the members together are no longer than the file, unless they overlap.
        compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if compressed or sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("it unpacks to more than it is long")
        for member in members:
            if member.filename.endswith(".pkl") and _BYTEARRAY in archive.read(member):
                raise ValueError("it asks for a bytearray")
            if member.filename.endswith(".storage_alignment") and not re.fullmatch(_ALIGNMENT, archive.read(member)):
                raise ValueError("its storage alignment is none")


def _check_pickle(path: Path) -> None:
    """Checks a file from before torch 1.6: pickles, then the values. Tar archives, still older, would be unpacked."""
    if tarfile.is_tarfile(path):
        raise ValueError("it is a tar archive")
    end = b""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            if _BYTEARRAY in end + chunk:
                raise ValueError("it asks for a bytearray")
            end = chunk[-len(_BYTEARRAY) :]


def tensor_digest(*states: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors and their names, the same wherever the tensors are."""
    digest = hashlib.sha256()
    for name, value in sorted(item for state in states for item in state.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
