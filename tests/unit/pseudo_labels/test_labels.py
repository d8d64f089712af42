"""Label images: background, class or ignored, for each kind of background."""

from __future__ import annotations

import pytest
import torch

from rca_lightning.constants import IGNORE_INDEX
from rca_lightning.errors import ArgumentError
from rca_lightning.pseudo_labels.generator import PseudoLabelGenerator
from rca_lightning.pseudo_labels.labels import label_scores, threshold_background
from rca_lightning.rca.inference import ClassMaps

CLASSES = torch.tensor([3, 11, 253])
BACKGROUNDS = ("fixed", "power", "saliency", "two_thresholds")


def draw(maps: torch.Tensor, classes: torch.Tensor, saliency: torch.Tensor | None = None, **settings) -> torch.Tensor:
    """Label image without any refinement."""
    generator = PseudoLabelGenerator(**settings)
    seeds = ClassMaps(maps, classes, torch.ones(254))
    return generator.draw(generator.score(seeds, torch.zeros(3, *maps.shape[1:]), saliency))


def random_maps() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(3, 9, 8, generator=generator) ** 2
    return maps * torch.rand(9, 8, generator=generator), torch.rand(9, 8, generator=generator)


def expected_label(values: list[float], salient: bool, background: str) -> int:
    best = max(values)
    label = int(CLASSES[values.index(best)]) + 1
    if background == "fixed":
        return label if best > 0.25 else 0
    if background == "power":
        return label if best > (1 - best) ** 3 else 0
    if background == "two_thresholds":
        return 0 if best <= 0.1 else label if best > 0.4 else 255
    if salient:
        return label if best > 0.1 else 255
    return 255 if best > 0.4 else 0


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_pixel_by_its_background(background):
    maps, saliency = random_maps()
    found = draw(
        maps,
        CLASSES,
        background=background,
        background_threshold=0.25,
        power=3,
        low=0.1,
        high=0.4,
        saliency=saliency,
        saliency_threshold=0.6,
    )
    assert found.dtype == torch.uint8
    expected = [
        [
            expected_label(maps[:, row, column].tolist(), bool(saliency[row, column] > 0.6), background)
            for column in range(8)
        ]
        for row in range(9)
    ]
    assert found.tolist() == expected
    assert len(found.unique()) > 3  # the case is not trivial


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_order_of_the_maps_does_not_matter(background):
    maps, saliency = random_maps()
    order = torch.tensor([2, 0, 1])
    found = draw(maps[order], CLASSES[order], background=background, saliency=saliency)
    assert torch.equal(found, draw(maps, CLASSES, background=background, saliency=saliency))


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_mirrored_maps_make_a_mirrored_label(background):
    maps, saliency = random_maps()
    found = draw(maps.flip(2), CLASSES, background=background, saliency=saliency.flip(1))
    assert torch.equal(found.flip(1), draw(maps, CLASSES, background=background, saliency=saliency))


def test_fixed_is_the_plain_threshold():
    maps, _ = random_maps()
    assert torch.equal(draw(maps, torch.arange(3), background_threshold=0.3), threshold_background(maps, 0.3))


def test_equal_to_a_threshold_counts_as_below():
    maps = torch.tensor([[[0.25, 0.5]]])
    assert draw(maps, CLASSES[:1], background="two_thresholds", low=0.25, high=0.5).tolist() == [[0, IGNORE_INDEX]]
    assert draw(maps, CLASSES[:1], background_threshold=0.5).tolist() == [[0, 0]]


def test_equal_thresholds_leave_nothing_between():
    maps, _ = random_maps()
    found = draw(maps, CLASSES, background="two_thresholds", low=0.3, high=0.3)
    assert torch.equal(found, draw(maps, CLASSES, background_threshold=0.3))


def test_without_maps():
    maps, classes = torch.zeros(0, 1, 2), torch.zeros(0, dtype=torch.int64)
    saliency = torch.tensor([[0.0, 1.0]])
    found = {
        background: draw(maps, classes, background=background, saliency=saliency).tolist()[0]
        for background in BACKGROUNDS
    }
    assert found == {"fixed": [0, 0], "power": [0, 0], "two_thresholds": [0, 0], "saliency": [0, IGNORE_INDEX]}


def test_scores_compete_and_a_tie_is_background():
    scores = torch.tensor([[[0.5, 0.5, 0.2]], [[0.5, 0.1, 0.3]], [[0.2, 0.6, 0.4]]])
    assert label_scores(scores, torch.tensor([8, 1])).tolist() == [[0, 2, 2]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"background": "otsu"}, "background='otsu': give one of fixed, power, saliency, two_thresholds"),
        ({"background": "two_thresholds", "low": 0.5, "high": 0.4}, "low=0.5: give at most high=0.4"),
        ({"background": "two_thresholds", "high": 1.2}, "high=1.2"),
        ({"background": "saliency"}, "saliency=None"),
        ({"background": "saliency", "saliency": torch.zeros(2, 3)}, r"saliency=\(2, 3\): the maps are 2 x 2"),
        ({"background": "saliency", "saliency": torch.zeros(1, 2, 2)}, r"saliency=\(1, 2, 2\): give \(H, W\)"),
        ({"background": "saliency", "saliency": torch.full((2, 2), 255.0)}, "saliency='values from 255 to 255'"),
        ({"background": "saliency", "saliency": torch.zeros(2, 2), "saliency_threshold": 2}, "saliency_threshold=2"),
        ({"classes": torch.tensor([1, 1])}, r"classes=\[1, 1\]: give each class once"),
        ({"classes": torch.tensor([1, 254])}, r"classes=\[1, 254\]: give each class once, from 0 to 253"),
        ({"classes": torch.tensor([-1, 2])}, r"classes=\[-1, 2\]"),
        ({"classes": torch.tensor([1])}, r"classes=\[1\]: give one integer for each of the 2 class maps"),
        ({"classes": torch.tensor([1.0, 2.0])}, r"classes=\[1.0, 2.0\]: give one integer"),
        ({"maps": torch.full((2, 2, 2), float("nan"))}, "maps='8 of 8 values NaN"),
    ],
)
def test_refused(options, message):
    arguments = {"maps": torch.zeros(2, 2, 2), "classes": torch.tensor([0, 1])} | options
    with pytest.raises(ArgumentError, match=message):
        draw(**arguments)


def test_scores_without_background_are_refused():
    with pytest.raises(ArgumentError, match="scores="):
        label_scores(torch.zeros(0, 2, 2), torch.zeros(0, dtype=torch.int64))
