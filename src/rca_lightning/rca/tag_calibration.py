"""Calibrates image probabilities and a threshold for each class, on photographs that scores were not fitted to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rca_lightning.errors import ArgumentError
from rca_lightning.rca.cam import predicted_classes

PENALTY = 3.0
SHARED = 100.0
UNCALIBRATED_THRESHOLD = 0.5
_LEAST_EVIDENCE = 1e-4  # and as far from 1: the logit of 0 is infinite
_GRID = torch.arange(5, 96) / 100


class TagCalibration(nn.Module):
    """Image probability of each class from the CAM head and the prototypes: equation (12) of docs/method.md.

    Before `fit` it is the mean of both probabilities with the threshold 0.5 for all classes. `fit` replaces the mean by
    a logistic regression on both logits, Platt scaling with two inputs: weights that all classes share, and a bias of
    each. Both inputs are fitted to the training photographs and there seem surer than they are, so `fit` takes scores
    of photographs that head and prototypes have not seen.

    Args:
        num_classes: foreground classes `L`.

    Example:
        >>> calibration = TagCalibration(num_classes=2)
        >>> calibration(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.5, 0.9]]))
        tensor([[0.5000, 0.7000]])
    """

    weight: Tensor
    bias: Tensor
    threshold: Tensor
    fitted: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        for name, value in uncalibrated(num_classes).items():
            self.register_buffer(name, value)

    def forward(self, logits: Tensor, evidence: Tensor | None = None) -> Tensor:
        """Probabilities `(B, L)`.

        Args:
            logits: of the first CAM head, `(B, L)`.
            evidence: `(B, L)` in `[0, 1]`, see `RCANetwork.class_evidence`; where it is NaN, and with `None`, the
                probability of the head stands in.
        """
        if bool(self.fitted):
            inputs = torch.stack([logits, _evidence_logits(logits, evidence)], dim=-1)  # (B, L, 2)
            return (inputs @ self.weight.to(logits) + self.bias.to(logits)).sigmoid()
        return mean_probability(logits, evidence)

    @torch.no_grad()
    def reset(self) -> None:
        """Forgets what was fitted."""
        for name, value in uncalibrated(len(self.bias)).items():
            self.get_buffer(name).copy_(value)

    @torch.no_grad()
    def fit(self, logits: Tensor, evidence: Tensor | None, tags: Tensor) -> None:
        """Fits weights, biases and thresholds to photographs that head and prototypes were not fitted to.

        Args:
            logits: `(I, L)`.
            evidence: `(I, L)`, or `None`; see `forward`.
            tags: `(I, L)`, 0 or 1.

        Raises:
            ArgumentError: for logits that are not finite, or another shape of the tags.
        """
        if not bool(torch.isfinite(logits).all()):
            raise ArgumentError("logits", "non-finite", "scores must be finite numbers")
        if tags.shape != logits.shape:
            raise ArgumentError("tags", tuple(tags.shape), f"give {tuple(logits.shape)}, as the logits")
        logits = logits.double()
        inputs = torch.stack([logits, _evidence_logits(logits, evidence)], dim=-1)
        weight, bias = fit_shared_logistic(inputs, tags)
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        self.threshold.copy_(best_thresholds((inputs @ weight + bias).sigmoid(), tags))
        self.fitted.fill_(True)


def uncalibrated(num_classes: int) -> dict[str, Tensor]:
    """Buffers of a `TagCalibration` that is not fitted."""
    return {
        "weight": torch.zeros(2),
        "bias": torch.zeros(num_classes),
        "threshold": torch.full((num_classes,), UNCALIBRATED_THRESHOLD),
        "fitted": torch.tensor(False),
    }


def mean_probability(logits: Tensor, evidence: Tensor | None) -> Tensor:
    """Mean `(B, L)` of the probability of the head and the evidence, the former alone where there is no evidence."""
    by_head = logits.sigmoid()
    if evidence is None:
        return by_head
    return torch.where(evidence.isnan(), by_head, (by_head + evidence) / 2)


def _evidence_logits(logits: Tensor, evidence: Tensor | None) -> Tensor:
    if evidence is None:
        return logits
    known = torch.logit(evidence.to(logits), eps=_LEAST_EVIDENCE)
    return torch.where(known.isnan(), logits, known)


@torch.no_grad()
def fit_shared_logistic(inputs: Tensor, tags: Tensor, *, penalty: float = PENALTY) -> tuple[Tensor, Tensor]:
    """Fits a logistic regression whose weights all classes share, and a bias for each class.

    The loss is the sum of cross-entropies over all pairs of image and class, and `penalty / 2` times the squared
    distances of the biases from a common one, which is free: few photographs show a class.

    Args:
        inputs: `(I, L, N)`.
        tags: `(I, L)`, 0 or 1.
        penalty: above 0.

    Returns:
        Weights `(N,)` and biases `(L,)`, float64.
    """
    inputs, targets = inputs.double(), tags.double()
    weight = torch.full_like(inputs[0, 0], 1 / inputs.shape[2]).requires_grad_()
    common = weight.new_zeros((), requires_grad=True)
    own = weight.new_zeros(inputs.shape[1], requires_grad=True)
    parts = [weight, common, own]
    optimizer = torch.optim.LBFGS(parts, max_iter=500, tolerance_grad=1e-8, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            logits = inputs @ weight + common + own
            loss: Tensor = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
            loss = loss + penalty / 2 * own.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), (common + own).detach()


@torch.no_grad()
def best_thresholds(probabilities: Tensor, tags: Tensor, *, shared: float = SHARED) -> Tensor:
    """Threshold of each class with the best F1, drawn towards the one best for all classes: equation (13).

    To the counts of a class those of all classes are added, scaled to `shared` images that show it. A class of few
    images so has about the threshold of all, a class without any has exactly that.

    Args:
        probabilities: `(I, L)`.
        tags: `(I, L)`, 0 or 1.
        shared: above 0.

    Returns:
        `(L,)`, of 0.05, 0.06, ... 0.95, the one nearest to one half among equals; 0.5 where no image has a tag.
    """
    true = tags > 0
    grid = _GRID.to(probabilities)
    if not bool(true.any()):
        return grid.new_full((tags.shape[1],), UNCALIBRATED_THRESHOLD)
    scores = []
    for threshold in grid:
        predicted = predicted_classes(probabilities, threshold)
        hits, total = (predicted & true).sum(dim=0), predicted.sum(dim=0) + true.sum(dim=0)  # (L,) each
        scale = shared / true.sum()
        scores.append(2 * (hits + scale * hits.sum()) / (total + scale * total.sum()))
    by_threshold = torch.stack(scores)  # (T, L)
    best = by_threshold >= by_threshold.amax(dim=0) - 1e-12
    distance = (grid - UNCALIBRATED_THRESHOLD).abs()[:, None].masked_fill(~best, torch.inf)
    return grid[distance.argmin(dim=0)]
