"""PAMR against plain loops, and what it is for: maps that follow colour edges."""

from __future__ import annotations

import math

import pytest
import torch

from rca_lightning.errors import ArgumentError
from rca_lightning.pseudo_labels.propagation import pamr


def random_case(batch: int = 2, height: int = 6, width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, 3, height, width, generator=generator), torch.rand(
        batch, 3, height, width, generator=generator
    )


def by_loops(maps: torch.Tensor, image: torch.Tensor, dilations: tuple[int, ...], sharpness: float) -> torch.Tensor:
    """One iteration for one image, in Python's own float64."""
    channels, height, width = maps.shape
    values, colours = maps.double().tolist(), image.double().tolist()
    found = torch.zeros(channels, height, width, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            near = [
                (min(max(row + d * y, 0), height - 1), min(max(column + d * x, 0), width - 1))
                for d in dilations
                for y in (-1, 0, 1)
                for x in (-1, 0, 1)
                if (y, x) != (0, 0)
            ]
            logits = [0.0] * len(near)
            for plane in colours:
                around = [plane[y][x] for y, x in [(row, column), *near]]
                mean = sum(around) / len(around)
                std = math.sqrt(sum((value - mean) ** 2 for value in around) / len(around)) + 1e-3
                for index, (y, x) in enumerate(near):
                    logits[index] -= sharpness * abs(plane[y][x] - plane[row][column]) / std / 3
            weights = [math.exp(logit) for logit in logits]
            for channel in range(channels):
                total = sum(weight * values[channel][y][x] for weight, (y, x) in zip(weights, near, strict=True))
                found[channel, row, column] = total / sum(weights)
    return found


@pytest.mark.parametrize("dilations", [(1,), (2, 1), (1, 7)])
@pytest.mark.parametrize("iterations", [1, 3])
def test_against_loops(dilations, iterations):
    maps, images = random_case()
    found = pamr(maps, images, iterations=iterations, dilations=dilations, sharpness=4.0)
    for index in range(2):
        expected = maps[index].double()
        for _ in range(iterations):
            expected = by_loops(expected, images[index], dilations, 4.0)
        torch.testing.assert_close(found[index].double(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_constant_maps_stay_on_any_photograph(level):
    _, images = random_case()
    torch.testing.assert_close(pamr(torch.full((2, 1, 6, 5), level), images), torch.full((2, 1, 6, 5), level))


def test_on_a_constant_photograph_it_is_the_plain_mean_of_the_neighbours():
    maps, _ = random_case(1)
    found = pamr(maps, torch.full((1, 3, 6, 5), 0.3), iterations=1, dilations=(1,))
    window = maps[0, :, 1:4, 1:4]  # around (2, 2)
    expected = (window.sum(dim=(1, 2)) - window[:, 1, 1]) / 8
    torch.testing.assert_close(found[0, :, 2, 2], expected)


def disc_case(height: int = 32, width: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    inside = (rows - 15).square() + (columns - 15).square() < 81
    noise = torch.rand(3, height, width, generator=torch.Generator().manual_seed(3)) * 0.1
    return inside, torch.where(inside, 0.8, 0.3) * torch.tensor([1.0, 0.6, 0.3])[:, None, None] + noise


def iou(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first & second).sum() / (first | second).sum())


def test_a_shifted_noisy_map_snaps_to_the_colour_edge():
    inside, image = disc_case()
    noise = torch.rand(32, 32, generator=torch.Generator().manual_seed(1))
    maps = inside.roll((3, 2), (0, 1)).float() * 0.5 + noise * 0.5
    found = pamr(maps[None, None], image[None], dilations=(1, 2, 4))[0, 0]
    before, after = iou(maps > 0.5, inside), iou(found > 0.5, inside)
    assert before < 0.75
    assert after > 0.9


def test_contrast_does_not_matter():
    inside, image = disc_case()
    maps = inside.roll(3, 0)[None, None].float()
    bright, dim = (pamr(maps, picture[None], dilations=(1, 2, 4)) for picture in (image, image * 0.25))
    assert (bright - dim).abs().max() < 0.03


def test_mirrored_and_reordered_with_its_input():
    maps, images = random_case()
    found = pamr(maps, images)
    torch.testing.assert_close(pamr(maps.flip(3), images.flip(3)).flip(3), found)
    torch.testing.assert_close(pamr(maps.flip(2), images.flip(2)).flip(2), found)
    torch.testing.assert_close(pamr(maps[:, [2, 0, 1]], images[:, [1, 2, 0]]), found[:, [2, 0, 1]])
    torch.testing.assert_close(pamr(maps.flip(0), images.flip(0)).flip(0), found)


def test_input_is_left_alone_and_no_graph_is_built():
    maps, images = random_case()
    kept = maps.clone()
    assert not pamr(maps.requires_grad_(), images).requires_grad
    assert torch.equal(maps, kept)


def test_nothing_to_do():
    maps, images = random_case()
    assert torch.equal(pamr(maps, images, iterations=0), maps)
    assert pamr(maps[:, :0], images).shape == (2, 0, 6, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": -1}, "iterations=-1"),
        ({"dilations": ()}, r"dilations=\(\)"),
        ({"dilations": (1, 0)}, r"dilations=\(1, 0\)"),
        ({"sharpness": 0.0}, "sharpness=0.0"),
        ({"images": torch.zeros(2, 3, 6, 4)}, r"images=\(2, 3, 6, 4\): the maps are 6 x 5"),
        ({"images": torch.zeros(1, 3, 6, 5)}, r"images=\(1, 3, 6, 5\): there are maps for 2 images"),
        ({"images": torch.zeros(2, 1, 6, 5)}, r"images=\(2, 1, 6, 5\): give 3 colours"),
        ({"images": torch.full((2, 3, 6, 5), -2.1)}, "images='values from -2.1 to -2.1'.*undo the normalisation"),
        ({"images": torch.full((2, 3, 6, 5), float("nan"))}, "images='180 of 180 values NaN"),
        ({"maps": torch.full((2, 3, 6, 5), float("inf"))}, "maps='180 of 180 values NaN or infinite'"),
        ({"maps": torch.zeros(3, 6, 5)}, r"maps='\(3, 6, 5\).*give floating point \(B, K, H, W\)"),
    ],
)
def test_refused(options, message):
    maps, images = random_case()
    with pytest.raises(ArgumentError, match=message):
        pamr(**({"maps": maps, "images": images} | options))
