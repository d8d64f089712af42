"""The classifier of pixels: what it minimises, in every number type, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from rca_lightning.errors import ArgumentError
from rca_lightning.segmentation.pixel_classifier import PixelClassifier, fit_pixel_classifier

PENALTY = 0.01


def problem(count: int = 240, width: int = 5, labels: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Cells `(N, D)` around a centre for each label, one-hot targets `(N, L + 1)`, and tags `(N, L)`."""
    generator = torch.Generator().manual_seed(0)
    share = torch.tensor([0.5, 0.3, 0.15, 0.05])[:labels]
    found = torch.multinomial(share, count, replacement=True, generator=generator)
    centres = 2 * torch.randn(labels, width, generator=generator)
    cells = centres[found] + 1.5 * torch.randn(count, width, generator=generator) + 0.7
    tags = (torch.rand(count, labels - 1, generator=generator) < 0.5).float()
    tags = torch.maximum(tags, torch.eye(labels)[found][:, 1:])
    return cells, torch.eye(labels)[found], tags


def gradients(
    cells: Tensor, targets: Tensor, tags: Tensor, solved: tuple[Tensor, Tensor], *, penalty: float, tag_prior: float
) -> tuple[np.ndarray, np.ndarray]:
    """Gradient of the loss for weights (on scaled cells) and biases, cell by cell in float64."""
    scale = float(cells.double().std())
    inputs, shares, given = (cells.double() / scale).numpy(), targets.double().numpy(), tags.numpy()
    weight, bias = solved[0].double().numpy() * scale, solved[1].double().numpy()
    mass = shares.sum(0)
    seen = mass > 0
    balance = np.where(seen, mass.sum() / (seen.sum() * np.maximum(mass, 1e-12)), 0.0)
    of_weight, of_bias = penalty * weight, np.zeros_like(bias)
    for cell, share, of_image in zip(inputs, shares, given, strict=True):
        prior = np.concatenate([[0.0], np.where(of_image > 0, 0.0, -tag_prior)])
        logits = np.where(seen, weight @ cell + bias + prior, -np.inf)
        probability = np.exp(logits - logits.max())
        probability /= probability.sum()
        pull = (balance * share).sum() * probability - balance * share
        of_weight = of_weight + np.outer(pull, cell) / mass.sum()
        of_bias = of_bias + pull / mass.sum()
    return of_weight, of_bias


def test_without_a_prior_it_is_the_regression_of_scikit_learn():
    cells, targets, tags = problem()
    weight, bias = fit_pixel_classifier(cells, targets, tags, penalty=PENALTY, tag_prior=0)
    scaled = (cells / cells.std()).double().numpy()
    reference = LogisticRegression(
        C=1 / (PENALTY * len(cells)), class_weight="balanced", tol=1e-10, max_iter=10_000
    ).fit(scaled, targets.argmax(1).numpy())
    own = (weight * cells.std()).double().numpy()
    np.testing.assert_allclose(own, reference.coef_, atol=1e-3)
    # Biases have a common part that changes no probability.
    expected = reference.intercept_ - reference.intercept_.mean()
    np.testing.assert_allclose(bias.double().numpy() - float(bias.mean()), expected, atol=1e-3)


@pytest.mark.parametrize("tag_prior", [0.0, 3.0])
@pytest.mark.parametrize("soft", [False, True])
def test_the_gradient_of_the_loss_is_0(tag_prior: float, soft: bool):
    cells, targets, tags = problem()
    if soft:  # shares of pixels, some of which have no label
        generator = torch.Generator().manual_seed(1)
        targets = 0.7 * targets + 0.3 * torch.rand(targets.shape, generator=generator) / targets.shape[1]
        targets *= torch.rand(len(targets), 1, generator=generator)
    options: dict[str, Any] = {"penalty": PENALTY, "tag_prior": tag_prior}
    solved = fit_pixel_classifier(cells, targets, tags, **options)
    of_weight, of_bias = gradients(cells, targets, tags, solved, **options)
    assert np.abs(of_weight).max() < 1e-4
    assert np.abs(of_bias).max() < 1e-4
    moved = solved[0] + 0.05, solved[1]
    moved[0][0] -= 0.1
    assert np.abs(gradients(cells, targets, tags, moved, **options)[0]).max() > 1e-3


def test_classes_without_a_tag_are_held_back_while_it_is_fitted():
    cells, targets, tags = problem()
    told = fit_pixel_classifier(cells, targets, tags, penalty=PENALTY, tag_prior=3)
    untold = fit_pixel_classifier(cells, targets, tags, penalty=PENALTY, tag_prior=0)
    assert (told[0] - untold[0]).abs().max() > 0.05
    everything = fit_pixel_classifier(cells, targets, torch.ones_like(tags), penalty=PENALTY, tag_prior=3)
    torch.testing.assert_close(everything, untold)


