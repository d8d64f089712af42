"""Where each rule cuts a map, against loops in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rca_lightning.errors import ArgumentError
from rca_lightning.rca.regions import pseudo_regions

B, L, H, W = 3, 4, 5, 7
RULES = ["fixed", "mean", "quantile"]
ONE = torch.ones(1, 1)


def example(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tags = (torch.rand(B, L, generator=generator) < 0.5).float()
    tags[0] = torch.tensor([1.0, 0, 1, 0])
    return 4 * torch.randn(B, L, H, W, generator=generator) - 2, tags


def cells(values: list[float], rule: str, threshold: float = 0.5) -> list[int]:
    """Which cells of a map of one row are in its region."""
    found = pseudo_regions(torch.tensor(values).reshape(1, 1, 1, -1), ONE, threshold, rule)
    return found.flatten().nonzero().flatten().tolist()


@pytest.mark.parametrize("seed", range(3))
def test_mean_by_loops(seed):
    maps, tags = example(seed)
    found = pseudo_regions(maps, tags, rule="mean")
    assert found.dtype == torch.bool
    for image in range(B):
        for label in range(L):
            plane = maps[image, label].double().flatten().tolist()
            mean = sum(plane) / len(plane)
            expected = [bool(tags[image, label]) and value > mean for value in plane]
            assert found[image, label].flatten().tolist() == expected


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 0.77, 0.9, 1.0])
def test_quantile_by_loops(threshold):
    maps, tags = example()
    found = pseudo_regions(maps, tags, threshold, "quantile")
    for image in range(B):
        for label in range(L):
            plane = maps[image, label].double().numpy()
            expected = (plane > np.quantile(plane, threshold)) & bool(tags[image, label])
            assert found[image, label].tolist() == expected.tolist()


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0])
def test_quantile_of_tied_cells_by_loops(threshold):
    maps = torch.randint(0, 4, (B, L, H, W), generator=torch.Generator().manual_seed(1)).float()
    found = pseudo_regions(maps, torch.ones(B, L), threshold, "quantile")
    for image in range(B):
        for label in range(L):
            plane = maps[image, label].double().numpy()
            assert found[image, label].tolist() == (plane > np.quantile(plane, threshold)).tolist()
            assert int(found[image, label].sum()) <= round((1 - threshold) * H * W)


@pytest.mark.parametrize(("count", "kept"), [(2, 1), (3, 1), (4, 2), (9, 4), (10, 5)])
def test_half_is_the_upper_half(count, kept):
    assert cells([float(value) for value in range(count)], "quantile") == list(range(count - kept, count))


def test_cells_at_the_cut_are_outside():
    assert cells([0.0, 1.0, 2.0], "mean") == [2]
    assert cells([0.0, 1.0, 1.0, 2.0], "quantile") == [3]
    assert cells([0.0, 1.0, 1.0, 1.0], "quantile") == []
    assert cells([0.0, 0.0, 0.0, 1.0], "quantile") == [3]


def test_rules_differ_where_a_peak_stands_on_a_slope():
    slope = [0.0, 1.0, 2.0, 3.0, 4.0, 20.0]
    assert cells(slope, "fixed") == [5]
    assert cells(slope, "mean") == [5]
    assert cells(slope, "quantile") == [3, 4, 5]
    plateau = [0.0, 16.0, 17.0, 18.0, 19.0, 20.0]
    assert cells(plateau, "fixed") == [1, 2, 3, 4, 5]
    assert cells(plateau, "mean") == [1, 2, 3, 4, 5]
    assert cells(plateau, "quantile") == [3, 4, 5]
    assert cells([0.0, 0.0, 0.0, 0.0, 4.0, 10.0], "fixed") == [5]
    assert cells([0.0, 0.0, 0.0, 0.0, 4.0, 10.0], "mean") == [4, 5]


def test_threshold_does_not_move_the_mean():
    maps, tags = example()
    expected = pseudo_regions(maps, tags, rule="mean")
    assert expected.any()
    for threshold in (0.0, 0.9, 1.0):
        assert torch.equal(pseudo_regions(maps, tags, threshold, "mean"), expected)


def test_quantile_looks_at_the_order_only():
    maps, tags = example()
    expected = pseudo_regions(maps, tags, 0.7, "quantile")
    assert expected.any()
    assert torch.equal(pseudo_regions((maps / 4).exp(), tags, 0.7, "quantile"), expected)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("scale", [0.0, 1e-6])
def test_constant_map_has_no_region_by_any_rule(rule, scale):
    noise = scale * torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    for level in (-3.0, 0.0, 0.1, 7.0):
        assert not pseudo_regions(level + noise, ONE, 0.5, rule).any()


@pytest.mark.parametrize("rule", RULES)
def test_a_map_of_another_class_or_image_does_not_matter(rule):
    maps, tags = example()
    tags[1, 2] = 1
    before = pseudo_regions(maps, tags, 0.5, rule)[1, 2]
    alone = torch.zeros(B, L)
    alone[1, 2] = 1
    changed = torch.full_like(maps, 100.0)
    changed[1, 2] = maps[1, 2]
    assert before.any()
    found = pseudo_regions(changed, alone, 0.5, rule)
    assert torch.equal(found[1, 2], before)
    assert int(found.sum()) == int(before.sum())


@pytest.mark.parametrize("rule", RULES)
def test_half_precision_and_one_cell_are_accepted(rule):
    maps, tags = example()
    half = maps.bfloat16()
    assert torch.equal(pseudo_regions(half, tags, 0.5, rule), pseudo_regions(half.float(), tags, 0.5, rule))
    assert not pseudo_regions(torch.ones(1, 1, 1, 1), ONE, 0.5, rule).any()


def test_no_image_gives_no_region():
    for rule in RULES:
        assert pseudo_regions(torch.zeros(0, L, H, W), torch.zeros(0, L), 0.5, rule).shape == (0, L, H, W)


def test_unknown_rule_is_named():
    with pytest.raises(ArgumentError, match="rule='median': give one of fixed"):
        pseudo_regions(*example(), rule="median")


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_quantile_outside_its_range_is_refused(threshold):
    with pytest.raises(ArgumentError, match="threshold="):
        pseudo_regions(*example(), threshold, "quantile")
