"""Draw the README's first picture: photographs, maps of plain CAM and of RCA, and masks, from two checkpoints.

python experiments/readme_picture.py --cam CAM.ckpt --rca RCA.ckpt --out experiments/readme_picture.jpg

The photographs ship with scikit-image (pip install scikit-image): all of its wheel that are CC0 or in the public
domain, as its docstrings say, and show something of the 20 classes of VOC. None was trained on, and none is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rca_lightning import RCAModule
from rca_lightning.constants import IMAGENET_MEAN, IMAGENET_STD
from rca_lightning.data.images import read_image
from rca_lightning.data.visualization import draw_panel, overlay_maps, overlay_mask
from rca_lightning.evaluation.map_kinds import default_thresholds
from rca_lightning.pseudo_labels.generator import PseudoLabelGenerator
from rca_lightning.rca.inference import ClassMaps

# File, tag and source. motorcycle_left.png shows a class too, but its licence is not said.
PHOTOGRAPHS = (
    ("chelsea.png", "cat", "Stefan van der Walt, CC0"),
    ("astronaut.png", "person", "NASA, public domain"),
    ("camera.png", "person", "Lav Varshney, CC0"),
    ("coffee.png", "diningtable", "Rachel Michetti, CC0"),
)

DRAWN_AS = 54  # value in the VOC palette: cyan, which none of the photographs has


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cam", type=Path, required=True, help="checkpoint of the plain CAM")
    parser.add_argument("--rca", type=Path, required=True, help="checkpoint of RCA")
    parser.add_argument("--photographs", type=Path, help="folder of the files; default: the data of scikit-image")
    parser.add_argument("--refine", nargs="*", default=["dense_crf"], help="refinements of the masks")
    parser.add_argument("--height", type=int, default=220)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    folder = options.photographs or scikit_image_data()
    cam = RCAModule.load_from_checkpoint(options.cam, map_location="cpu", propagation_steps=0).eval()
    rca = RCAModule.load_from_checkpoint(options.rca, map_location="cpu").eval()
    columns = [draw(folder / name, tag, cam, rca, options.refine) for name, tag, _ in PHOTOGRAPHS]
    rows = list(zip(*columns, strict=True))
    picture = draw_panel(rows, [f"tag: {tag}" for _, tag, _ in PHOTOGRAPHS], height=options.height)
    Image.fromarray(picture).save(options.out, quality=88)
    print("; ".join(f"{name}: {source}" for name, _, source in PHOTOGRAPHS))


def scikit_image_data() -> Path:
    """Folder of the photographs, without scikit-image being imported."""
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise SystemExit(
            "the photographs ship with scikit-image: pip install scikit-image, or say --photographs FOLDER"
        )
    return Path(found.origin).parent / "data"


def draw(path: Path, tag: str, cam: RCAModule, rca: RCAModule, refine: list[str]) -> list[np.ndarray]:
    """Photograph, map of plain CAM, map of RCA and mask, each `(H, W, 3)` uint8."""
    pixels = read_image(path)
    colours = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    image = (colours - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    found: list[ClassMaps] = []
    for module in (cam, rca):
        tags = torch.zeros(1, len(module.class_names))
        tags[0, module.class_names.index(tag)] = 1
        found += module.seeds(image[None], tags)
    thresholds = default_thresholds(rca.thresholds_kind)
    generator = PseudoLabelGenerator(**thresholds, refine=tuple(refine))
    mask = generator.draw(generator.score(found[1], colours)).numpy()
    mask[mask > 0] = DRAWN_AS
    maps = [overlay_maps(pixels, seeds.maps, torch.tensor([DRAWN_AS - 1])) for seeds in found]
    return [pixels, *maps, overlay_mask(pixels, mask)]


if __name__ == "__main__":
    main()
