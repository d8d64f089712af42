"""Class activation maps: the head that computes them and the normalisation of a map (RCA, section 3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rca_lightning.errors import ArgumentError


class CAMHead(nn.Module):
    """A 1x1 convolution whose outputs are class activation maps: `P = w F`, equation (1) of docs/method.md.

    The image logits are the spatial mean of the maps, so the weights that classify the image
    are the weights of the map (Zhou et al., CVPR 2016).

    Args:
        in_channels: channels of the features.
        num_classes: foreground classes.
        bias: whether a constant is added to each map. Features behind a ReLU need none: it would move the image logit
            and draw nothing. Features of mean 0 have lost theirs.

    Shapes:
        features `(B, C, H, W)` -> activation maps `(B, L, H, W)`, unbounded.
    """

    def __init__(self, in_channels: int, num_classes: int, *, bias: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, num_classes, kernel_size=1, bias=bias)
        nn.init.normal_(self.conv.weight, std=0.01)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    @property
    def weight(self) -> Tensor:
        """Weights of the convolution, `(L, C, 1, 1)`."""
        return self.conv.weight

    @property
    def num_classes(self) -> int:
        """Foreground classes `L`."""
        return self.conv.out_channels

    def forward(self, features: Tensor) -> Tensor:
        """Activation maps `(B, L, H, W)` of features `(B, C, H, W)`."""
        maps: Tensor = self.conv(features)
        return maps


class PromptHead(nn.Module):
    """Class activation maps from text embeddings: how much likelier a cell shows a class than what is behind it.

    With features in the space of a language-image model, `s_p = t (f . e_p)` is the score of prompt `p`, and the map of
    a class is its log-odds against the background prompts: `P_l = s_l - logsumexp_b s_b`. It is above 0 where a softmax
    of the class and the background would give the class more than one half. Without background prompts the other
    classes take their place. Nothing is trained.

    Args:
        num_classes: foreground classes `L`.
        num_prompts: `P`, the classes and the background.
        channels: of the features.
        scale: `t`, what the model was trained with; 100 for CLIP.

    Shapes:
        features `(B, C, H, W)` -> activation maps `(B, L, H, W)`, unbounded.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, num_classes: int, num_prompts: int, channels: int, *, scale: float = 100.0) -> None:
        super().__init__()
        if num_prompts < max(2, num_classes):
            remedy = "give an embedding of each class; a single class needs background prompts to compare with"
            raise ArgumentError("prompts", num_prompts, remedy)
        self.num_classes = num_classes
        self.scale = scale
        self.register_buffer("weight", torch.zeros(num_prompts, channels))  # classes first
        self.register_buffer("bias", torch.zeros(num_prompts))

    @torch.no_grad()
    def start(
        self, classes: Tensor, background: Tensor, *, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> None:
        """Sets the prompts.

        Args:
            classes: `(L, D)`, unit length.
            background: `(G, D)`, unit length; G may be 0.
            weight: `(D, D)`, where features are `weight f + bias` of vectors `f` in the space of the prompts, as behind
                a `PCAProjection`; None: they are `f`.
            bias: `(D,)`; None: zero.

        Raises:
            ArgumentError: for another number of prompts, or a projection onto fewer channels, from which the scores
                cannot be had.
        """
        if len(classes) != self.num_classes or len(classes) + len(background) != len(self.weight):
            needed = f"give {self.num_classes} classes and {len(self.weight) - self.num_classes} of the background"
            raise ArgumentError("classes", (len(classes), len(background)), needed)
        prompts = (torch.cat([classes, background]) if len(background) else classes).double()
        width = prompts.shape[1]
        if weight is not None:
            if weight.shape != (width, width):
                remedy = f"text embeddings of {width} channels need all of them: give embedding_dim={width}"
                raise ArgumentError("embedding_dim", len(weight), f"{remedy}, embedding_stages=1")
            prompts = torch.linalg.solve(weight.double().T, prompts.T).T  # (f . e) = (z - bias) . W^-T e
        offset = prompts.new_zeros(len(prompts)) if bias is None else -(prompts @ bias.double())
        self.weight.copy_(prompts)
        self.bias.copy_(offset)

    def forward(self, features: Tensor) -> Tensor:
        """Activation maps `(B, L, H, W)` of features `(B, C, H, W)`."""
        with torch.autocast(features.device.type, enabled=False):  # half precision leaves two digits of a cosine
            scores = F.conv2d(features.float(), self.weight[:, :, None, None].float(), self.bias.float()) * self.scale
        own, rest = scores[:, : self.num_classes], scores[:, self.num_classes :]
        if rest.shape[1]:
            return own - rest.logsumexp(dim=1, keepdim=True)
        others = own[:, None].expand(-1, self.num_classes, -1, -1, -1)  # (B, L, L, H, W)
        itself = torch.eye(self.num_classes, dtype=torch.bool, device=own.device)[None, :, :, None, None]
        return own - others.masked_fill(itself, float("-inf")).logsumexp(dim=2)


@torch.no_grad()
def fit_head(means: Tensor, tags: Tensor, *, penalty: float = 0.01, iterations: int = 200) -> tuple[Tensor, Tensor]:
    """Fits a CAM head by logistic regression on the mean feature of each image, in closed steps (L-BFGS).

    The image logits of a CAM head are linear in the mean over the cells, so behind frozen features the head is a
    logistic regression of the tags, one a class, and nothing of it is random. Rare classes need no weights: their
    intercept says that they are rare.

    Args:
        means: `(I, D)`, mean feature of each image.
        tags: `(I, L)`, 0 or 1.
        penalty: of the squared weights, on features scaled to variance 1 over all channels.
        iterations: at most.

    Returns:
        Weights `(L, D)` and intercepts `(L,)` of the head, float32.

    Raises:
        ArgumentError: for means that are not finite.
    """
    if not torch.isfinite(means).all():
        raise ArgumentError("means", "non-finite", "features must be finite numbers")
    scale = means.double().std().clamp_min(1e-12)
    inputs, targets = means.double() / scale, tags.double()
    weight = torch.zeros(tags.shape[1], means.shape[1], dtype=torch.float64, device=means.device, requires_grad=True)
    bias = torch.zeros(tags.shape[1], dtype=torch.float64, device=means.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            errors = F.binary_cross_entropy_with_logits(inputs @ weight.T + bias, targets, reduction="sum")
            loss: Tensor = errors / len(inputs) + penalty * weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return (weight / scale).float().detach(), bias.float().detach()


def class_maps(features: Tensor, *weights: Tensor) -> list[Tensor]:
    """Activation maps of several CAM heads in one matrix product.

    Args:
        features: `(B, C, H, W)`.
        weights: of each head `(L, C, 1, 1)`.

    Returns:
        Of each head what its convolution gives, `(B, L, H, W)`.
    """
    joint = torch.cat(weights).flatten(1)  # (sum of L, C, 1, 1) -> (sum of L, C)
    size = features.shape[2:]
    # A convolution into few channels is slow on a CPU, and each head would read the features anew. Rows cost a copy of
    # the features, unless channels are innermost; a batch of products costs a gradient of the weights for each image.
    if len(joint) > size.numel() or features.is_contiguous(memory_format=torch.channels_last):
        rows = features.permute(0, 2, 3, 1).flatten(0, 2)  # (B, C, H, W) -> (BHW, C)
        maps = F.linear(rows, joint).reshape(len(features), *size, -1).permute(0, 3, 1, 2)
    else:
        maps = torch.bmm(joint.expand(len(features), -1, -1), features.flatten(2))
        maps = maps.reshape(len(features), -1, *size)
    return list(torch.split(maps, [len(weight) for weight in weights], dim=1))


def image_logits(maps: Tensor) -> Tensor:
    """Image logits `(B, L)`: the spatial mean of activation maps `(B, L, H, W)`, equation (1) of docs/method.md."""
    return maps.float().mean(dim=(2, 3))


def predicted_classes(probabilities: Tensor, threshold: float | Tensor = 0.5) -> Tensor:
    """Classes an image is taken to show: those above the threshold, or the most probable one.

    Args:
        probabilities: `(B, L)`, of the image logits.
        threshold: in `[0, 1]`, also `(L,)`, one a class.

    Returns:
        `(B, L)` bool, in each row at least one.
    """
    above = probabilities > threshold
    most = F.one_hot(probabilities.argmax(dim=1), probabilities.shape[1]).bool()
    return torch.where(above.any(dim=1, keepdim=True), above, most)


def minmax_normalise(maps: Tensor, eps: float = 1e-5) -> Tensor:
    """Scale each map by its own minimum and maximum to `[0, 1]`; a constant map becomes 0.

    Args:
        maps: `(..., H, W)`.
        eps: ranges below this count as constant.
    """
    low = maps.amin(dim=(-2, -1), keepdim=True)
    span = maps.amax(dim=(-2, -1), keepdim=True) - low
    return torch.where(span > eps, (maps - low) / span.clamp_min(eps), maps.new_zeros(()))


def max_normalise(maps: Tensor, eps: float = 1e-5) -> Tensor:
    """Clip negative activation and divide each map `(..., H, W)` by its maximum: `[0, 1]`, zero stays zero.

    Seeds are scored on this scale: 0 means no evidence, which a min-max scaling would lose.
    """
    positive = maps.clamp_min(0)
    peak = positive.amax(dim=(-2, -1), keepdim=True)
    return torch.where(peak > eps, positive / peak.clamp_min(eps), positive.new_zeros(()))