def test_a_label_without_a_cell_is_never_the_strongest():
    cells, targets, tags = problem()
    wider = torch.cat([targets[:, :2], torch.zeros(len(targets), 1), targets[:, 2:]], dim=1)
    weight, bias = fit_pixel_classifier(cells, wider, torch.ones(len(tags), 4), penalty=PENALTY, tag_prior=0)
    assert (cells @ weight.T + bias).softmax(1)[:, 2].max() < 1e-6
    narrow = fit_pixel_classifier(cells, targets, torch.ones_like(tags), penalty=PENALTY, tag_prior=0)
    torch.testing.assert_close(weight[[0, 1, 3, 4]], narrow[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(bias[[0, 1, 3, 4]], narrow[1], atol=1e-3, rtol=0)


def test_cells_count_by_their_targets_and_labels_alike():
    cells, targets, tags = problem()
    once = fit_pixel_classifier(cells, targets, tags, penalty=PENALTY)
    half = fit_pixel_classifier(cells, targets / 2, tags, penalty=PENALTY)
    torch.testing.assert_close(half, once, atol=1e-4, rtol=1e-4)
    # All cells of a label twice: it has the same weight, and other labels keep theirs.
    twice = targets[:, 1] > 0
    again = fit_pixel_classifier(cells, targets * (1 + twice[:, None]), tags, penalty=PENALTY)
    torch.testing.assert_close(again, once, atol=1e-3, rtol=1e-3)
    assert twice.any()


def test_cells_without_a_label_pull_nothing():
    cells, targets, tags = problem()
    targets[::3] = 0
    solved = fit_pixel_classifier(cells, targets, tags, penalty=PENALTY)
    cells[::3] = cells[::3].flip(0)  # the same deviation, at other places
    torch.testing.assert_close(fit_pixel_classifier(cells, targets, tags, penalty=PENALTY), solved, atol=1e-4, rtol=0)


def test_half_precision_may_sum_to_more_than_it_holds():
    generator = torch.Generator().manual_seed(0)
    few = problem(count=60)
    cells, targets, tags = (part.repeat(1200, 1) for part in few)  # 72,000 cells
    assert torch.isinf(targets.half().sum(dtype=torch.float16))
    assert len(targets) > 65_504
    cells += 1e-3 * torch.randn(cells.shape, generator=generator)
    whole = fit_pixel_classifier(cells.half(), targets.half(), tags, penalty=PENALTY)
    assert all(part.dtype == torch.float32 for part in whole)
    torch.testing.assert_close(whole, fit_pixel_classifier(*few, penalty=PENALTY), atol=5e-3, rtol=5e-3)


def test_the_scale_of_the_cells_does_not_matter():
    cells, targets, tags = problem()
    weight, bias = fit_pixel_classifier(cells, targets, tags, penalty=PENALTY)
    larger, same = fit_pixel_classifier(10 * cells, targets, tags, penalty=PENALTY)
    torch.testing.assert_close(10 * cells @ larger.T + same, cells @ weight.T + bias, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"penalty": 0.0}, "^penalty=0.0: give a number above 0"),
        ({"tag_prior": -1.0}, "^tag_prior=-1.0: give 0 or more"),
        ({"cells": torch.full((240, 5), torch.nan)}, "^cells='non-finite': features must be finite"),
        ({"cells": torch.full((240, 5), torch.inf)}, "^cells='non-finite': features must be finite"),
        ({"targets": torch.zeros(240, 4)}, "^targets='all 0': give labels other than 255"),
    ],
)
def test_what_nothing_can_be_fitted_to_is_refused(changed: dict[str, Any], message: str):
    given = dict(zip(("cells", "targets", "tags"), problem(), strict=True)) | changed
    with pytest.raises(ArgumentError, match=message):
        fit_pixel_classifier(**given)


def test_logits_are_those_of_the_learned_weights():
    classifier = PixelClassifier(5, 4)
    embeddings = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    assert not classifier.fitted
    assert not classifier(embeddings).any()
    weight, bias = fit_pixel_classifier(*problem(), penalty=PENALTY)
    classifier.learn(weight, bias)
    assert classifier.fitted
    expected = torch.einsum("ld,bdhw->blhw", weight, embeddings) + bias[:, None, None]
    torch.testing.assert_close(classifier(embeddings), expected)
    torch.testing.assert_close(classifier(embeddings.half()), expected, atol=5e-2, rtol=1e-2)
    other = PixelClassifier(5, 4)
    other.load_state_dict(classifier.state_dict())
    assert other.fitted
    torch.testing.assert_close(other(embeddings), expected)
