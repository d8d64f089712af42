"""Finds photographs that are nearly the same, by difference hashes that are sorted and not compared pair by pair."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from rca_lightning.data.images import open_image
from rca_lightning.errors import DataError, DatasetNotFoundError
from rca_lightning.io.atomic import write_atomically

Hashes = npt.NDArray[np.uint64]

MAX_BITS = 3
"""Bits of either hash in which two photographs may differ and still count as nearly the same."""

MOST_PAIRS = 100_000
"""Most pairs that are found: a folder of copies has more of them than memory."""

_BANDS = MAX_BITS + 1  # of 64 bits: at most three that differ leave one band of the four as it is
_WINDOW = 16  # neighbours in the order of a band that are looked at, so that a thousand copies stay cheap
_EVERY = 5000  # photographs between two times that hashes are kept
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)  # of each byte
_MOST_TIMES = 50
_WEIGHTS = np.uint64(1) << np.arange(64, dtype=np.uint64)


def difference_hash(path: Path) -> tuple[int, int]:
    """Difference hashes of an image file: whether each of 8 x 8 parts is brighter than its right and its lower one.

    A JPEG is decoded at an eighth of its size where that is enough.

    Returns:
        64 bits across and 64 bits down.

    Raises:
        DatasetNotFoundError: no such file.
        DataError: not an image, or damaged.
    """
    with open_image(path) as image:
        image.draft("L", (72, 72))
        small = image.convert("L").resize((9, 9), Image.Resampling.BOX)
    grey = np.asarray(small, dtype=np.int16)
    across = (grey[:8, :8] > grey[:8, 1:]).ravel()
    down = (grey[:8, :8] > grey[1:, :8]).ravel()
    return int((across * _WEIGHTS).sum(dtype=np.uint64)), int((down * _WEIGHTS).sum(dtype=np.uint64))


def hash_photographs(
    images: Mapping[str, Path],
    kept: Path,
    *,
    others: Iterable[Path] = (),
    each: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Hashes, Hashes, dict[str, str]]:
    """Compute the hashes of photographs, and keep them in a file for the next time.

    Args:
        images: file of each photograph by id.
        kept: npz file; hashes of files of the same size and time of change are read from it.
        others: further such files that hashes are read from, of other processes.
        each: called with the number of photographs that are done, and of all.

    Returns:
        `(N,)` and `(N,)` uint64 as `difference_hash` returns them, and of photographs that cannot be read the reason;
        these have hashes of their own, so that they are near no other.

    Raises:
        OSError: the file cannot be written.
    """
    found = (_key(image_id, path) for image_id, path in images.items())
    keys = np.fromiter(found, dtype=np.uint64, count=len(images))
    known = _join([_read_kept(path) for path in (kept, *others)])
    places = np.searchsorted(known[0], keys)
    places[places == len(known[0])] = 0
    has = known[0][places] == keys if len(known[0]) else np.zeros(len(keys), dtype=np.bool_)
    across, down = np.zeros(len(keys), dtype=np.uint64), np.zeros(len(keys), dtype=np.uint64)
    across[has], down[has] = known[1][places[has]], known[2][places[has]]
    unread: dict[str, str] = {}
    missing, done = ~has, 0
    total = int(missing.sum())
    for row, (image_id, path) in enumerate(images.items()):
        if not missing[row]:
            continue
        try:
            across[row], down[row] = difference_hash(path)
            has[row] = True
        except (DataError, DatasetNotFoundError) as error:
            unread[image_id] = str(error)
            across[row] = down[row] = keys[row]
        done += 1
        each(done, total)
        if done % max(_EVERY, total // _MOST_TIMES) == 0:
            _keep(kept, keys[has], across[has], down[has])
    if total or not np.array_equal(np.sort(keys[has]), _read_kept(kept)[0]):
        _keep(kept, keys[has], across[has], down[has])
    return across, down, unread


def _key(image_id: str, path: Path) -> int:
    """Digest of what tells whether a photograph is still the same."""
    try:
        status = path.stat()
    except OSError:
        return 0
    name = f"{status.st_size} {status.st_mtime_ns} {image_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")


def _read_kept(path: Path) -> tuple[Hashes, Hashes, Hashes]:
    """Keys in rising order and both hashes; none where the file is damaged."""
    empty = np.zeros(0, dtype=np.uint64)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            kept = arrays["keys"], arrays["across"], arrays["down"]
    except Exception:  # zip and numpy each have errors of their own for a damaged file
        return empty, empty, empty
    if any(array.dtype != np.uint64 or array.shape != kept[0].shape or array.ndim != 1 for array in kept):
        return empty, empty, empty
    return kept


def _join(files: list[tuple[Hashes, Hashes, Hashes]]) -> tuple[Hashes, Hashes, Hashes]:
    """Those of several files, as of one."""
    keys, across, down = (np.concatenate(arrays) for arrays in zip(*files, strict=True))
    order = np.argsort(keys, kind="stable")
    return keys[order], across[order], down[order]


def _keep(path: Path, keys: Hashes, across: Hashes, down: Hashes) -> None:
    order = np.argsort(keys)
    arrays = {"keys": keys[order], "across": across[order], "down": down[order]}
    write_atomically(path, lambda file: np.savez(file, allow_pickle=False, **arrays))


def near_duplicates(across: Hashes, down: Hashes) -> list[tuple[int, int]]:
    """Find pairs of photographs whose hashes differ in at most `MAX_BITS` bits each.

    Photographs are sorted by each quarter of the first hash, and each is compared with its next neighbours that have
    the same quarter. That finds every pair as long as fewer than 16 photographs lie between the two, and of many copies
    of one photograph at least those that follow each other.

    Args:
        across: `(N,)` uint64, the first hash of each photograph.
        down: `(N,)` uint64, the second.

    Returns:
        Pairs of row numbers, the smaller first, sorted; the first `MOST_PAIRS` where there are more.

    Example:
        >>> near_duplicates(np.array([7, 0x1F << 40, 5], np.uint64), np.array([9, 9, 9], np.uint64))
        [(0, 2)]
    """
    codes, total = [np.zeros(0, dtype=np.int64)], len(across)
    for band in range(_BANDS):
        values = (across >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        order = np.lexsort((down, across, values))
        for offset in range(1, min(_WINDOW, len(order))):
            first, second = order[:-offset], order[offset:]
            same = values[first] == values[second]
            first, second = first[same], second[same]
            near = _differing_bits(across[first], across[second]) <= MAX_BITS
            near &= _differing_bits(down[first], down[second]) <= MAX_BITS
            codes.append(np.minimum(first[near], second[near]) * total + np.maximum(first[near], second[near]))
            if sum(map(len, codes)) > 4 * MOST_PAIRS:
                codes = [np.unique(np.concatenate(codes))[:MOST_PAIRS]]
    return [divmod(code, total) for code in np.unique(np.concatenate(codes))[:MOST_PAIRS].tolist()]


def _differing_bits(first: Hashes, second: Hashes) -> npt.NDArray[np.int64]:
    bits, count = first ^ second, np.zeros(len(first), dtype=np.int64)
    for place in range(0, 64, 8):  # a byte of each at a time: small arrays, however many there are
        count += _BITS[(bits >> np.uint64(place)).astype(np.uint8)]
    return count
