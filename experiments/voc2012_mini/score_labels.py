"""Scores the pseudo labels of stored maps with several refinements; the threshold comes from another split.

python experiments/voc2012_mini/score_labels.py --config experiments/voc2012_mini/rca.yaml --root VOC2012 \\
    --maps predictions/cams --affinity affinity.ckpt --out labels.json \\
    --ways none=0.4:0.6 dense_crf=0.35:0.45 affinity=0.4:0.6 affinity,dense_crf=0.3:0.4

`rca labels` and its `pseudo_labels.json` give each of these numbers by themselves. Here maps and boundaries are
computed once, every threshold of a way is scored on one split, and the other split at the best of them alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from torch import Tensor

from rca_lightning import WSSSDataModule
from rca_lightning.callbacks.feature_cache import FeatureCacheCallback
from rca_lightning.data.visualization import colours
from rca_lightning.evaluation.label_iou import LabelIoU
from rca_lightning.evaluation.report import Scores
from rca_lightning.modules.affinity_module import AffinityModule, load_affinity
from rca_lightning.pseudo_labels.affinity import walk_class_maps
from rca_lightning.pseudo_labels.files import read_maps
from rca_lightning.pseudo_labels.labels import label_scores
from rca_lightning.pseudo_labels.proposals import ProposalFolder, Proposals, read_proposals, superpixels
from rca_lightning.pseudo_labels.refinement import refine_scores

_EVERY = 50  # images between two lines of progress
_STEP = 0.05  # between two thresholds

Way = tuple[str, ...]  # names of refinements in their order


def main() -> None:
    """Reads the arguments, scores both splits, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="configuration of rca fit; its part data is read")
    parser.add_argument("--root", help="folder of the photographs; generated ones need none")
    parser.add_argument("--synthetic-seed", type=int, default=0, help="of generated photographs")
    parser.add_argument("--maps", required=True, type=Path, help="folder cams of rca predict")
    parser.add_argument("--affinity", help="checkpoint of rca affinity fit, for ways with affinity")
    parser.add_argument(
        "--features", help="folder of the feature cache of rca affinity fit, to read and not compute them"
    )
    parser.add_argument("--proposals", help="folder of proposals, for ways with proposals; else superpixels")
    parser.add_argument(
        "--ways",
        nargs="+",
        required=True,
        help="NAMES=FIRST:LAST, refinements and thresholds; of a single one nothing is chosen",
    )
    parser.add_argument("--chosen-on", default="train_a", help="split that thresholds are chosen on")
    parser.add_argument("--reported-on", default="train_b", help="split that is scored at the chosen threshold")
    parser.add_argument("--out", required=True, type=Path, help="JSON file")
    given = parser.parse_args()
    ways = dict(_way(text) for text in given.ways)
    affinity = None if given.affinity is None else load_affinity(given.affinity)
    several = {way: thresholds for way, thresholds in ways.items() if len(thresholds) > 1}
    chosen_on = score(given, given.chosen_on, several, affinity) if several else {}
    best = {way: thresholds[0] for way, thresholds in ways.items()}
    best |= {way: max(curve, key=lambda threshold: curve[threshold].miou) for way, curve in chosen_on.items()}
    known = chosen_on if given.reported_on == given.chosen_on else {}
    left = {way: [threshold] for way, threshold in best.items() if way not in known}
    reported = known | (score(given, given.reported_on, left, affinity) if left else {})
    rows = []
    for way, threshold in best.items():
        curve = {value: round(100 * scores.miou, 2) for value, scores in chosen_on.get(way, {}).items()}
        chosen = {given.chosen_on: curve[threshold], "curve": curve} if curve else {}
        miou = round(100 * reported[way][threshold].miou, 2)
        rows.append({"refine": list(way), "threshold": threshold, **chosen, given.reported_on: miou})
        print(", ".join(f"{name} {value}" for name, value in rows[-1].items() if name != "curve"))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(rows, indent=2) + "\n")


def _way(text: str) -> tuple[Way, list[float]]:
    names, _, ends = text.partition("=")
    first, last = (float(end) for end in ends.split(":"))
    thresholds = [round(first + _STEP * step, 2) for step in range(round((last - first) / _STEP) + 1)]
    return tuple(name for name in names.split(",") if name != "none"), thresholds


def score(
    given: argparse.Namespace, split: str, ways: dict[Way, list[float]], affinity: AffinityModule | None
) -> dict[Way, dict[float, Scores]]:
    """Scores every threshold of every way on a split."""
    options = yaml.safe_load(Path(given.config).read_text())["data"]
    given_too = {"root": given.root, "synthetic_seed": given.synthetic_seed}
    data = WSSSDataModule(**{**options, **given_too, "eval_split": split, "eval_batch_size": 1})
    data.prepare_data()
    if affinity is not None and given.features is not None:
        trainer: Any = SimpleNamespace(datamodule=data)
        FeatureCacheCallback(given.features).setup(trainer, affinity, "validate")
    data.setup("validate")
    folder = None if given.proposals is None else ProposalFolder(given.proposals)
    metrics = {way: {threshold: LabelIoU(data.num_classes) for threshold in ts} for way, ts in ways.items()}
    loader = data.val_dataloader()
    for count, batch in enumerate(loader, start=1):
        image, mask = batch["image"], batch["mask"][0]
        maps = read_maps(
            given.maps / f"{batch['image_id'][0]}.npz",
            size=(image.shape[2], image.shape[3]),
            num_classes=data.num_classes,
        )
        boundary = None if affinity is None else affinity.boundaries(batch)[0]
        picture, proposals = colours(image[0]), None
        if any("proposals" in way for way in ways):  # once for all thresholds
            file = None if folder is None else folder.file(batch["image_id"][0])
            assert folder is None or file is not None, f"no proposals of {batch['image_id'][0]}"
            size = (image.shape[2], image.shape[3])
            proposals = superpixels(picture) if file is None else read_proposals(file, size=size)
        for way, threshold, labels in _labels(maps.maps, maps.classes, picture, boundary, proposals, ways):
            metrics[way][threshold].update(labels, mask)
        if count % _EVERY == 0 or count == len(loader):
            print(f"{split}: image {count} of {len(loader)}", flush=True)
    return {way: {threshold: metric.compute() for threshold, metric in of.items()} for way, of in metrics.items()}


def _labels(
    maps: Tensor,
    classes: Tensor,
    picture: Tensor,
    boundary: Tensor | None,
    proposals: Proposals | None,
    ways: dict[Way, list[float]],
) -> Iterator[tuple[Way, float, Tensor]]:
    over_boundaries: Tensor | None = None
    for way, thresholds in ways.items():
        walked, rest = maps, way
        if way[:1] == ("affinity",):
            if over_boundaries is None:  # the walk is the same of every such way, and takes longest
                assert boundary is not None, "give --affinity"
                over_boundaries = walk_class_maps(maps, boundary)
            walked, rest = over_boundaries, way[1:]
        for threshold in thresholds:
            scores = torch.cat([torch.full((1, *maps.shape[1:]), threshold), walked])
            refined = refine_scores(scores, picture, rest, proposals=proposals)  # type: ignore[arg-type]
            yield way, threshold, label_scores(refined.clamp(0, 1), classes)


if __name__ == "__main__":
    main()
