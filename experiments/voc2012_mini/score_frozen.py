"""Scores checkpoints of `--task segment_frozen` on a split in every way at once: tags given or not, walk or not, CRF.

python experiments/voc2012_mini/score_frozen.py --config experiments/voc2012_mini/segment_frozen.yaml --root VOC2012 \\
    --ckpt masks=runs/ceiling/checkpoints/last.ckpt rca=runs/rca/checkpoints/last.ckpt --out scores.json

`rca validate` gives each of these numbers by itself. Here the backbone, which is what takes the time and which all
checkpoints have to share, runs once a view.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import yaml

from rca_lightning import FrozenSegmentationModule, WSSSDataModule
from rca_lightning.data.sample import Batch
from rca_lightning.evaluation.label_iou import LabelIoU
from rca_lightning.io.tensor_file import tensor_digest
from rca_lightning.segmentation.frozen_segmenter import walk_probabilities
from rca_lightning.segmentation.inference import draw_labels

_EVERY = 20  # images between two lines of progress
_VIEWS = ("scales", "flip", "max_side")  # arguments of a module
Way = tuple[str, str, str]  # checkpoint, tags, refinement


def main() -> None:
    """Read the arguments, score the split, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="configuration of rca fit; its part data is read")
    parser.add_argument("--root", required=True, help="folder of the photographs")
    parser.add_argument("--ckpt", required=True, nargs="+", metavar="NAME=FILE", help="checkpoints of segment_frozen")
    parser.add_argument("--split", default="val")
    parser.add_argument("--tags", nargs="+", choices=("none", "image"), default=["none", "image"], help="given or not")
    parser.add_argument("--every", type=int, default=1, help="score every n-th photograph only")
    parser.add_argument("--crf", action="store_true", help="also walked and with the fully connected CRF (extra crf)")
    parser.add_argument("--out", required=True, type=Path, help="JSON file")
    given = parser.parse_args()
    options = yaml.safe_load(Path(given.config).read_text())["data"]
    data = WSSSDataModule(**{**options, "root": given.root, "eval_split": given.split})
    data.prepare_data()
    data.setup("validate")
    modules = {name: load(file) for name, file in (word.split("=", 1) for word in given.ckpt)}
    digests = {tensor_digest(module.network.backbone.state_dict()) for module in modules.values()}
    if len(digests) > 1:
        parser.error("--ckpt: the checkpoints do not share one backbone; score them one by one")
    seen = {tuple(str(module.hparams[name]) for name in _VIEWS) for module in modules.values()}
    if len(seen) > 1:
        parser.error(f"--ckpt: the checkpoints differ in {', '.join(_VIEWS)}; score them one by one")
    ways = ["none", "walk"] + ["walk, dense_crf"] * given.crf
    metrics: dict[Way, LabelIoU] = {
        (name, tags, way): LabelIoU(data.num_classes) for name in modules for tags in given.tags for way in ways
    }
    loader = data.val_dataloader()
    for count, batch in enumerate(loader):
        if count % given.every == 0:
            score(modules, batch, metrics)
        if count % _EVERY == 0:
            print(f"image {count + 1} of {len(loader)}", flush=True)
    report(metrics, modules, given)


def load(file: str) -> FrozenSegmentationModule:
    """The module of a checkpoint, on a GPU where there is one."""
    module = FrozenSegmentationModule.load_from_checkpoint(file, map_location="cpu").eval()
    return module.to("cuda" if torch.cuda.is_available() else "cpu")


def score(modules: dict[str, FrozenSegmentationModule], batch: Batch, metrics: dict[Way, LabelIoU]) -> None:
    """Count one photograph in every way."""
    first = next(iter(modules.values()))
    images = batch["image"].to(first.device)
    views = first.network.views(images, **{name: first.hparams[name] for name in _VIEWS})
    names = ("propagation_steps", "propagation_power")
    for name, module in modules.items():
        for tags in dict.fromkeys(tags for _, tags, _ in metrics):
            given = batch["tags"].to(module.device) if tags == "image" else None
            options = {option: module.hparams[option] for option in names}
            mean, boundary = module.network.unwalked(views, given, **options)
            walked = mean if boundary is None else walk_probabilities(mean, boundary)
            for way in {way for _, _, way in metrics}:
                crf, side = way.endswith("dense_crf"), module.hparams["max_side"]
                probabilities = mean if way == "none" else walked
                (found,) = draw_labels(probabilities, images, tags=given, crf=crf, max_side=side)
                metrics[name, tags, way].update(found.labels.cpu(), batch["mask"][0])


def report(
    metrics: dict[Way, LabelIoU], modules: dict[str, FrozenSegmentationModule], given: argparse.Namespace
) -> None:
    """Print a table and write the scores."""
    first = next(iter(modules.values()))
    results = []
    for (name, tags, way), metric in metrics.items():
        scores = metric.compute()
        print(f"{name:12} tags {tags:6} {way:15} mIoU {100 * scores.miou:5.1f}  images {scores.images}")
        entry = {"checkpoint": name, "tags": tags, "refinement": way, "miou": scores.miou, "images": scores.images}
        results.append(entry | {"iou": scores.iou.tolist()})
    settings = {
        name: first.hparams[name]
        for name in ("scales", "flip", "propagation_steps", "propagation_power", "penalty", "tag_prior")
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(
        json.dumps({"split": given.split, "every": given.every, **settings, "scores": results}, indent=1)
    )


if __name__ == "__main__":
    main()
