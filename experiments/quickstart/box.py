"""How much of a map is a box: what maps say of the background far from all objects, by distance from the border.

python experiments/quickstart/box.py runs/quickstart/checkpoints/last.ckpt
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from rca_lightning import RCAModule, WSSSDataModule
from rca_lightning.evaluation.seed_iou import SeedIoU

CONFIG = Path(__file__).parent.parent / "quickstart.yaml"
CELL = 8  # pixels
FAR = 12  # pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crop", type=int, help="side of a random corner, whose objects are not in its middle")
    parser.add_argument("checkpoints", type=Path, nargs="+")
    options = parser.parse_args()
    data = WSSSDataModule(**yaml.safe_load(CONFIG.read_text())["data"])
    data.prepare_data()
    data.setup("validate")
    batches = list(data.val_dataloader())
    if options.crop:
        batches = [corner(batch, options.crop, np.random.default_rng(row)) for row, batch in enumerate(batches)]
    for path in options.checkpoints:
        module = RCAModule.load_from_checkpoint(path, map_location="cpu").eval()
        for steps in (0, 1):
            module.hparams["propagation_steps"] = steps
            for final_map in ("coarse", "attention"):
                module.hparams["final_map"] = final_map
                found = {"checkpoint": str(path), "final_map": final_map, "propagation_steps": steps}
                print(json.dumps(found | measure(module, batches)), flush=True)


@torch.no_grad()
def measure(module: RCAModule, batches: list) -> dict[str, object]:
    """mIoU at the best threshold, and the mean of the maps over the far background in each ring of cells."""
    score = SeedIoU(module.hparams["num_classes"])
    sums = torch.zeros(4, 2)
    for batch in batches:
        mask = batch["mask"][0]
        seeds = module.seeds(batch["image"], batch["tags"])[0]
        score.update(seeds.maps, mask, seeds.classes)
        near = F.max_pool2d((mask != 0).float()[None], 2 * FAR + 1, stride=1, padding=FAR)[0] > 0
        ring = (border_distance(*mask.shape) // CELL).clamp_max(3)
        strongest = seeds.maps.amax(dim=0)
        for index in range(4):
            cells = ~near & (ring == index)
            sums[index] += torch.stack([strongest[cells].sum(), cells.sum()])
    rings = sums[:, 0] / sums[:, 1]
    inner = sums[2:, 0].sum() / sums[2:, 1].sum()
    result = score.compute()
    return {
        "miou": round(100 * float(result.miou), 1),
        "background_by_ring": [round(float(value), 2) for value in rings],
        "outer_over_inner": round(float(rings[0] / inner), 2),
    }


def corner(batch: dict, side: int, generator: np.random.Generator) -> dict:
    """The batch of one image with a random corner `side` pixels high and wide in place of the image."""
    height, width = batch["mask"].shape[1:]
    top, left = generator.integers(2) * (height - side), generator.integers(2) * (width - side)
    rows, columns = slice(top, top + side), slice(left, left + side)
    return batch | {"image": batch["image"][..., rows, columns], "mask": batch["mask"][..., rows, columns]}


def border_distance(height: int, width: int) -> Tensor:
    """Pixels between each pixel `(H, W)` and the nearest border."""
    rows, columns = torch.arange(height), torch.arange(width)
    return torch.minimum(torch.minimum(rows, rows.flip(0))[:, None], torch.minimum(columns, columns.flip(0))[None])


if __name__ == "__main__":
    main()
