"""Downloads a file once, and only if it has the checksum that was asked for."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import socket
import time
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse

from rca_lightning.errors import ArgumentError, WeightsError
from rca_lightning.io.atomic import alone_in, check_writable, output_errors

TIMEOUT = 30.0  # seconds without an answer
_ABANDONED = 3600.0  # seconds after which nobody writes to what a killed download has left


def fetch(url: str, *, sha256: str | None, name: str | None = None) -> Path:
    """Download a file into the cache, or find it there.

    The file gets its name when its checksum is right. Of several processes that ask for it at once, the first downloads
    it and the others wait; where the file system has no locks, each downloads it for itself.

    Args:
        url: http or https address.
        sha256: what the file must have, 64 hexadecimal digits.
        name: of the file in the cache; by default made of checksum and address.

    Returns:
        The file in the folder `RCA_CACHE` names, `~/.cache/rca_lightning` by default.

    Raises:
        ArgumentError: no checksum, or not 64 digits.
        WeightsError: the download fails or has another checksum; nothing of it is kept then.
        OutputError: the cache folder takes no files.
    """
    if sha256 is None or not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise ArgumentError(
            "sha256",
            sha256,
            f"{url} is downloaded only with its checksum (weights_sha256 of a backbone). "
            "Give the 64 digits its publisher names, or those `sha256sum FILE` prints for a copy you trust",
        )
    folder = cache_folder()
    base = re.sub(r"[^A-Za-z0-9._-]", "_", urlparse(url).path.rsplit("/", 1)[-1])
    target = folder / (name or f"{sha256[:16].lower()}-{base}")
    remedy = "set RCA_CACHE to a folder where files can be made"
    if _is_there(target, sha256, remedy):
        return target
    check_writable("RCA_CACHE", folder, remedy=remedy)
    with alone_in(folder):
        if not _is_there(target, sha256, remedy):  # else another process has been quicker
            _download(url, target, sha256.lower())
    return target


def _is_there(target: Path, sha256: str, remedy: str) -> bool:
    with output_errors("RCA_CACHE", target.parent, remedy):
        return target.is_file() and file_sha256(target) == sha256.lower()


def _download(url: str, target: Path, sha256: str) -> None:
    from torch.hub import download_url_to_file  # torch takes seconds, and most runs find the file in the cache

    for part in target.parent.glob(f"{glob.escape(target.name)}.*.partial"):  # of killed processes
        if time.time() - part.stat().st_mtime > _ABANDONED:
            part.unlink(missing_ok=True)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # download_url_to_file has no argument for it, and would wait for ever
    try:
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        download_url_to_file(url, str(target), hash_prefix=sha256, progress=first)
    except (OSError, HTTPException, ValueError, RuntimeError) as error:
        reason: Exception = error
        if isinstance(error, RuntimeError):  # so ends a connection that breaks off, too; to urllib that is no error
            reason = WeightsError(f"it broke off or is another file: {error}")
        raise WeightsError(
            f"{url} cannot be downloaded ({reason}). Try again, give the checksum of the file you mean, or get the "
            "file by other means and give its path"
        ) from reason
    finally:
        socket.setdefaulttimeout(before)


def cache_folder() -> Path:
    """Where downloads are kept: `RCA_CACHE`, else `rca_lightning` in the cache folder of the user."""
    if chosen := os.environ.get("RCA_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rca_lightning"


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file as 64 lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_sha256(path: Path, sha256: str) -> None:
    """Compare a file with its checksum of 64 hexadecimal digits.

    Raises:
        WeightsError: if they differ; shows both sums.
    """
    actual = file_sha256(path)
    if actual != sha256.lower():
        raise WeightsError(
            f"{path} has the SHA-256 {actual}, but {sha256.lower()} was asked for; it was not loaded. "
            "Give the sum of the file you mean, or get an undamaged copy"
        )
