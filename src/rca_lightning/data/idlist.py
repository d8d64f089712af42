"""Split files: which images belong to a split."""

from __future__ import annotations

import re
from pathlib import Path

from rca_lightning.data.listing import check_image_id
from rca_lightning.data.textfile import read_lines
from rca_lightning.errors import DataError

_SBD_LINE = re.compile(r"/?JPEGImages/(?P<id>[^/\\\s]+)\.jpg(\s+/?SegmentationClass\w*/(?P<mask>[^/\\\s]+)\.png)?")


def read_id_list(path: Path, *, what: str = "split_files") -> list[str]:
    """Read the image ids of a split.

    A line is an id (the file name without ending), or a pair of paths as lists of the augmented
    VOC training set have them: `/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png`.

    Args:
        path: the text file.
        what: the argument the file came by, for the error.

    Returns:
        The ids in the order of the file.

    Raises:
        DatasetNotFoundError: no such file.
        DataError: no id at all, an id twice, or a line that is not one plain id.
    """
    ids: dict[str, int] = {}
    for number, line in read_lines(path, what=what):
        image_id = _id_of_line(line, where=f"{path}, line {number}")
        if image_id in ids:
            raise DataError(
                f"{path}, line {number}: id {image_id!r} stands in line {ids[image_id]} already; remove one of them"
            )
        ids[image_id] = number
    if not ids:
        raise DataError(f"{path}: no image id in it; write one id a line")
    return list(ids)


def _id_of_line(line: str, *, where: str) -> str:
    pair = _SBD_LINE.fullmatch(line)
    if pair is None:
        return check_image_id(line, where=where)
    if pair["mask"] not in {None, pair["id"]}:
        raise DataError(f"{where}: image {pair['id']!r} is paired with the mask of {pair['mask']!r}; correct the line")
    return check_image_id(pair["id"], where=where)
