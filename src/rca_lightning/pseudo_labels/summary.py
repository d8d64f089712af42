"""Quality and score of a complete folder of pseudo labels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rca_lightning.arguments import check_arguments
from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.data.dataset import load_mask
from rca_lightning.data.images import read_mask
from rca_lightning.data.records import Record
from rca_lightning.errors import DataError
from rca_lightning.evaluation.baselines import generated_baselines
from rca_lightning.evaluation.comparison import images_file
from rca_lightning.evaluation.label_iou import LabelEvaluation
from rca_lightning.evaluation.protocol import TagsOnRecord, tags_used
from rca_lightning.evaluation.report import Scores, print_report, write_report
from rca_lightning.evaluation.seed_iou import TagSource
from rca_lightning.io.output_folder import PredictionFolder
from rca_lightning.io.progress import show_progress
from rca_lightning.pseudo_labels.files import read_qualities
from rca_lightning.pseudo_labels.quality import quality_report

logger = logging.getLogger(__name__)


def score_label_files(folder: str | Path, records: Sequence[Record], *, num_classes: int) -> Scores | None:
    """Scores `<folder>/<id>.png` of every image that has a mask and a label.

    Args:
        folder: index images: 0 background, 1..L, 255 undecided, which is counted as not drawn.
        records: images of the data set, such as `WSSSDataModule.predict_records`.
        num_classes: foreground classes `L`.

    Returns:
        The scores; None if no image has both.

    Raises:
        DataError: if a label or a mask cannot be read, or their sizes differ.
    """
    # One process scores all, and the others do not come here.
    evaluation = LabelEvaluation(num_classes, over_ranks=False)
    for record in show_progress(records, what="scores", total=len(records)):
        path = Path(folder) / f"{record.image_id}.png"
        if record.mask is None or not path.is_file():
            continue
        label, mask = read_mask(path, num_classes=num_classes), load_mask(record, num_classes=num_classes)
        assert mask is not None
        if label.shape != mask.shape:
            raise DataError(
                f"{path}: {label.shape[1]} x {label.shape[0]} pixels, but the mask of {record.image_id} has "
                f"{mask.shape[1]} x {mask.shape[0]}; make the label of this photograph anew"
            )
        tags = torch.tensor([index in (record.tags or ()) for index in range(num_classes)])
        target = torch.from_numpy(mask)
        evaluation.update([torch.from_numpy(label)], target[None], tags[None], [record.image_id])
    return evaluation.finish()


@check_arguments
def write_summary(
    folder: PredictionFolder,
    records: Sequence[Record],
    *,
    class_names: Sequence[str],
    split: str,
    tags: TagSource,
    protocol: Callable[[Sequence[str], TagsOnRecord], Mapping[str, Any]] | None = None,
    data: WSSSDataModule | None = None,
) -> None:
    """Writes `quality.json`, and `pseudo_labels.json` with the score where there are masks; prints the latter.

    Args:
        folder: complete, with the kinds "pseudo_labels" and "cams" or "quality".
        records: images of the data set; those with masks are scored.
        class_names: of the `L` classes.
        split: name of the split.
        tags: whose tags the labels were made with; with "image" those of photographs without tags were predicted.
        protocol: what the score rests on, from the names of the scored images and whose tags were used of them; see
            `make_protocol`.
        data: the data set; of generated images guesses without a network are scored as well.

    Raises:
        DataError: for a label or mask that cannot be read; see `score_label_files`.
    """
    kind = "quality" if "quality" in folder.kinds else "cams"
    files = [(image_id, folder.paths(image_id)[kind]) for image_id in folder.complete_ids()]
    qualities = read_qualities(show_progress(files, what="quality", total=len(files)), num_classes=len(class_names))
    report = quality_report(qualities, class_names)
    write_report(report, folder.root / "quality.json")
    logger.info("%d of %d labels look odd: %s", report["odd"], len(files), folder.root / "quality.json")
    scores = score_label_files(folder.root / "pseudo_labels", records, num_classes=len(class_names))
    if scores is not None:
        counts, path = scores.image_counts, folder.root / "pseudo_labels.json"
        assert counts is not None
        scored = set(counts.ids)
        used = tags_used(tags, (record.tags is not None for record in records if record.image_id in scored))
        rests_on = None if protocol is None else protocol(counts.ids, used)
        guesses = None if data is None else generated_baselines(data, split, counts.ids)
        content = scores.as_dict(
            split=split, class_names=class_names, tags=used, protocol=rests_on, without_network=guesses
        )
        counts.save(images_file(path))
        write_report(content, path)
        print_report(content)
        for line in scores.warnings(class_names):
            logger.warning("%s", line)
