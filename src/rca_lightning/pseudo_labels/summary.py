"""What is told of a folder of pseudo labels once it is complete."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from rca_lightning.data.records import Record
from rca_lightning.evaluation import TagSource
from rca_lightning.pseudo_labels.label_files import read_qualities
from rca_lightning.pseudo_labels.quality import quality_report
from rca_lightning.pseudo_labels.scoring import score_label_files
from rca_lightning.report import print_report, write_report

logger = logging.getLogger(__name__)


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
