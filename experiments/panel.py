"""Draw photograph, plain CAM, RCA and mask side by side from two checkpoints.

python experiments/panel.py --config experiments/quickstart.yaml --cam runs/cam.ckpt --rca runs/rca.ckpt --out panel.png
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from rca_lightning import RCAModule, WSSSDataModule
from rca_lightning.data.visualization import denormalise, draw_panel, overlay_maps, overlay_mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the YAML whose data section to use")
    parser.add_argument("--root", help="folder of the data set, if the YAML names none")
    parser.add_argument("--split", default="val")
    parser.add_argument("--cam", type=Path, required=True, help="checkpoint of the plain CAM")
    parser.add_argument("--rca", type=Path, required=True, help="checkpoint of RCA")
    parser.add_argument("--first", type=int, default=0, help="skip so many images")
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--titles", nargs=2, default=["plain CAM", "RCA"], help="of the maps of --cam and --rca")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    arguments = yaml.safe_load(options.config.read_text())["data"]
    arguments |= {"eval_split": options.split, "num_workers": 0} | ({"root": options.root} if options.root else {})
    data = WSSSDataModule(**arguments)
    data.prepare_data()
    data.setup("validate")
    modules = [RCAModule.load_from_checkpoint(path, map_location="cpu").eval() for path in (options.cam, options.rca)]
    rows = []
    for batch in islice(data.val_dataloader(), options.first, options.first + options.images):
        image = denormalise(batch["image"][0])
        found = [module.seeds(batch["image"], batch["tags"])[0] for module in modules]
        mask = overlay_mask(image, batch["mask"][0].numpy().astype(np.uint8))
        rows.append([image, *(overlay_maps(image, seeds.maps, seeds.classes) for seeds in found), mask])
    Image.fromarray(draw_panel(rows, ["image", *options.titles, "mask"])).save(options.out)


if __name__ == "__main__":
    main()
