"""Files that are either whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under a temporary name in the same folder, then rename it.

    Args:
        path: final name; its folder is made if missing.
        write: gets the open binary file.

    Raises:
        OSError: from the file system, such as a full disk; the temporary file is removed and an older
            `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The ending marks what a killed process leaves behind; readers look for the final endings only.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem[:40]}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        # mkstemp makes files private; results follow the user's umask.
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
