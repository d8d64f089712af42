"""Steps in a row, with the background as a channel."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from rca_lightning.errors import ArgumentError
from rca_lightning.pseudo_labels.dense_crf import dense_crf
from rca_lightning.pseudo_labels.labels import background_score, label_map, label_scores
from rca_lightning.pseudo_labels.propagation import pamr, random_walk
from rca_lightning.pseudo_labels.refinement import FeatureWalk, refine, refinement_steps

CLASSES = torch.tensor([4, 9])


def random_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps, image = torch.rand(2, 8, 12, generator=generator), torch.rand(3, 8, 12, generator=generator)
    return maps, image, torch.randn(1, 5, 2, 3, generator=generator)


@pytest.mark.parametrize("background", ["fixed", "power"])
def test_without_steps_it_is_the_rule(background):
    maps, image, _ = random_case()
    scores = refine(maps, image, steps=[], background=background, threshold=0.6, power=0.5)
    assert torch.equal(scores[0], background_score(maps, rule=background, threshold=0.6, power=0.5))
    assert torch.equal(scores[1:], maps)
    expected = label_map(maps, CLASSES, rule=background, threshold=0.6, power=0.5)
    assert torch.equal(label_scores(scores, CLASSES), expected)


def test_steps_act_in_their_order_on_what_came_before():
    maps, image, features = random_case()
    steps = [FeatureWalk(features, steps=2), partial(pamr, iterations=2)]
    found = refine(maps, image, steps=steps, background="power", power=2)
    scores = torch.cat([background_score(maps, rule="power", power=2)[None], maps])[None]
    for step in steps:
        scores = step(scores, image[None])
    assert torch.equal(found, scores[0])
    assert not torch.equal(found, refine(maps, image, steps=steps[::-1], background="power", power=2))


def test_a_fixed_background_is_the_threshold_of_the_refined_maps():
    maps, image, features = random_case()
    steps = [FeatureWalk(features), pamr]
    found = refine(maps, image, steps=steps, threshold=0.5)
    torch.testing.assert_close(found[0], torch.full((8, 12), 0.5))
    assert torch.equal(found[1:], refine(maps, image, steps=steps, threshold=0.1)[1:])


def test_a_power_background_is_refined_itself():
    maps, image, _ = random_case()
    found = refine(maps, image, steps=[pamr], background="power", power=2)
    before = background_score(maps, rule="power", power=2)
    torch.testing.assert_close(found[:1], pamr(before[None, None], image[None])[0])


def test_maps_in_another_order_are_refined_alike():
    maps, image, features = random_case()
    steps = [FeatureWalk(features), pamr]
    found = refine(maps, image, steps=steps, background="power")
    swapped = refine(maps.flip(0), image, steps=steps, background="power")
    torch.testing.assert_close(swapped, found[[0, 2, 1]])
    assert torch.equal(label_scores(swapped, CLASSES.flip(0)), label_scores(found, CLASSES))


def test_a_photograph_without_classes_is_background():
    _, image, features = random_case()
    scores = refine(torch.zeros(0, 8, 12), image, steps=[FeatureWalk(features), pamr], background="power")
    assert scores.shape == (1, 8, 12)
    assert (label_scores(scores, torch.zeros(0, dtype=torch.int64)) == 0).all()


def test_walk_at_the_cells_of_the_features():
    maps, image, features = random_case()
    found = FeatureWalk(features, radius=1, beta=2.0, steps=3)(maps[None], image[None])
    coarse = F.avg_pool2d(maps[None], 4)  # (8, 12) -> (2, 3)
    walked = random_walk(coarse, features, radius=1, beta=2.0, steps=3)
    torch.testing.assert_close(found, F.interpolate(walked, (8, 12), mode="bilinear", align_corners=False))
    same = FeatureWalk(features, steps=3)(coarse, image[None])
    assert torch.equal(same, random_walk(coarse, features, steps=3))


def test_steps_by_name():
    *_, features = random_case()
    walk, *others = refinement_steps(["random_walk", "pamr", "dense_crf"], features=features)
    assert isinstance(walk, FeatureWalk)
    assert walk.features is features
    assert others == [pamr, dense_crf]
    assert refinement_steps([]) == []


@pytest.mark.parametrize(
    ("names", "message"), [(["median"], "names='median'"), (["pamr", "random_walk"], "features=None")]
)
def test_refused_names(names, message):
    with pytest.raises(ArgumentError, match=message):
        refinement_steps(names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maps": torch.full((2, 8, 12), float("nan"))}, "maps='192 of 192 values NaN"),
        ({"image": torch.zeros(3, 8, 11)}, r"image=\(3, 8, 11\): the maps are 8 x 12"),
        ({"image": torch.zeros(1, 8, 12)}, r"image=\(1, 8, 12\): give 3 colours"),
        ({"image": torch.full((3, 8, 12), 255.0)}, "image='values from 255 to 255'"),
        ({"background": "otsu"}, "rule='otsu'"),
        ({"steps": [lambda maps, images: maps[..., 1:]]}, r"steps=.*this one gave \(3, 8, 11\)"),
    ],
)
def test_refused(options, message):
    maps, image, _ = random_case()
    with pytest.raises(ArgumentError, match=message):
        refine(**({"maps": maps, "image": image, "steps": [pamr]} | options))
