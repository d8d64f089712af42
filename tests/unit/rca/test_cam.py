"""CAM head and the two ways a map is normalised, against loops in float64."""

from __future__ import annotations

import pytest
import torch

from rca_lightning.errors import ArgumentError
from rca_lightning.rca.cam import CAMHead, class_maps, fit_head, image_logits, max_normalise, minmax_normalise


def random_maps(seed: int = 0, shape: tuple[int, ...] = (2, 3, 4, 5)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cells(plane: torch.Tensor) -> list[float]:
    return [float(value) for value in plane.double().flatten()]


def test_head_is_a_weighted_sum_of_channels_without_bias():
    head = CAMHead(6, 3)
    features = random_maps(1, (2, 6, 4, 5))
    assert [name for name, _ in head.named_parameters()] == ["conv.weight"]
    weight = head.conv.weight.detach()[:, :, 0, 0]
    expected = torch.einsum("lc,bchw->blhw", weight.double(), features.double())
    torch.testing.assert_close(head(features).double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("classes", [3, 30])  # fewer than the 20 cells, and more
def test_several_heads_in_one_product_are_their_convolutions(classes: int, layout: torch.memory_format):
    features = random_maps(1, (2, 6, 4, 5)).double().contiguous(memory_format=layout).requires_grad_()
    heads = [random_maps(2 + index, (count, 6, 1, 1)).double() for index, count in enumerate((classes, 2))]
    weights = [head.requires_grad_() for head in heads]
    found = class_maps(features, *weights)
    expected = [torch.nn.functional.conv2d(features, weight) for weight in weights]
    scales = [random_maps(9, tuple(maps.shape)).double() for maps in expected]
    for mine, right in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, right)
    inputs = [features, *weights]
    sums = [sum((maps * scale).sum() for maps, scale in zip(ways, scales, strict=True)) for ways in (found, expected)]
    for mine, right in zip(*(torch.autograd.grad(total, inputs) for total in sums), strict=True):
        torch.testing.assert_close(mine, right)


def test_image_logits_are_the_spatial_mean():
    maps = random_maps()
    found = image_logits(maps)
    for image in range(2):
        for label in range(3):
            values = cells(maps[image, label])
            assert float(found[image, label]) == pytest.approx(sum(values) / len(values), abs=1e-6)


def test_image_logits_of_half_precision_are_averaged_in_single():
    maps = torch.full((1, 1, 64, 64), 0.1, dtype=torch.bfloat16)
    found = image_logits(maps)
    assert found.dtype == torch.float32
    assert float(found) == float(maps[0, 0, 0, 0])


def test_minmax_by_loops():
    maps = random_maps()
    found = minmax_normalise(maps)
    for image in range(2):
        for label in range(3):
            values = cells(maps[image, label])
            low, high = min(values), max(values)
            expected = [(value - low) / (high - low) for value in values]
            assert cells(found[image, label]) == pytest.approx(expected, abs=1e-6)


def test_max_by_loops():
    maps = random_maps() - 0.5
    found = max_normalise(maps)
    for image in range(2):
        for label in range(3):
            values = [max(value, 0.0) for value in cells(maps[image, label])]
            expected = [value / max(values) for value in values]
            assert cells(found[image, label]) == pytest.approx(expected, abs=1e-6)


def test_zero_is_kept_by_max_and_lost_by_minmax():
    plane = torch.tensor([[[1.0, 2.0, 4.0]]])
    assert max_normalise(plane).flatten().tolist() == [0.25, 0.5, 1.0]
    assert minmax_normalise(plane).flatten()[0] == 0


@pytest.mark.parametrize("normalise", [minmax_normalise, max_normalise])
@pytest.mark.parametrize("value", [0.0, -3.0])
def test_constant_map_is_zero_and_has_a_finite_gradient(normalise, value):
    maps = torch.full((1, 2, 3, 3), value, requires_grad=True)
    normalised = normalise(maps)
    assert not normalised.any()
    normalised.sum().backward()
    assert torch.isfinite(maps.grad).all()


def test_a_constant_positive_map_is_evidence_everywhere_only_for_max():
    maps = torch.full((1, 1, 2, 2), 5.0)
    assert not minmax_normalise(maps).any()
    assert (max_normalise(maps) == 1).all()


def test_each_map_is_scaled_by_itself():
    maps = random_maps()
    together = minmax_normalise(maps)
    torch.testing.assert_close(together[1, 2], minmax_normalise(maps[1, 2]))
    torch.testing.assert_close(max_normalise(maps * 1000)[0, 1], max_normalise(maps[0, 1]))


def test_head_is_the_logistic_regression_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(0)
    means = torch.randn(120, 5, generator=generator) * 3
    tags = (means @ torch.randn(5, 3, generator=generator) + torch.tensor([0.0, 2.0, -4.0]) > 0).float()
    weight, bias = fit_head(means, tags, penalty=0.05)
    scale = means.double().std()
    for c in range(3):
        # C is the inverse of twice the penalty of the sum over images.
        expected = LogisticRegression(C=1 / (2 * 0.05 * 120), tol=1e-10, max_iter=10_000)
        expected.fit((means.double() / scale).numpy(), tags[:, c].numpy())
        torch.testing.assert_close(
            weight[c].double() * scale, torch.from_numpy(expected.coef_[0]), atol=1e-4, rtol=1e-3
        )
        assert float(bias[c]) == pytest.approx(float(expected.intercept_[0]), abs=1e-3)


def test_head_of_a_class_on_every_or_no_image_is_finite():
    means = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    weight, bias = fit_head(means, torch.tensor([[1.0, 0.0]]).expand(10, 2))
    assert torch.isfinite(weight).all()
    assert bias[0] > 0 > bias[1]
    with pytest.raises(ArgumentError, match="means='non-finite'"):
        fit_head(means.index_fill(0, torch.tensor([1]), float("inf")), torch.ones(10, 2))
