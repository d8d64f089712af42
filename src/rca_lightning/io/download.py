"""Downloads a file once, and only if it is the one its checksum promises."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlparse
from urllib.request import urlopen

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from rca_lightning.errors import ArgumentError, WeightsError

CHUNK = 1 << 20  # bytes
LONG = 16 << 20  # bytes from which on a download shows its progress
TIMEOUT = 30.0  # seconds without an answer


def fetch(url: str, *, sha256: str | None) -> Path:
    """Download a file into the cache, or find it there.

    A process writes to a file of its own and moves it into place when its checksum is right, so that several
    processes may ask for the same file at once.

    Args:
        url: http or https address.
        sha256: what the file must have, 64 hexadecimal digits.

    Returns:
        The file in the folder `RCA_CACHE` names, `~/.cache/rca_lightning` by default.

    Raises:
        ArgumentError: if `sha256` is None.
        WeightsError: if the download fails or has another checksum; nothing of it is kept then.
    """
    if sha256 is None:
        raise ArgumentError(
            "sha256",
            None,
            f"{url} is downloaded only with its checksum (weights_sha256 of a backbone). "
            "Give the 64 digits its publisher names, or those `sha256sum FILE` prints for a copy you trust",
        )
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    base = re.sub(r"[^A-Za-z0-9._-]", "_", urlparse(url).path.rsplit("/", 1)[-1])
    target = folder / f"{sha256[:16].lower()}-{base}"
    if target.is_file() and file_sha256(target) == sha256.lower():
        return target
    handle, name = tempfile.mkstemp(dir=folder, prefix=f"{target.name}.", suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            _copy(url, file)
        check_sha256(part, sha256, origin=url)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def cache_folder() -> Path:
    """Where downloads are kept: `RCA_CACHE`, else `rca_lightning` in the cache folder of the user."""
    if chosen := os.environ.get("RCA_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rca_lightning"


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file as 64 lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check_sha256(path: Path, sha256: str, *, origin: str | None = None) -> None:
    """Compare a file with its checksum.

    Args:
        path: the file.
        sha256: 64 hexadecimal digits.
        origin: what to call the file in the error; its path by default.

    Raises:
        WeightsError: if they differ; shows both sums.
    """
    found = file_sha256(path)
    if found != sha256.lower():
        raise WeightsError(
            f"{origin or path} has the SHA-256 {found}, but {sha256.lower()} was asked for; it was not loaded. "
            "Give the sum of the file you mean, or get an undamaged copy"
        )


def _copy(url: str, file: BinaryIO) -> None:
    """Copy what a URL answers into an open file."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    try:
        with urlopen(url, timeout=TIMEOUT) as answer:
            length = answer.headers.get("Content-Length")
            total = int(length) if length and length.isdigit() else None
            quiet = (total is not None and total < LONG) or os.environ.get("LOCAL_RANK", "0") != "0"
            with Progress(*columns, transient=True, disable=quiet) as progress:
                task = progress.add_task(url.rsplit("/", 1)[-1], total=total)
                while chunk := answer.read(CHUNK):
                    file.write(chunk)
                    progress.advance(task, len(chunk))
    except (OSError, HTTPException, ValueError) as error:  # OSError covers urllib's own
        raise WeightsError(
            f"{url} cannot be downloaded ({error}). Try again, or get the file by other means and give its path"
        ) from error
