"""Calibration of predicted tags: the regression against scikit-learn, thresholds and probabilities against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from rca_lightning.errors import ArgumentError
from rca_lightning.rca.tag_calibration import TagCalibration, best_thresholds, fit_shared_logistic

IMAGES, L = 120, 4


def scored(seed: int = 0, images: int = IMAGES) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, evidence and tags of images; class 3 never occurs."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, L, generator=generator) - 1
    evidence = (0.5 * logits + torch.randn(images, L, generator=generator)).sigmoid()
    chance = (1.5 * logits + torch.tensor([0.0, 1.0, -1.0, 0.0])).sigmoid()
    tags = (torch.rand(images, L, generator=generator) < chance).float()
    tags[:, 3] = 0
    return logits, evidence, tags


@pytest.mark.parametrize("penalty", [0.5, 3.0])
def test_regression_is_that_of_scikit_learn_on_all_pairs_of_image_and_class(penalty):
    logits, evidence, tags = scored()
    inputs = torch.stack([logits, torch.logit(evidence)], dim=-1).double()
    weight, bias = fit_shared_logistic(inputs, tags, penalty=penalty)
    # scikit-learn has one penalty for all weights: columns whose weight is to be free are made large instead.
    free = 1e4
    rows = torch.cat([free * inputs.flatten(0, 1), torch.eye(L).double().repeat(IMAGES, 1)], dim=1).numpy()
    rows = np.concatenate([rows, np.full((len(rows), 1), free)], axis=1)
    fitted = LogisticRegression(C=1 / penalty, fit_intercept=False, solver="newton-cholesky", tol=1e-10, max_iter=1000)
    found = fitted.fit(rows, tags.flatten().numpy()).coef_[0]
    assert weight.tolist() == pytest.approx((free * found[:2]).tolist(), abs=1e-4)
    assert bias.tolist() == pytest.approx((found[2:-1] + free * found[-1]).tolist(), abs=1e-4)


@pytest.mark.parametrize("shared", [1.0, 100.0])
def test_thresholds_are_the_best_of_a_plain_search(shared):
    logits, _, tags = scored(1)
    probabilities = logits.double().sigmoid()
    found = best_thresholds(probabilities, tags, shared=shared)
    grid = [step / 100 for step in range(5, 96)]
    counts = {}
    for threshold in grid:
        of_class = [[0, 0] for _ in range(L)]
        for row, present in zip(probabilities.tolist(), tags.tolist(), strict=True):
            kept = {c for c in range(L) if row[c] > threshold} or {max(range(L), key=row.__getitem__)}
            for c in range(L):
                of_class[c][0] += c in kept and present[c] == 1
                of_class[c][1] += (c in kept) + (present[c] == 1)
        counts[threshold] = of_class
    scale = shared / float(tags.sum())
    for c in range(L):
        f1 = {}
        for threshold, of_class in counts.items():
            hits = of_class[c][0] + scale * sum(one for one, _ in of_class)
            f1[threshold] = 2 * hits / (of_class[c][1] + scale * sum(other for _, other in of_class))
        best = max(f1.values())
        among = [threshold for threshold, value in f1.items() if value >= best - 1e-12]
        nearest = min(abs(threshold - 0.5) for threshold in among)
        assert float(found[c]) == pytest.approx(0.5 + math.copysign(nearest, float(found[c]) - 0.5), abs=1e-6)
        assert any(float(found[c]) == pytest.approx(threshold, abs=1e-6) for threshold in among)


def test_a_class_without_images_has_the_threshold_of_all():
    logits, _, tags = scored(2)
    probabilities = logits.double().sigmoid()
    alone = probabilities[:, :3]
    everything = best_thresholds(alone, tags[:, :3], shared=1e9)
    assert everything.unique().numel() == 1
    assert best_thresholds(probabilities, torch.zeros_like(tags)).tolist() == [0.5] * L


def test_without_a_fit_it_is_the_mean_of_both_probabilities():
    calibration = TagCalibration(2)
    logits, evidence = torch.tensor([[0.3, -1.0]]), torch.tensor([[0.9, math.nan]])
    first, second = 1 / (1 + math.exp(-0.3)), 1 / (1 + math.exp(1.0))
    assert calibration(logits, evidence)[0].tolist() == pytest.approx([(first + 0.9) / 2, second])
    assert calibration(logits)[0].tolist() == pytest.approx([first, second])
    assert calibration.threshold.tolist() == [0.5, 0.5]


def test_a_fit_is_kept_in_the_state_and_gives_the_equation():
    logits, evidence, tags = scored(3)
    evidence[:7, 1] = math.nan
    evidence[7, 0], evidence[8, 0] = 0.0, 1.0
    calibration, other = TagCalibration(L), TagCalibration(L)
    calibration.fit(logits, evidence, tags)
    other.load_state_dict(calibration.state_dict())
    weight, bias = calibration.weight.tolist(), calibration.bias.tolist()
    found = other(logits, evidence)
    for row in range(IMAGES):
        for c in range(L):
            h, e = float(logits[row, c]), float(evidence[row, c])
            seen = min(max(e, 1e-4), 1 - 1e-4)
            z = h if math.isnan(e) else math.log(seen / (1 - seen))
            expected = 1 / (1 + math.exp(-(weight[0] * h + weight[1] * z + bias[c])))
            assert float(found[row, c]) == pytest.approx(expected, abs=1e-5)
    other.reset()
    assert torch.equal(other(logits, evidence), TagCalibration(L)(logits, evidence))


def test_mean_probability_of_a_fit_is_the_share_of_tags():
    logits, evidence, tags = scored(4, images=2000)
    calibration = TagCalibration(L)
    calibration.fit(logits, evidence, tags)
    assert float(calibration(logits, evidence).mean()) == pytest.approx(float(tags.mean()), abs=1e-3)
    assert float(TagCalibration(L)(logits, evidence).mean()) != pytest.approx(float(tags.mean()), abs=1e-2)


def test_scores_that_are_no_numbers_and_tags_of_another_shape_are_refused():
    logits, evidence, tags = scored()
    with pytest.raises(ArgumentError, match="non-finite"):
        TagCalibration(L).fit(logits.fill_(math.nan), evidence, tags)
    with pytest.raises(ArgumentError, match="tags"):
        TagCalibration(L).fit(torch.zeros(IMAGES, L), evidence, tags[:5])
