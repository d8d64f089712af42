"""The score of label images on disk against the masks of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rca_lightning.data.masks import read_mask
from rca_lightning.data.records import Record
from rca_lightning.errors import DataError
from rca_lightning.label_iou import LabelIoU, LabelScores


def score_label_files(folder: str | Path, records: Sequence[Record], *, num_classes: int) -> LabelScores | None:
    """Score `<folder>/<id>.png` of every image that has a mask and a label.

    Args:
        folder: index images: 0 background, 1..L, 255 undecided, which is counted as not drawn.
        records: images of the data set, such as `WSSSDataModule.predict_records`.
        num_classes: foreground classes `L`.

    Returns:
        The scores; None if no image has both.

    Raises:
        DataError: if a label or a mask cannot be read, or their sizes differ.
    """
    metric = LabelIoU(num_classes, over_ranks=False)  # one process scores all, and the others do not come here
    for record in records:
        path = Path(folder) / f"{record.image_id}.png"
        if record.mask is None or not path.is_file():
            continue
        label, mask = torch.from_numpy(read_mask(path, num_classes=num_classes)), _mask(record, num_classes)
        if label.shape != mask.shape:
            raise DataError(
                f"{path}: {label.shape[1]} x {label.shape[0]} pixels, but the mask of {record.image_id} has "
                f"{mask.shape[1]} x {mask.shape[0]}; make the label of this photograph anew"
            )
        metric.update(label, mask)
    return metric.compute() if int(metric.images) else None


def _mask(record: Record, num_classes: int) -> Tensor:
    source = record.mask
    assert source is not None
    if isinstance(source, Path):
        return torch.from_numpy(read_mask(source, num_classes=num_classes))
    return torch.from_numpy(np.ascontiguousarray(source.draw()))
