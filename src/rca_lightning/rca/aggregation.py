"""Semantic aggregation: every pixel reads the prototypes of the dataset (RCA, section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rca_lightning.arguments import check_arguments
from rca_lightning.errors import ArgumentError

_SHORTEST = 1e-12  # length of a pixel below which it has no direction


@dataclass
class Aggregated:
    """What the pixels read.

    Attributes:
        context: `F' = S Q`, `(B, D, H, W)`; zero while there is no prototype.
        class_attention: attention summed over the prototypes of a class, `(B, C, H, W)`; `C` counts the background,
            if it has prototypes, as last class. Sums to 1 over `C`, or is 0 while there is no prototype.
    """

    context: Tensor
    class_attention: Tensor


class SemanticAggregation(nn.Module):
    """Softmax attention of pixels over prototypes: `S = softmax(F Q^T / temperature)`, `F' = S Q`.

    Equation (7) of docs/method.md (RCA, section 3.4). The prototypes are persistent buffers of fixed shape, so a
    checkpoint alone predicts. Slots without a prototype are masked out of the softmax.

    Args:
        dim: channels `D` of the embedding.
        num_classes: foreground classes `L`.
        num_prototypes: prototypes `K` a class.
        temperature: of the softmax. Cosines lie in `[-1, 1]`, so at 1 the attention over hundreds of prototypes is
            all but uniform; at 0.05 to 0.1 a pixel can choose.
        background_prototypes: prototypes of the background; 0 leaves the background out.
        normalize: compare directions (cosine). Raw products let the norm of a pixel act as its temperature.

    Example:
        >>> aggregation = SemanticAggregation(dim=8, num_classes=2, num_prototypes=3, temperature=0.05)
        >>> read = aggregation(torch.randn(1, 8, 4, 4))
        >>> read.context.shape, float(read.context.abs().sum())
        (torch.Size([1, 8, 4, 4]), 0.0)
    """

    prototypes: Tensor
    valid: Tensor
    labels: Tensor

    @check_arguments
    def __init__(
        self,
        dim: int,
        num_classes: int,
        num_prototypes: int,
        *,
        temperature: float,
        background_prototypes: int = 0,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ArgumentError("attention_temperature", temperature, "give a number above 0")
        if num_prototypes < 1:
            raise ArgumentError("num_prototypes", num_prototypes, "give at least 1 prototype a class")
        if background_prototypes < 0:
            raise ArgumentError("background_prototypes", background_prototypes, "give 0 or more")
        self.num_classes = num_classes
        self.num_prototypes = num_prototypes
        self.background_prototypes = background_prototypes
        self.temperature = temperature
        self.normalize = normalize
        self.prototypes_per_class = [num_prototypes] * num_classes
        if background_prototypes:
            self.prototypes_per_class.append(background_prototypes)
        total = sum(self.prototypes_per_class)
        self.register_buffer("prototypes", torch.zeros(total, dim))  # Q
        self.register_buffer("valid", torch.zeros(total, dtype=torch.bool))
        counts = torch.tensor(self.prototypes_per_class)
        labels = torch.repeat_interleave(torch.arange(len(counts)), counts, output_size=total)
        self.register_buffer("labels", labels, persistent=False)

    @torch.no_grad()
    def write(self, prototypes: Tensor, valid: Tensor) -> None:
        """Replace the prototypes.

        Args:
            prototypes: `(Q, D)`, class after class, `num_prototypes` rows a class, the background last.
            valid: `(Q,)` boolean, false where a class has fewer prototypes.

        Raises:
            ArgumentError: if a shape differs or a valid prototype is not finite.
        """
        if prototypes.shape != self.prototypes.shape or valid.shape != self.valid.shape:
            raise ArgumentError(
                "prototypes", tuple(prototypes.shape), f"give {tuple(self.prototypes.shape)} and valid of the same rows"
            )
        if not torch.isfinite(prototypes[valid]).all():
            raise ArgumentError("prototypes", "non-finite", "valid prototypes must be finite numbers")
        self.prototypes.copy_(torch.where(valid[:, None], prototypes, torch.zeros_like(prototypes)))
        self.valid.copy_(valid)

    def by_class(self) -> tuple[Tensor, Tensor]:
        """Prototypes `(L, K, D)` of the foreground classes and which are valid `(L, K)`."""
        rows, shape = self.num_classes * self.num_prototypes, (self.num_classes, self.num_prototypes)
        return self.prototypes[:rows].reshape(*shape, -1), self.valid[:rows].reshape(shape)

    def forward(self, embeddings: Tensor, classes: Tensor | None = None) -> Aggregated:
        """Let each pixel read the prototypes.

        Args:
            embeddings: `F`, `(B, D, H, W)`.
            classes: `(B, L)`, above 0 where a class may be read in that image; the background always may.
                `None`: all classes.
        """
        prototypes = self.prototypes[None].to(embeddings.dtype)  # Q, (1, Q, D)
        attention = self.attention(embeddings, prototypes, self.readable(classes))  # S, (B, Q, HW)
        context = prototypes.transpose(1, 2) @ attention.to(prototypes.dtype)  # F', (B, D, HW)
        class_attention = self.sum_by_class(attention, self.labels[None], embeddings)
        return Aggregated(context.reshape(embeddings.shape), class_attention)

    def readable(self, classes: Tensor | None) -> Tensor:
        """Which prototypes each image may read, `(B or 1, Q)` boolean."""
        if classes is None:
            return self.valid[None]
        allowed = F.pad(classes > 0, (0, bool(self.background_prototypes)), value=True)  # (B, L) -> (B, C)
        return self.valid[None] & allowed[:, self.labels]

    def attention(self, embeddings: Tensor, prototypes: Tensor, readable: Tensor) -> Tensor:
        """`S`: softmax over the prototypes `(B or 1, M, D)` that are readable `(B or 1, M)`.

        Returns:
            `(B, M, HW)`; all 0 where nothing is readable.
        """
        pixels = embeddings.flatten(2)  # (B, D, H, W) -> (B, D, HW)
        logits = (prototypes @ pixels).float()
        if self.normalize:
            # Divided by the length afterwards: unit vectors would be one more copy of the pixels.
            logits = logits / pixel_lengths(embeddings).flatten(2).clamp_min(_SHORTEST)
        masked = (logits / self.temperature).masked_fill(~readable[:, :, None], torch.finfo(logits.dtype).min)
        # With nothing readable the softmax is uniform over masked slots; the product makes it zero.
        return masked.softmax(dim=1) * readable[:, :, None]

    def sum_by_class(self, attention: Tensor, labels: Tensor, embeddings: Tensor) -> Tensor:
        """Attention `(B, M, HW)` summed over the prototypes of each class: `(B, C, H, W)`; `labels` `(B or 1, M)`."""
        membership = F.one_hot(labels, len(self.prototypes_per_class)).to(attention.dtype)  # (B or 1, M, C)
        summed = membership.transpose(1, 2) @ attention  # (B, C, HW)
        return summed.reshape(len(embeddings), -1, *embeddings.shape[2:])


def fused_aggregation(
    aggregation: SemanticAggregation, embeddings: Tensor, classes: Tensor | None, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Maps of a 1x1 convolution of the context, and the class attention, without making the context.

    `W F' = (W Q^T) S^T`: the prototypes are convolved, which are few, in place of the pixels. Each image computes with
    the prototypes of its own classes alone, so that the cost does not grow with the number of classes. The result is
    that of `SemanticAggregation.forward` up to rounding.

    Args:
        aggregation: holds the prototypes.
        embeddings: `(B, D, H, W)`.
        classes: as for `SemanticAggregation.forward`.
        weight: `W`, `(O, D)`; with `O = 0` the attention alone is computed.

    Returns:
        `(B, O, H, W)`, and the `class_attention` of `Aggregated`.
    """
    readable = aggregation.readable(classes)
    rows = first_true(readable)  # (B or 1, M)
    prototypes = aggregation.prototypes[rows].to(embeddings.dtype)  # (B or 1, M, D)
    attention = aggregation.attention(embeddings, prototypes, readable.gather(1, rows))  # (B, M, HW)
    convolved = F.linear(prototypes, weight).transpose(1, 2)  # (B or 1, O, M)
    maps = convolved @ attention.to(convolved.dtype)  # (B, O, HW)
    class_attention = aggregation.sum_by_class(attention, aggregation.labels[rows], embeddings)
    return maps.reshape(len(embeddings), len(weight), *embeddings.shape[2:]), class_attention


def pixel_lengths(embeddings: Tensor) -> Tensor:
    """Length of each pixel of `(B, D, H, W)`, `(B, 1, H, W)` in float32 or better: squares overflow in float16."""
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    lengths: Tensor = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True, dtype=dtype)
    return lengths


def first_true(chosen: Tensor) -> Tensor:
    """In each row of `(B, Q)` booleans the columns that are true, in order, and then others.

    Returns:
        `(B, M)` int64, where `M` is the largest count of any row.

    Example:
        >>> first_true(torch.tensor([[False, True, True], [False, False, True]])).tolist()
        [[1, 2], [2, 0]]
    """
    most = int(chosen.sum(dim=1).max()) if len(chosen) else 0
    return chosen.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :most]
