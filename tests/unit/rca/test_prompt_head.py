"""Class activation maps from text embeddings."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from rca_lightning.errors import ArgumentError
from rca_lightning.rca.cam import PromptHead
from rca_lightning.rca.projection import Moments, PCAProjection


def unit(count: int, width: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def cells(batch: int, width: int, height: int, columns: int) -> torch.Tensor:
    return unit(batch * height * columns, width, 7).reshape(batch, height, columns, width).permute(0, 3, 1, 2)


def log_odds(cell: list[float], prompts: list[list[float]], rivals: list[list[float]], scale: float) -> list[float]:
    scores = [scale * sum(a * b for a, b in zip(cell, one, strict=True)) for one in prompts]
    against = [scale * sum(a * b for a, b in zip(cell, one, strict=True)) for one in rivals]
    top = max(against)
    total = top + math.log(sum(math.exp(one - top) for one in against))
    return [score - total for score in scores]


def test_maps_equal_a_plain_loop():
    classes, background, features = unit(3, 6, 0), unit(4, 6, 1), cells(2, 6, 2, 3)
    head = PromptHead(3, 7, 6, scale=20)
    head.start(classes, background)
    maps = head(features)
    for image in range(2):
        for row in range(2):
            for column in range(3):
                cell = features[image, :, row, column].double().tolist()
                expected = log_odds(cell, classes.double().tolist(), background.double().tolist(), 20)
                torch.testing.assert_close(
                    maps[image, :, row, column].double(), torch.tensor(expected).double(), atol=1e-4, rtol=0
                )


def test_without_background_the_other_classes_are_rivals():
    classes, features = unit(3, 6, 0), cells(1, 6, 1, 2)
    head = PromptHead(3, 3, 6, scale=20)
    head.start(classes, classes[:0])
    for column in range(2):
        cell = features[0, :, 0, column].double().tolist()
        rows = classes.double().tolist()
        expected = [log_odds(cell, [rows[i]], [rows[j] for j in range(3) if j != i], 20)[0] for i in range(3)]
        torch.testing.assert_close(
            head(features)[0, :, 0, column].double(), torch.tensor(expected).double(), atol=1e-4, rtol=0
        )


def test_behind_a_whole_projection_the_maps_are_the_same():
    width = 8
    classes, background, features = unit(3, width, 0), unit(4, width, 1), cells(4, width, 5, 6)
    moments = Moments(width)
    moments.add(features.permute(0, 2, 3, 1).reshape(-1, width))
    projection = PCAProjection(width, width)
    projection.learn(moments)
    plain, behind = PromptHead(3, 7, width), PromptHead(3, 7, width)
    plain.start(classes, background)
    behind.start(classes, background, weight=projection.weight, bias=projection.bias)
    torch.testing.assert_close(behind(projection(features)), plain(features), atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("classes", "background", "weight", "message"),
    [
        (2, 5, None, "give 3 classes and 4 of the background"),
        (3, 3, None, "give 3 classes and 4 of the background"),
        (3, 4, torch.eye(6)[:4], "embedding_dim=4: text embeddings of 6 channels need all of them"),
    ],
)
def test_what_does_not_fit_is_refused(classes, background, weight, message):
    with pytest.raises(ArgumentError, match=message):
        PromptHead(3, 7, 6).start(unit(classes, 6, 0), unit(background, 6, 1), weight=weight)


@pytest.mark.parametrize(("classes", "prompts"), [(1, 1), (3, 2)])
def test_heads_that_have_nothing_to_compare_are_refused(classes, prompts):
    with pytest.raises(ArgumentError, match="background prompts"):
        PromptHead(classes, prompts, 6)
