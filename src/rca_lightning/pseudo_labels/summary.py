"""What is told of a folder of pseudo labels once it is complete."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rca_lightning.data.images import read_mask
from rca_lightning.data.records import Record
from rca_lightning.errors import DataError
from rca_lightning.evaluation.label_iou import LabelIoU, LabelScores
from rca_lightning.evaluation.report import print_report, write_report
from rca_lightning.evaluation.seed_iou import TagSource
from rca_lightning.pseudo_labels.files import read_qualities
from rca_lightning.pseudo_labels.quality import quality_report

logger = logging.getLogger(__name__)


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


def write_summary(
    folder: Path,
    qualities: Sequence[tuple[str, Path]],
    records: Sequence[Record],
    *,
    class_names: Sequence[str],
    split: str,
    tags: TagSource,
) -> None:
    """Write `quality.json`, and `pseudo_labels.json` with the score where there are masks; print the latter.

    Args:
        folder: of the results, with the labels in `pseudo_labels`.
        qualities: image id and npz file of every label.
        records: images of the data set; those with masks are scored.
        class_names: of the `L` classes.
        split: name of the split.
        tags: whose tags the labels were made with.

    Raises:
        DataError: for a label or mask that cannot be read; see `score_label_files`.
    """
    report = quality_report(read_qualities(qualities, num_classes=len(class_names)), class_names)
    write_report(report, folder / "quality.json")
    logger.info("%d of %d labels look odd: %s", report["odd"], len(qualities), folder / "quality.json")
    scores = score_label_files(folder / "pseudo_labels", records, num_classes=len(class_names))
    if scores is not None:
        content = scores.as_dict(split=split, class_names=class_names, tags=tags)
        write_report(content, folder / "pseudo_labels.json")
        print_report(content)
