"""Makes a folder of photographs with tags.csv, as a user would have it, of a part of voc2012_mini."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from rca_lightning.data.classes import VOC_CLASSES, ClassIndex
from rca_lightning.data.tag_files import write_tag_file
from rca_lightning.data.voc import VOCSource

LIST = Path(__file__).resolve().parents[1] / "voc2012_mini" / "train.txt"


def main() -> None:
    """Write `photographs` and, to score with, `true_masks` into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="VOC2012")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100)
    given = parser.parse_args()
    source = VOCSource(given.root, classes=VOC_CLASSES, split_files={"train": str(LIST)}, tags_file=None)
    records = list(source.records("train", with_masks=False))[::6][: given.count]
    images, masks = given.out / "photographs" / "images", given.out / "true_masks"
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        shutil.copy(record.image, images)
        shutil.copy(given.root / "SegmentationClass" / f"{record.image_id}.png", masks)
    rows = [(record.image_id, record.tags or ()) for record in records]
    write_tag_file(given.out / "photographs" / "tags.csv", rows, ClassIndex(VOC_CLASSES))
    (given.out / "photographs" / "classes.txt").write_text("\n".join(VOC_CLASSES) + "\n")


if __name__ == "__main__":
    main()
