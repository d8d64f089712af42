"""Scores a segmentation network on a split in every way at once: one scale or several, tags, CRF.

python experiments/voc2012_mini/score_segmenter.py --config experiments/voc2012_mini/segment.yaml --root VOC2012 \\
    --ckpt runs/voc2012_mini/segment/checkpoints/last.ckpt --scales 0.83 0.5 --out scores.json

`rca validate` gives each of these numbers by itself. Here the network, which is what takes the time, runs once a view.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import yaml

from rca_lightning import OneStageModule, SegmentationModule, WSSSDataModule
from rca_lightning.data.sample import Batch
from rca_lightning.evaluation.label_iou import LabelIoU
from rca_lightning.segmentation.inference import draw_labels, label_probabilities

_EVERY = 20  # images between two lines of progress
_TASKS = {"segment": SegmentationModule, "one_stage": OneStageModule}


def main() -> None:
    """Read the arguments, score the split, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="configuration of rca fit; its part data is read")
    parser.add_argument("--root", required=True, help="folder of the photographs")
    parser.add_argument("--ckpt", required=True, help="checkpoint of the task of the configuration")
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=[0.67],
        help="averaged; the first also by itself",
    )
    parser.add_argument("--no-flip", action="store_true", help="leave out the mirror image of each scale")
    parser.add_argument("--crf", action="store_true", help="also with the fully connected CRF (extra crf)")
    parser.add_argument("--out", required=True, type=Path, help="JSON file")
    given = parser.parse_args()
    config = yaml.safe_load(Path(given.config).read_text())
    if config.get("task") not in _TASKS:
        parser.error(f"--config: its task is {config.get('task')}; give a configuration of {' or '.join(_TASKS)}")
    data = WSSSDataModule(**{**config["data"], "root": given.root, "eval_batch_size": 1})
    data.prepare_data()
    data.setup("validate")
    module = _TASKS[config["task"]].load_from_checkpoint(given.ckpt, map_location="cpu").eval()
    module.to("cuda" if torch.cuda.is_available() else "cpu")
    metrics = {
        (scales, tags, crf): LabelIoU(data.num_classes)
        for scales in dict.fromkeys([(given.scales[0],), tuple(given.scales)])
        for tags in ("none", "image")
        for crf in ([False, True] if given.crf else [False])
    }
    loader = data.val_dataloader()
    for count, batch in enumerate(loader, start=1):
        score(module, batch, metrics, flip=not given.no_flip)
        if count % _EVERY == 0 or count == len(loader):
            print(f"image {count} of {len(loader)}", flush=True)
    report(metrics, data, given)


def score(
    module: SegmentationModule | OneStageModule,
    batch: Batch,
    metrics: dict[tuple[tuple[float, ...], str, bool], LabelIoU],
    *,
    flip: bool,
) -> None:
    """Count one photograph in every way."""
    images = batch["image"].to(module.device)
    of_scale = {
        scale: label_probabilities(module.segmenter, images, scales=(scale,), flip=flip)
        for scale in {scale for scales, _, _ in metrics for scale in scales}
    }
    for (scales, tags, crf), metric in metrics.items():
        mean = torch.stack([of_scale[scale] for scale in scales]).mean(0)
        given = batch["tags"].to(module.device) if tags == "image" else None
        (found,) = draw_labels(mean, images, tags=given, crf=crf)
        metric.update(found.labels.cpu(), batch["mask"][0])


def report(
    metrics: dict[tuple[tuple[float, ...], str, bool], LabelIoU], data: WSSSDataModule, given: argparse.Namespace
) -> None:
    """Print one line a way, write all of them."""
    rows = []
    for (scales, tags, crf), metric in metrics.items():
        scores = metric.compute()
        print(f"scales {list(scales)}, tags {tags}, CRF {crf}: {100 * scores.miou:.1f}")
        given_tags = None if tags == "none" else tags
        content = scores.as_dict(split=data.eval_split, class_names=data.class_names, tags=given_tags)
        rows.append({"scales": list(scales), "crf": crf, **content})
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
