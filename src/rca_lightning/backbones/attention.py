"""Attention between the patches of a transformer of timm: how much each cell of an image reads every other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rca_lightning.errors import ArgumentError

BLOCK_BYTES = 2**26
"""Of the scores of a block of rows, of all heads, in float32; those of all rows are never made at once."""

# Scores of these are the product of queries and keys and nothing else, so that they can be made again from the tokens.
_KNOWN = {
    ("timm.layers.attention", "Attention"),
    ("timm.layers.attention", "AttentionRope"),
    ("timm.models.vision_transformer", "Attention"),  # before timm moved it
    ("timm.models.eva", "EvaAttention"),
}


def attention_layers(model: Any, name: str) -> list[nn.Module]:
    """Find the attention of every block of a model of timm.

    Args:
        model: the model.
        name: it, in the error.

    Raises:
        ArgumentError: for a model without blocks of attention between all patches, or with one of a class whose scores
            are not the product of queries and keys alone.
    """
    blocks = getattr(model, "blocks", ())
    layers = [getattr(block, "attn", None) for block in blocks] if hasattr(model, "num_prefix_tokens") else []
    if not layers:
        remedy = "it has no attention between cells; take a vision transformer, as timm:vit_small_patch14_dinov2"
        raise ArgumentError("backbone", name, remedy)
    for layer in layers:
        if (type(layer).__module__, type(layer).__name__) not in _KNOWN:
            kind = f"{type(layer).__module__}.{type(layer).__name__}"
            remedy = f"the scores of its attention ({kind}) are not known here; take a plain vision transformer"
            raise ArgumentError("backbone", name, remedy)
    return cast("list[nn.Module]", layers)


def queries_and_keys(layer: Any, tokens: Tensor, rope: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Compute what the scores of a layer of attention are the product of, as the layer itself does.

    Args:
        layer: one of those that `attention_layers` finds.
        tokens: its input `(B, N, C)`.
        rope: rotary position embedding of the patches, if it is given one.

    Returns:
        Queries and keys `(B, heads, N, d)`.
    """
    if layer.qkv is not None:
        width = layer.qkv.weight.shape[0] // 3
        query, key = F.linear(tokens, layer.qkv.weight[: 2 * width], _bias(layer, width)).chunk(2, dim=2)
    else:
        query, key = layer.q_proj(tokens), layer.k_proj(tokens)
    size = query.shape[2] // layer.num_heads
    batch, count = tokens.shape[:2]
    query = layer.q_norm(query.reshape(batch, count, -1, size).transpose(1, 2))  # (B, heads, N, d)
    key = layer.k_norm(key.reshape(batch, count, -1, size).transpose(1, 2))
    if rope is not None:
        query, key = _rotated(layer, query, rope), _rotated(layer, key, rope)
    if query.shape[1] != key.shape[1]:  # several heads of queries read one of keys
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    return query, key


def _bias(layer: Any, width: int) -> Tensor | None:
    if getattr(layer, "q_bias", None) is not None:  # EVA learns none of keys
        return torch.cat([layer.q_bias, layer.k_bias])
    bias = layer.qkv.bias
    return None if bias is None else bias[: 2 * width]


def _rotated(layer: Any, vectors: Tensor, rope: Tensor) -> Tensor:
    from timm.layers import apply_rot_embed_cat  # of an optional package, which is there with such a layer

    prefix = layer.num_prefix_tokens
    turned = apply_rot_embed_cat(vectors[:, :, prefix:], rope, half=getattr(layer, "rotate_half", False))
    return torch.cat([vectors[:, :, :prefix], turned], dim=2).to(vectors.dtype)


def run_and_read(
    run: Callable[[], list[Tensor]], layers: Sequence[nn.Module], prefix: int, *, keys: bool = False
) -> tuple[list[Tensor], Tensor]:
    """Run a transformer and read its attention on the way, in one pass.

    Args:
        run: runs it, once.
        layers: those of its attention that are read.
        prefix: class and register tokens, which are left out.
        keys: whether to read the keys in place of the attention; of several layers those of the last.

    Returns:
        What `run` returned, and without gradient, at least in float32: attention `(B, HW, HW)` summed over layers and
        heads; or keys `(B, HW, D)`, the heads joined.
    """
    read: list[Tensor] = []

    @torch.no_grad()
    def see(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        query, key = queries_and_keys(layer, args[0], kwargs.get("rope", args[1] if len(args) > 1 else None))
        with torch.autocast(args[0].device.type, enabled=False):
            query, key = _at_least_float32(query), _at_least_float32(key)
            if keys:
                read[:] = [key[:, :, prefix:].transpose(1, 2).flatten(2)]
                return
            cells = query.shape[2] - prefix
            if not read:
                read.append(query.new_zeros(len(query), cells, cells))
            _add_attention(read[0], query * cast(float, layer.scale), key, prefix)

    handles = [layer.register_forward_pre_hook(see, with_kwargs=True) for layer in layers]
    try:
        found = run()
    finally:
        for handle in handles:
            handle.remove()
    return found, read[0]


def _at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _add_attention(total: Tensor, query: Tensor, key: Tensor, prefix: int) -> None:
    batch, heads, tokens, _ = query.shape
    step = max(1, BLOCK_BYTES // (4 * batch * heads * tokens))
    for first in range(prefix, tokens, step):
        scores = query[:, :, first : first + step] @ key.transpose(2, 3)  # (B, heads, n, N)
        scores -= scores.amax(dim=3, keepdim=True)  # softmax in place
        scores.exp_()
        scores /= scores.sum(dim=3, keepdim=True)
        total[:, first - prefix : first - prefix + step] += scores[..., prefix:].sum(dim=1)


def normalise_affinity(affinity: Tensor, *, sinkhorn: int = 0) -> Tensor:
    """Divide each row by its sum and average with the transpose, in place.

    Args:
        affinity: `(B, N, N)`, above 0.
        sinkhorn: how often columns and then rows are divided by their sums before: both then sum to about 1, so a cell
            that all read, as the artefacts of some transformers, weighs like any other.

    Returns:
        It, symmetric.
    """
    affinity /= affinity.sum(dim=2, keepdim=True)
    for _ in range(sinkhorn):
        affinity /= affinity.sum(dim=1, keepdim=True)
        affinity /= affinity.sum(dim=2, keepdim=True)
    cells = affinity.shape[1]
    step = max(1, int((BLOCK_BYTES // (4 * len(affinity))) ** 0.5))
    parts = [slice(first, first + step) for first in range(0, cells, step)]
    for number, rows in enumerate(parts):
        for columns in parts[number:]:
            mean = (affinity[:, rows, columns] + affinity[:, columns, rows].transpose(1, 2)) / 2
            affinity[:, rows, columns] = mean
            affinity[:, columns, rows] = mean.transpose(1, 2)
    return affinity
