"""A vision transformer written as plain loops in float64, from the weights of a model of timm."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.backbones.base import Backbone
from rca_lightning.backbones.build import build_backbone


def random_transformer(name: str, **options) -> Backbone:
    """A backbone whose attention is not even: timm's first weights of it hardly tell tokens apart."""
    torch.manual_seed(1)
    backbone = build_backbone(f"timm:{name}", weights="none", **options).eval()
    with torch.no_grad():
        for key, value in backbone.model.named_parameters():
            if "qkv.weight" in key:
                value.mul_(6)
            elif key.endswith(("gamma", "bias", "reg_token", "cls_token")):
                value.copy_(torch.rand_like(value) * 0.5)
    return backbone


@dataclass
class PlainRun:
    """What the loops computed of one image.

    Attributes:
        maps: of each block, patch tokens under the last normalisation, `(D, h, w)`.
        attention: of each block and head, `(N, N)` with the prefix tokens.
        keys: of each block, heads joined, `(N, D)`.
        prefix: class and register tokens.
    """

    maps: list[Tensor]
    attention: list[list[Tensor]]
    keys: list[Tensor]
    prefix: int


def run_plainly(model, image: Tensor, *, patch: int) -> PlainRun:
    """Run a `VisionTransformer` of timm on an image `(3, H, W)` in its own normalisation, whole patches."""
    weights = {name: value.detach().double() for name, value in model.state_dict().items()}
    image = image.double()
    rows, columns = image.shape[1] // patch, image.shape[2] // patch
    kernel = weights["patch_embed.proj.weight"].flatten(1)
    tokens = []
    for row in range(rows):
        for column in range(columns):
            pixels = image[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            tokens.append(kernel @ pixels.flatten() + weights["patch_embed.proj.bias"])
    patches = torch.stack(tokens)
    position = weights["pos_embed"][0]
    prefix = [weights["cls_token"][0, 0]]
    registers = [] if "reg_token" not in weights else list(weights["reg_token"][0])
    side = math.isqrt(len(position))
    if side * side == len(position):  # only patches have a position
        own = position
    else:
        own, prefix = position[1:], [prefix[0] + position[0]]
    side = math.isqrt(len(own))
    grid = own.T.reshape(1, -1, side, side)
    if (rows, columns) != (side, side):
        grid = F.interpolate(grid, (rows, columns), mode="bicubic", antialias=True)
    patches = patches + grid[0].flatten(1).T
    tokens = torch.stack([*prefix, *registers, *patches])
    if "norm_pre.weight" in weights:
        tokens = _normalise(tokens, weights, "norm_pre", model.norm_pre.eps)
    count = len(prefix) + len(registers)
    found = PlainRun([], [], [], count)
    for number, block in enumerate(model.blocks):
        name = f"blocks.{number}"
        normal = _normalise(tokens, weights, f"{name}.norm1", block.norm1.eps)
        mixed = _attend(normal, weights, name, block.attn.num_heads, found)
        tokens = tokens + mixed * weights.get(f"{name}.ls1.gamma", 1)
        normal = _normalise(tokens, weights, f"{name}.norm2", block.norm2.eps)
        hidden = normal @ weights[f"{name}.mlp.fc1.weight"].T + weights[f"{name}.mlp.fc1.bias"]
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        hidden = hidden @ weights[f"{name}.mlp.fc2.weight"].T + weights[f"{name}.mlp.fc2.bias"]
        tokens = tokens + hidden * weights.get(f"{name}.ls2.gamma", 1)
        last = _normalise(tokens, weights, "norm", model.norm.eps)
        found.maps.append(last[count:].T.reshape(-1, rows, columns))
    return found


def _normalise(tokens: Tensor, weights: dict[str, Tensor], name: str, eps: float) -> Tensor:
    rows = []
    for token in tokens:
        centred = token - token.sum() / len(token)
        rows.append(centred / torch.sqrt((centred**2).sum() / len(token) + eps))
    return torch.stack(rows) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _attend(tokens: Tensor, weights: dict[str, Tensor], name: str, heads: int, found: PlainRun) -> Tensor:
    width = tokens.shape[1] // heads
    joined = tokens @ weights[f"{name}.attn.qkv.weight"].T + weights[f"{name}.attn.qkv.bias"]
    query, key, value = joined.split(tokens.shape[1], dim=1)
    of_heads, outputs = [], []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        rows = []
        for one in query[:, part]:
            scores = torch.stack([(one * other).sum() for other in key[:, part]]) / math.sqrt(width)
            scores = torch.exp(scores - scores.max())
            rows.append(scores / scores.sum())
        of_heads.append(torch.stack(rows))
        outputs.append(of_heads[-1] @ value[:, part])
    found.attention.append(of_heads)
    found.keys.append(key)
    return torch.cat(outputs, dim=1) @ weights[f"{name}.attn.proj.weight"].T + weights[f"{name}.attn.proj.bias"]


def plain_attention_affinity(run: PlainRun, *, layers: int, sinkhorn: int = 0) -> Tensor:
    """Mean attention `(HW, HW)` of the last blocks, patches alone, rows of sum 1, its own mirror image."""
    heads = [head for of_block in run.attention[-layers:] for head in of_block]
    size = len(heads[0]) - run.prefix
    mean = torch.zeros(size, size, dtype=torch.float64)
    for row in range(size):
        for column in range(size):
            mean[row, column] = sum(head[row + run.prefix, column + run.prefix] for head in heads) / len(heads)
        mean[row] /= mean[row].sum()
    for _ in range(sinkhorn):
        for column in range(size):
            mean[:, column] /= mean[:, column].sum()
        for row in range(size):
            mean[row] /= mean[row].sum()
    return (mean + mean.T) / 2


def plain_key_affinity(run: PlainRun) -> Tensor:
    """Cosines `(HW, HW)` of the keys of the last block between patches, none below 0."""
    keys = run.keys[-1][run.prefix :]
    size = len(keys)
    cosines = torch.zeros(size, size, dtype=torch.float64)
    for row in range(size):
        for column in range(size):
            lengths = keys[row].norm() * keys[column].norm()
            cosines[row, column] = max(0.0, float((keys[row] * keys[column]).sum() / lengths))
    return cosines
