"""Pseudo regions, background tiles and masked average pooling, against loops in float64."""

from __future__ import annotations

import pytest
import torch

from rca_lightning.rca.regions import Regions, background_regions, pool_regions, pseudo_regions

B, L, D, H, W = 3, 4, 6, 5, 7


def random_tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_tags(seed: int = 0) -> torch.Tensor:
    tags = (torch.rand(B, L, generator=torch.Generator().manual_seed(seed)) < 0.5).float()
    tags[0] = torch.tensor([1.0, 0, 1, 0])
    return tags


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9])
def test_pseudo_regions_by_loops(threshold):
    maps, tags = random_tensor(B, L, H, W), random_tags()
    found = pseudo_regions(maps, tags, threshold)
    assert found.dtype == torch.bool
    for image in range(B):
        for label in range(L):
            plane = maps[image, label].double()
            low, high = float(plane.min()), float(plane.max())
            for row in range(H):
                for column in range(W):
                    scaled = (float(plane[row, column]) - low) / (high - low)
                    expected = bool(tags[image, label]) and scaled > threshold
                    assert bool(found[image, label, row, column]) == expected


def test_cell_at_the_threshold_is_outside():
    maps = torch.tensor([[[[0.0, 0.5, 1.0]]]])
    assert pseudo_regions(maps, torch.ones(1, 1), 0.5).flatten().tolist() == [False, False, True]


def test_constant_map_has_no_region():
    assert not pseudo_regions(torch.full((1, 1, 3, 3), 2.0), torch.ones(1, 1), 0.0).any()


@pytest.mark.parametrize("grid", [1, 2, 3])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.4])
def test_background_tiles_by_loops(grid, threshold):
    maps, tags = random_tensor(B, L, H, W, seed=1), random_tags(1)
    found = background_regions(maps, tags, threshold, grid)
    assert found.shape == (B, grid * grid, H, W)
    for image in range(B):
        present = [label for label in range(L) if tags[image, label] > 0]
        for row in range(H):
            for column in range(W):
                shares = [
                    max(0.0, float(maps[image, label, row, column])) / float(maps[image, label].max())
                    for label in present
                ]
                empty = bool(present) and max(shares) <= threshold
                tile = (row * grid // H) * grid + column * grid // W
                for index in range(grid * grid):
                    assert bool(found[image, index, row, column]) == (empty and index == tile)


def test_tiles_divide_the_image_evenly():
    maps = torch.full((1, 1, 4, 6), -1.0)
    maps[0, 0, 3, 5] = 1.0
    found = background_regions(maps, torch.ones(1, 1), grid=2)
    assert found.sum(dim=(2, 3)).tolist() == [[6, 6, 6, 5]]
    assert found[0, 1].nonzero().tolist() == [[0, 3], [0, 4], [0, 5], [1, 3], [1, 4], [1, 5]]


def test_image_without_tags_gives_no_background():
    assert not background_regions(random_tensor(1, L, H, W), torch.zeros(1, L)).any()


@pytest.mark.parametrize("peak", [-0.5, 0.0, 1e-7])
def test_image_whose_object_is_not_located_gives_no_background(peak):
    maps = torch.full((1, 2, H, W), -1.0)
    maps[0, 0, 0, 0] = 1.0
    maps[0, 1, 0, 0] = peak
    assert not background_regions(maps, torch.ones(1, 2)).any()
    assert background_regions(maps, torch.tensor([[1, 0]])).any()  # untagged: its map does not matter


def test_masked_average_pooling_by_loops():
    features = random_tensor(B, D, H, W, seed=2)
    masks = random_tensor(B, L, H, W, seed=3) > 0.5
    masks[1, 2] = False
    masks[2] = False
    found = pool_regions(features, masks)
    expected = []
    for image in range(B):
        for label in range(L):
            total, count = [0.0] * D, 0
            for row in range(H):
                for column in range(W):
                    if masks[image, label, row, column]:
                        count += 1
                        total = [t + float(features[image, d, row, column]) for d, t in enumerate(total)]
            if count:
                expected.append((image, label, [t / count for t in total]))
    assert [(int(i), int(c)) for i, c in zip(found.images, found.labels, strict=True)] == [e[:2] for e in expected]
    torch.testing.assert_close(found.embeddings.double(), torch.tensor([e[2] for e in expected]).double())


@pytest.mark.parametrize(("min_cells", "kept"), [(0, [1, 2]), (1, [1, 2]), (2, [2]), (3, [])])
def test_region_with_too_few_cells_is_left_out(min_cells, kept):
    masks = torch.zeros(1, 3, 2, 2, dtype=torch.bool)
    masks[0, 1, 0, 0] = True
    masks[0, 2, 0] = True
    found = pool_regions(torch.ones(1, D, 2, 2), masks, min_cells)
    assert found.labels.tolist() == kept
    assert found.embeddings.shape == (len(kept), D)


def test_gradient_reaches_the_cells_of_the_region_only():
    features = random_tensor(1, D, 2, 3).requires_grad_()
    masks = torch.zeros(1, 1, 2, 3, dtype=torch.bool)
    masks[0, 0, 1, :2] = True
    pool_regions(features, masks).embeddings.sum().backward()
    expected = torch.zeros(2, 3)
    expected[1, :2] = 0.5
    for channel in features.grad[0]:
        assert torch.equal(channel, expected)


def test_no_region_at_all_keeps_the_graph():
    features = random_tensor(1, D, 2, 2).requires_grad_()
    found = pool_regions(features, torch.zeros(1, 2, 2, 2, dtype=torch.bool))
    assert len(found) == 0
    found.embeddings.sum().backward()
    assert not features.grad.any()


def test_half_precision_features_give_single_precision_embeddings():
    features = random_tensor(1, D, 8, 8)
    masks = random_tensor(1, 2, 8, 8, seed=4) > 0
    single, half = pool_regions(features, masks), pool_regions(features.bfloat16(), masks)
    assert half.embeddings.dtype == torch.float32
    torch.testing.assert_close(half.embeddings, single.embeddings, atol=0.01, rtol=0.02)


def test_select_and_cat_keep_rows_together():
    first = Regions(torch.tensor([[1.0], [2.0]]), torch.tensor([3, 4]), torch.tensor([0, 1]))
    second = Regions(torch.tensor([[5.0]]), torch.tensor([6]), torch.tensor([1]))
    both = Regions.cat(first, second).select(torch.tensor([False, True, True]))
    assert len(both) == 2
    assert (both.embeddings.tolist(), both.labels.tolist(), both.images.tolist()) == ([[2.0], [5.0]], [4, 6], [1, 1])
