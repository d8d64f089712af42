"""Scores maps that are propagated by the cosines of their own embeddings, or by a transformer of random weights.

python experiments/voc2012_mini/score_affinity.py --config experiments/voc2012_mini/rca.yaml --root VOC2012 \\
    --ckpt runs/voc2012_mini/rca/checkpoints/last.ckpt --out scores.json

What a random transformer holds for alike says nothing, so it has to lose: a stand-in for what a trained one would have
to win. Scale 1.0, no mirror image, tags given. The threshold is chosen on train_a, scores are of train_b. Needs timm.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml

from rca_lightning import RCAModule, SeedIoU, WSSSDataModule
from rca_lightning.backbones.build import build_backbone
from rca_lightning.rca.cam import max_normalise
from rca_lightning.rca.propagation import propagate

WAYS = ("none", "cosine of the embeddings", "attention of a random ViT-S/16", "keys of a random ViT-S/16")
_EVERY = 50  # images between two lines of progress


def main() -> None:
    """Read the arguments, score both splits in every way, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="configuration of rca fit; its part data is read")
    parser.add_argument("--root", required=True, help="folder of the photographs")
    parser.add_argument("--ckpt", required=True, help="checkpoint of a frozen fit")
    parser.add_argument("--seed", type=int, default=0, help="of the random transformer")
    parser.add_argument("--every", type=int, default=1, help="score every n-th photograph only")
    parser.add_argument("--out", required=True, type=Path, help="JSON file")
    given = parser.parse_args()
    module = RCAModule.load_from_checkpoint(given.ckpt, map_location="cpu").eval()
    torch.manual_seed(given.seed)
    random = build_backbone("timm:vit_small_patch16_224", weights="none").eval()
    scores = {split: score(module, random, given, split) for split in ("train_a", "train_b")}
    rows = []
    for way in WAYS:
        chosen = scores["train_a"][way].threshold
        row = {"propagation by": way, "threshold": chosen, "train_a": scores["train_a"][way].miou}
        rows.append(row | {"train_b": scores["train_b"][way].curve[chosen], "images": scores["train_b"][way].images})
        print(f"{way:32} train_a {100 * row['train_a']:5.1f}  train_b {100 * rows[-1]['train_b']:5.1f}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    content = {"checkpoint": Path(given.ckpt).name, "seed": given.seed, "every": given.every, "scores": rows}
    given.out.write_text(json.dumps(content, indent=1) + "\n")


@torch.no_grad()
def score(module: RCAModule, random: torch.nn.Module, given: argparse.Namespace, split: str) -> dict:
    """Scores of a split by what maps are propagated by."""
    options = yaml.safe_load(Path(given.config).read_text())["data"]
    data = WSSSDataModule(**{**options, "root": given.root, "eval_split": split})
    data.setup("validate")
    metrics = {way: SeedIoU(data.num_classes) for way in WAYS}
    loader = data.val_dataloader()
    for count, batch in enumerate(loader):
        if count % given.every:
            continue
        image, tags, mask = batch["image"], batch["tags"], batch["mask"]
        classes = torch.nonzero(tags[0] > 0)[:, 0]
        maps = module.network.read(module.network.stages(image), tags)
        cam = maps.final_cam(module.hparams["final_map"])[:, classes]
        cells = tuple(cam.shape[2:])
        # On the grid of the maps, whose cells are 16 pixels too; a stage of the ResNet may have one more a side.
        same = F.interpolate(image, (16 * cells[0], 16 * cells[1]), mode="bilinear", align_corners=False)
        relations = {
            WAYS[2]: {"affinity": random.affinity(same, kind="attention")},
            WAYS[3]: {"affinity": random.affinity(same, kind="keys").square()},
        }
        for way, metric in metrics.items():
            steps = 0 if way == "none" else module.hparams["propagation_steps"]
            propagated = propagate(cam, maps.embeddings, steps=steps, **relations.get(way, {}))
            enlarged = F.interpolate(propagated, mask.shape[1:], mode="bilinear", align_corners=False)[0]
            metric.update(max_normalise(enlarged), mask[0], classes)
        if count % _EVERY == 0:
            print(f"{split}: image {count + 1} of {len(loader)}", flush=True)
    return {way: metric.compute() for way, metric in metrics.items()}


if __name__ == "__main__":
    main()
