"""Refinements in a row, with the background as a channel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rca_lightning.errors import ArgumentError
from rca_lightning.pseudo_labels import refinement
from rca_lightning.pseudo_labels.labels import background_score, label_scores
from rca_lightning.pseudo_labels.propagation import pamr, random_walk
from rca_lightning.pseudo_labels.refinement import refine_scores

CLASSES = torch.tensor([4, 9])


def random_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps, picture = torch.rand(2, 8, 12, generator=generator), torch.rand(3, 8, 12, generator=generator)
    return maps, picture, torch.randn(5, 2, 3, generator=generator)


def with_background(maps: torch.Tensor, **options) -> torch.Tensor:
    return torch.cat([background_score(maps, **options)[None], maps])


POWER = {"background": "power", "power": 2}


def test_without_steps_scores_stay_as_they_are():
    maps, picture, _ = random_case()
    assert torch.equal(refine_scores(maps, picture, []), maps)


def test_steps_act_in_their_order_on_what_came_before(monkeypatch):
    maps, picture, features = random_case()
    monkeypatch.setattr(refinement, "dense_crf", lambda maps, images, **_: maps * images.mean(1, keepdim=True))
    scores = with_background(maps, **POWER)
    walked = F.interpolate(
        random_walk(F.avg_pool2d(scores[None], 4), features[None]), (8, 12), mode="bilinear", align_corners=False
    )
    expected = pamr(walked * picture.mean(0), picture[None])[0]
    torch.testing.assert_close(
        refine_scores(scores, picture, ["random_walk", "dense_crf", "pamr"], features=features), expected
    )
    other = refine_scores(scores, picture, ["pamr", "dense_crf", "random_walk"], features=features)
    assert not torch.allclose(other, expected)


def test_a_fixed_background_is_the_threshold_of_the_refined_maps():
    maps, picture, features = random_case()
    steps = ["random_walk", "pamr"]
    half, tenth = (
        refine_scores(with_background(maps, threshold=threshold), picture, steps, features=features)
        for threshold in (0.5, 0.1)
    )
    torch.testing.assert_close(half[0], torch.full((8, 12), 0.5))
    assert torch.equal(half[1:], tenth[1:])


def test_a_power_background_is_refined_itself():
    maps, picture, _ = random_case()
    refined = refine_scores(with_background(maps, **POWER), picture, ["pamr"])
    torch.testing.assert_close(refined[:1], pamr(background_score(maps, **POWER)[None, None], picture[None])[0])


def test_maps_in_another_order_are_refined_alike():
    maps, picture, features = random_case()
    refined, swapped = (
        refine_scores(with_background(some, **POWER), picture, ["random_walk", "pamr"], features=features)
        for some in (maps, maps.flip(0))
    )
    torch.testing.assert_close(swapped, refined[[0, 2, 1]])
    assert torch.equal(label_scores(swapped, CLASSES.flip(0)), label_scores(refined, CLASSES))


def test_walk_at_the_size_of_the_features_resizes_nothing():
    maps, _, features = random_case()
    coarse = F.avg_pool2d(maps, 4)
    walked = refine_scores(coarse, torch.zeros(3, 2, 3), ["random_walk"], features=features)
    assert torch.equal(walked, random_walk(coarse[None], features[None])[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scores": torch.full((2, 8, 12), float("nan"))}, "maps='192 of 192 values NaN"),
        ({"picture": torch.zeros(3, 8, 11)}, r"images=\(1, 3, 8, 11\): the maps are 8 x 12"),
        ({"names": ["median"]}, "names='median'"),
        ({"names": ["random_walk"]}, "features=None"),
    ],
)
def test_refused(options, message):
    maps, picture, _ = random_case()
    with pytest.raises(ArgumentError, match=message):
        refine_scores(**({"scores": maps, "picture": picture, "names": ["pamr"]} | options))
