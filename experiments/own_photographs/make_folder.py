"""Makes a folder of photographs with tags.csv, as a user would have it: a part of voc2012_mini, or generated."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from rca_lightning.data.classes import VOC_CLASSES, ClassIndex
from rca_lightning.data.synthetic.dataset import CLASS_NAMES, generate
from rca_lightning.data.tag_files import write_tag_file
from rca_lightning.data.voc import VOCSource

LISTS = Path(__file__).resolve().parents[1] / "voc2012_mini"


def main() -> None:
    """Write `photographs` and, to score with, `true_masks` into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, help="VOC2012; left out: generated images")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--every", type=int, default=6, help="of the photographs of --root, train and then val")
    given = parser.parse_args()
    photographs, masks = given.out / "photographs", given.out / "true_masks"
    for folder in (photographs / "images", masks):
        folder.mkdir(parents=True, exist_ok=True)
    if given.root is None:
        classes = tuple(CLASS_NAMES)
        root = generate(given.out / "generated", train_images=given.count, val_images=0, image_size=256)
        source = VOCSource(root, classes=classes, tags_file="image_labels.txt")
        records = list(source.records("train", with_masks=False))
    else:
        classes, root = VOC_CLASSES, given.root
        splits = {name: str(LISTS / f"{name}.txt") for name in ("train", "val")}
        source = VOCSource(root, classes=classes, split_files=splits, tags_file=None)
        listed = [record for name in splits for record in source.records(name, with_masks=False)]
        records = listed[:: given.every][: given.count]
    for record in records:
        shutil.copy(record.image, photographs / "images")
        shutil.copy(root / "SegmentationClass" / f"{record.image_id}.png", masks)
    rows = [(record.image_id, record.tags or ()) for record in records]
    write_tag_file(photographs / "tags.csv", rows, ClassIndex(classes))
    (photographs / "classes.txt").write_text("\n".join(classes) + "\n")


if __name__ == "__main__":
    main()
