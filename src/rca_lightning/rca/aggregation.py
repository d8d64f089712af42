"""Semantic aggregation: every pixel reads the prototypes of the dataset (RCA, section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rca_lightning.errors import ArgumentError


@dataclass
class Aggregated:
    """What the pixels read.

    Attributes:
        context: `F' = S Q`, `(B, D, H, W)`; zero while there is no prototype.
        class_attention: attention summed over the prototypes of a class, `(B, C, H, W)`, where
            `C` counts the background, if it has prototypes, as last class. Sums to 1 over `C`, or is 0
            while there is no prototype.
    """

    context: Tensor
    class_attention: Tensor


class SemanticAggregation(nn.Module):
    """Softmax attention of pixels over prototypes: `S = softmax(F Q^T / temperature)`, `F' = S Q`.

    The prototypes are persistent buffers of fixed shape, so a checkpoint alone predicts. Slots
    without a prototype are masked out of the softmax.

    Args:
        dim: channels `D` of the embedding.
        num_classes: foreground classes `L`.
        num_prototypes: prototypes `K` a class.
        temperature: of the softmax. Against unit vectors the similarity lies in `[-1, 1]`, so 1 would be
            all but uniform over hundreds of prototypes; 0.05 to 0.1 lets a pixel choose.
        background_prototypes: prototypes of the background; 0 leaves the background out.
        normalize: compare directions (cosine) instead of raw products. Raw products let the
            norm of a pixel act as its temperature.

    Example:
        >>> aggregation = SemanticAggregation(dim=8, num_classes=2, num_prototypes=3, temperature=0.05)
        >>> read = aggregation(torch.randn(1, 8, 4, 4))
        >>> read.context.shape, float(read.context.abs().sum())
        (torch.Size([1, 8, 4, 4]), 0.0)
    """

    prototypes: Tensor
    valid: Tensor
    factors: Tensor
    labels: Tensor

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
        per_class = [num_prototypes] * num_classes + [background_prototypes] * bool(background_prototypes)
        self.prototypes_per_class = per_class
        total = sum(per_class)
        self.register_buffer("prototypes", torch.zeros(total, dim))
        self.register_buffer("valid", torch.zeros(total, dtype=torch.bool))
        self.register_buffer("factors", torch.ones(total))
        labels = torch.repeat_interleave(torch.arange(len(per_class)), torch.tensor(per_class), output_size=total)
        self.register_buffer("labels", labels, persistent=False)

    @torch.no_grad()
    def write(self, prototypes: Tensor, valid: Tensor, factors: Tensor | None = None) -> None:
        """Replace the prototypes.

        Args:
            prototypes: `(Q, D)`, class after class, `num_prototypes` rows a class, the background last.
            valid: `(Q,)` boolean, false where a class has fewer prototypes.
            factors: `(Q,)` above 0, what the temperature of each is multiplied by; `None`: 1.

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
        self.factors.copy_(torch.ones_like(self.factors) if factors is None else factors)

    def by_class(self) -> tuple[Tensor, Tensor]:
        """Prototypes `(L, K, D)` of the foreground classes and which are valid `(L, K)`."""
        rows, shape = self.num_classes * self.num_prototypes, (self.num_classes, self.num_prototypes)
        return self.prototypes[:rows].reshape(*shape, -1), self.valid[:rows].reshape(shape)

    def forward(self, embeddings: Tensor, classes: Tensor | None = None) -> Aggregated:
        """Let each pixel read the prototypes.

        Args:
            embeddings: `(B, D, H, W)`.
            classes: `(B, L)`, above 0 where a class may be read in that image; the background always may.
                `None`: all classes.
        """
        readable = self._readable(classes)
        attention = self._attention(embeddings, readable)
        prototypes = readable.prototypes.to(embeddings.dtype)
        context = prototypes.transpose(1, 2) @ attention.to(prototypes.dtype)  # (B, D, M) x (B, M, HW)
        return Aggregated(context.reshape(embeddings.shape), self._by_class(attention, readable, embeddings))

    def project(
        self, embeddings: Tensor, weight: Tensor, classes: Tensor | None = None, *, length: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What a 1x1 convolution makes of the context, without making the context.

        `W F' = W (S Q)^T = (W Q^T) S^T`: the prototypes are convolved, which are few, in place of the pixels.

        Args:
            embeddings: `(B, D, H, W)`.
            weight: `W`, `(O, D)`.
            classes: as for `forward`.
            length: `(B, 1, H, W)`, of the embedding of each pixel, where it is known already.

        Returns:
            `(B, O, H, W)`, and the `class_attention` of `Aggregated`.
        """
        readable = self._readable(classes)
        attention = self._attention(embeddings, readable, length)
        convolved = F.linear(readable.prototypes.to(embeddings.dtype), weight).transpose(1, 2)  # (B, O, M)
        maps = convolved @ attention.to(convolved.dtype)  # (B, O, HW)
        shape = (len(embeddings), len(weight), *embeddings.shape[2:])
        return maps.reshape(shape), self._by_class(attention, readable, embeddings)

    def class_attention(self, embeddings: Tensor, classes: Tensor | None = None) -> Tensor:
        """Only the attention summed over the prototypes of a class, see `Aggregated`."""
        readable = self._readable(classes)
        return self._by_class(self._attention(embeddings, readable), readable, embeddings)

    def _attention(self, embeddings: Tensor, readable: _Readable, length: Tensor | None = None) -> Tensor:
        """Softmax over the prototypes, `(B, M, HW)`; all 0 where none is readable."""
        pixels = embeddings.flatten(2)  # (B, D, H, W) -> (B, D, HW)
        logits = (readable.prototypes.to(pixels.dtype) @ pixels).float()
        if self.normalize:
            # Divided by the length afterwards: unit vectors would be one more copy of the pixels.
            if length is None:
                length = pixel_lengths(embeddings)
            logits = logits / length.flatten(2).clamp_min(_SHORTEST)  # (B, 1, H, W) -> (B, 1, HW)
        logits = logits / (self.temperature * readable.factors)[:, :, None]
        exists = readable.exists[:, :, None]
        logits = logits.masked_fill(~exists, torch.finfo(logits.dtype).min)
        # With nothing readable the softmax is uniform over masked slots; the product makes it zero.
        return logits.softmax(dim=1) * exists

    def _by_class(self, attention: Tensor, readable: _Readable, embeddings: Tensor) -> Tensor:
        membership = F.one_hot(readable.labels, len(self.prototypes_per_class)).to(attention.dtype)  # (B or 1, M, C)
        summed = membership.transpose(1, 2) @ attention  # (B, C, HW)
        return summed.reshape(len(embeddings), -1, *embeddings.shape[2:])

    def _readable(self, classes: Tensor | None) -> _Readable:
        if classes is None:
            return _Readable(self.prototypes[None], self.factors[None], self.labels[None], self.valid[None])
        allowed = classes > 0
        if self.background_prototypes:
            allowed = torch.cat([allowed, allowed.new_ones(len(allowed), 1)], dim=1)
        exists = self.valid[None] & allowed[:, self.labels]  # (B, Q)
        rows = first_true(exists)  # an image reads some classes of perhaps a thousand
        return _Readable(self.prototypes[rows], self.factors[rows], self.labels[rows], exists.gather(1, rows))


@dataclass
class _Readable:
    """The prototypes that may be read: of each image its own `M`, or the same for all of them.

    Attributes:
        prototypes: `(B or 1, M, D)`.
        factors: `(B or 1, M)`.
        labels: `(B or 1, M)`.
        exists: `(B or 1, M)` boolean, false where an image has fewer than the others.
    """

    prototypes: Tensor
    factors: Tensor
    labels: Tensor
    exists: Tensor


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


_SHORTEST = 1e-12  # length of a pixel below which it has no direction
