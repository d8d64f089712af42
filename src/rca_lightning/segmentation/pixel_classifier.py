"""Pixel classifier: a multinomial logistic regression of labels behind frozen features, fitted in closed steps."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rca_lightning.errors import ArgumentError

PENALTY = 1e-3
"""Of half the squared weights, on features scaled to variance 1 over all channels."""

TAG_PRIOR = 3.0
"""Logit by which the classes that an image has no tag of are held back while the classifier is fitted."""

MAX_CELLS = 2**19
"""Most cells that are fitted to: 1.3 GB of 640 channels in float32. Of more, evenly spread ones are taken."""


_NEVER = -1e4  # logit of a label that no cell has


class PixelClassifier(nn.Module):
    """1x1 convolution that gives the logits of every label at every cell, learned by `fit_pixel_classifier`.

    Args:
        in_channels: `D` of the embeddings.
        num_labels: `L + 1`, the background among them.

    Attributes:
        fitted: whether there are weights; before, all logits are 0.

    Shapes:
        embeddings `(B, D, h, w)` -> logits `(B, L + 1, h, w)`.
    """

    weight: Tensor
    bias: Tensor
    fitted: Tensor

    def __init__(self, in_channels: int, num_labels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(num_labels, in_channels))
        self.register_buffer("bias", torch.zeros(num_labels))
        self.register_buffer("fitted", torch.tensor(False))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits of embeddings."""
        # They decide which of near labels is drawn: half precision of mixed training would leave two digits.
        with torch.autocast(embeddings.device.type, enabled=False):
            return F.conv2d(embeddings.to(self.weight.dtype), self.weight[:, :, None, None], self.bias)

    @torch.no_grad()
    def learn(self, weight: Tensor, bias: Tensor) -> None:
        """Takes what `fit_pixel_classifier` has returned."""
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        self.fitted.fill_(True)


def check_weights(penalty: float, tag_prior: float) -> None:
    """Refuses a penalty or a prior of tags of which nothing can be fitted.

    Raises:
        ArgumentError: for a penalty that is not above 0 and finite, or a prior that is negative or not finite.
    """
    if not 0 < penalty < math.inf:
        raise ArgumentError("penalty", penalty, "give a number above 0")
    if not 0 <= tag_prior < math.inf:
        raise ArgumentError("tag_prior", tag_prior, "give 0 or more")


def fit_pixel_classifier(
    cells: Tensor,
    targets: Tensor,
    tags: Tensor,
    *,
    penalty: float = PENALTY,
    tag_prior: float = TAG_PRIOR,
    iterations: int = 100,
) -> tuple[Tensor, Tensor]:
    """Fits a multinomial logistic regression of the labels of cells: equation (17) of docs/method.md.

    The labels weigh alike, however many cells show them. To the logits of classes that the image of a cell has no tag
    of, `-tag_prior` is added while it is fitted: which classes an image shows is a question that tags answer, and the
    weights are left to tell apart what an image does show. Whoever reads the classifier adds what is known of the tags.

    Args:
        cells: `(N, D)`, embeddings.
        targets: `(N, L + 1)`, not negative: how much of each cell, or how surely, has each label; all 0 where nothing
            is known.
        tags: `(N, L)`, 0 or 1, those of the cell's image.
        penalty: of half the squared weights, on features scaled to variance 1 over all channels.
        tag_prior: 0 or more.
        iterations: of L-BFGS, at most.

    Returns:
        Weights `(L + 1, D)` and biases `(L + 1,)`, float32. A label that no cell has is never the strongest.

    Raises:
        ArgumentError: for embeddings that are not finite, targets of which no cell has any, and as `check_weights`.

    Example:
        >>> cells = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> weight, bias = fit_pixel_classifier(cells, torch.eye(2)[[0, 0, 1]], torch.ones(3, 1))
        >>> (cells @ weight.T + bias).argmax(1)
        tensor([0, 0, 1])
    """
    check_weights(penalty, tag_prior)
    if not bool(torch.isfinite(cells).all()):
        raise ArgumentError("cells", "non-finite", "features must be finite numbers")
    mass = targets.sum(dim=0, dtype=torch.float64)
    if not bool((mass > 0).any()):
        raise ArgumentError("targets", "all 0", "give labels other than 255")
    scale = cells.float().std().clamp_min(1e-12)
    inputs = cells.float() / scale
    seen = mass > 0
    weights = torch.where(seen, mass.sum() / (seen.sum() * mass.clamp_min(1e-12)), 0.0).float()
    weighed = targets.float() * weights  # (N, L + 1), its sum that of the targets
    prior = F.pad((tags > 0).float() - 1, (1, 0)) * tag_prior  # (N, L) -> (N, L + 1), of the background 0
    prior.masked_fill_(~seen, -torch.inf)
    weight = inputs.new_zeros(targets.shape[1], cells.shape[1], requires_grad=True)
    bias = inputs.new_zeros(targets.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=iterations, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad(), torch.autocast(cells.device.type, enabled=False):
            logits = torch.addmm(bias, inputs, weight.T) + prior
            likelihood = logits.log_softmax(dim=1).masked_fill(~seen, 0.0)
            loss: Tensor = -(weighed * likelihood).sum() / mass.sum() + penalty / 2 * weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return (weight / scale).detach(), bias.detach().masked_fill(~seen, _NEVER)
