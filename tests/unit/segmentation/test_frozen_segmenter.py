"""The segmenter behind a frozen backbone: what it reads from views, tags and boundaries, against plain loops."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from tests.prediction_runs import with_prototypes
from torch import Tensor

from rca_lightning.backbones.build import build_backbone
from rca_lightning.errors import ArgumentError
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.pseudo_labels.affinity import boundary_walk
from rca_lightning.segmentation import frozen_segmenter
from rca_lightning.segmentation.boundary import BoundaryNetwork
from rca_lightning.segmentation.frozen_segmenter import FrozenSegmenter, tag_prior, walk_probabilities
from rca_lightning.segmentation.pyramid import FeaturePyramid

CLASSES = 3

PROPAGATION = {"propagation_steps": 1, "propagation_power": 2.0}


def first_stage(*, contrast: bool = False) -> RCAModule:
    torch.manual_seed(0)
    options = {"backbone": "resnet14", "weights": "none", "backbone_mode": "frozen", "embedding_dim": 16}
    module = RCAModule(
        CLASSES, **options, contrast=contrast, num_prototypes=2, background_prototypes=2, output_stride=16
    )
    with_prototypes(module)
    randomise(module.network.projections)
    module.network.coarse_head.conv.weight.data.normal_()
    module.tag_calibration.weight.copy_(torch.tensor([0.4, 0.8]))
    module.tag_calibration.bias.copy_(torch.tensor([0.5, -0.5, 0.1]))
    module.tag_calibration.fitted.fill_(True)
    return module.eval()


def randomise(projections: Sequence[torch.nn.Module]) -> None:
    """Components that are anything but 0."""
    for projection in projections:
        projection.weight.normal_(std=projection.weight.shape[1] ** -0.5)
        projection.bias.normal_(std=0.1)
        projection.learned.fill_(True)


def build(*, walks: bool = False, contrast: bool = False) -> FrozenSegmenter:
    first = first_stage(contrast=contrast)
    boundary = None
    if walks:
        boundary = BoundaryNetwork(FeaturePyramid(build_backbone("resnet14", weights="none", output_stride=16)))
        boundary.pyramid.backbone.load_state_dict(first.network.backbone.state_dict())
        boundary.boundary.weight.data.normal_()
    made = FrozenSegmenter(
        first.network, first.tag_calibration, tags_by_attention=first.contrasts_prototypes, boundary=boundary
    )
    randomise(made.projections)
    made.classifier.learn(torch.randn(CLASSES + 1, made.classifier.weight.shape[1]), torch.randn(CLASSES + 1))
    return made.eval()


def photographs(count: int = 2, height: int = 45, width: int = 70) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(3))


def loop(made: FrozenSegmenter, image: Tensor, tags: Tensor | None, scales: list[float], flip: bool) -> Tensor:
    """Probabilities `(L + 1, h, w)` of one image `(3, H, W)`, cell by cell in float64."""
    height, width = image.shape[1:]
    seen, read = [], []
    for scale in sorted(scales, reverse=True):
        size = (round(height * scale), round(width * scale))
        view = image[None]
        if size != (height, width):
            view = F.interpolate(view, size, mode="bilinear", antialias=scale < 1)
        for mirrored in (False, True) if flip else (False,):
            shown = view.flip(3) if mirrored else view
            whole = F.interpolate(shown, [-(-side // 16) * 16 for side in size], mode="bilinear")
            with torch.no_grad():
                outputs = made.backbone(whole)
                stages = made.first_stage.stages(whole)
                logits = made.first_stage.coarse_head(stages[-1]).mean((2, 3))[0]
            evidence = made.first_stage.class_evidence(stages)[0] if made.tags_by_attention else None
            seen.append((logits.double(), None if evidence is None else evidence.double()))
            levels = [
                torch.einsum("dc,chw->dhw", part.weight.double(), stage[0].double()) + part.bias[:, None, None]
                for part, stage in zip(made.projections[-2:], outputs[-2:], strict=True)
            ]
            factor = levels[0].shape[1] // levels[1].shape[1]
            if factor > 1:
                levels[0] = F.avg_pool2d(levels[0][None], factor)[0]
            read.append((torch.cat(levels), mirrored))
    if tags is None or bool((tags < 0).any()):
        logits = torch.stack([one for one, _ in seen]).mean(0)
        if made.tags_by_attention:
            mean = torch.stack([one for _, one in seen]).mean(0).clamp(1e-4, 1 - 1e-4)
            other = torch.log(mean / (1 - mean))
        else:
            other = logits
        calibration = made.calibration
        sums = calibration.weight[0] * logits + calibration.weight[1] * other + calibration.bias
        probable = 1 / (1 + torch.exp(-sums))
    else:
        probable = tags.double()
    prior = torch.cat([torch.ones(1), probable]).double().log()
    total = None
    for embeddings, mirrored in read:
        cells = embeddings.flatten(1).T  # (hw, D)
        rows = []
        for cell in cells:
            scores = torch.exp(made.classifier.weight.double() @ cell + made.classifier.bias.double() + prior)
            rows.append(scores / scores.sum())
        values, unit = torch.stack(rows), cells / cells.norm(dim=1, keepdim=True)
        weights = (unit @ unit.T).clamp_min(0) ** 2
        spread = torch.stack([(row[:, None] * values).sum(0) / row.sum() for row in weights])
        probabilities = spread.T.reshape(-1, *embeddings.shape[1:])
        probabilities = probabilities.flip(2) if mirrored else probabilities
        if total is None:
            total = probabilities
        else:
            total = total + F.interpolate(probabilities[None], total.shape[1:], mode="bilinear")[0]
    return total / len(read)


@pytest.mark.parametrize(("scales", "flip"), [([1.0], False), ([0.5, 1.0, 1.5], True)])
@pytest.mark.parametrize("contrast", [False, True])
def test_probabilities_are_those_of_a_plain_loop(scales: list[float], flip: bool, contrast: bool):
    made, images = build(contrast=contrast), photographs()
    assert made.tags_by_attention is contrast
    found = made.label_probabilities(images, scales=scales, flip=flip)
    assert found.dtype == torch.float32
    for image, probabilities in zip(images, found, strict=True):
        expected = loop(made, image, None, scales, flip)
        torch.testing.assert_close(probabilities.double(), expected, atol=2e-5, rtol=1e-4)
    assert found.std((2, 3)).max() > 2e-3  # cells differ


def test_given_tags_leave_only_their_labels_and_unknown_rows_are_predicted():
    made, images = build(), photographs(3)
    tags = torch.tensor([[1.0, 0.0, 0.0], [-1.0, -1.0, -1.0], [0.0, 0.0, 0.0]])
    found = made.label_probabilities(images, tags, scales=[1.0, 1.5], flip=True)
    for image, row, probabilities in zip(images, tags, found, strict=True):
        expected = loop(made, image, row, [1.0, 1.5], True)
        torch.testing.assert_close(probabilities.double(), expected, atol=2e-5, rtol=1e-4)
    assert not found[0, 2:].any()
    assert found[0, 1].min() > 0
    assert found[1].amin() > 0
    torch.testing.assert_close(found[2, 0], torch.ones_like(found[2, 0]))
    torch.testing.assert_close(found.sum(1), torch.ones_like(found[:, 0]))


@pytest.mark.parametrize("walks", [False, True])
@pytest.mark.parametrize("size", [(33, 50), (1, 7), (64, 64)])
def test_a_batch_is_what_its_images_are_alone(walks: bool, size: tuple[int, int]):
    made, images = build(walks=walks), photographs(2, *size)
    tags = torch.tensor([[1.0, 1.0, 0.0], [-1.0, -1.0, -1.0]])
    options = {"scales": [1.0, 2.0], "flip": True}
    together = made.label_probabilities(images, tags, **options)
    alone = [made.label_probabilities(images[[row]], tags[[row]], **options) for row in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)
    cell = 4 if walks else 8
    cells = [-(-side * (1 if walks else 2) // 16) * (16 // cell if walks else 1) for side in size]
    assert list(together.shape[2:]) == cells


def test_views_serve_every_segmenter_of_the_backbone():
    made, other = build(walks=True), build(walks=True)
    other.classifier.learn(made.classifier.weight.flip(0), made.classifier.bias)
    images = photographs()
    views = made.views(images, scales=[0.5, 1.0], flip=True)
    assert [(view.scale > 0.6, view.mirrored) for view in views] == [
        (True, False), (True, True), (False, False), (False, True)
    ]  # fmt: skip
    for segmenter in (made, other):
        expected = segmenter.label_probabilities(images, scales=[0.5, 1.0], flip=True)
        mean, boundary = segmenter.unwalked(views, None, **PROPAGATION)
        torch.testing.assert_close(walk_probabilities(mean, boundary), expected)
    with pytest.raises(ArgumentError, match=r"^views=\[\]: give at least one"):
        made.unwalked([], None, **PROPAGATION)


def test_tags_are_not_scored_where_all_are_given(monkeypatch: pytest.MonkeyPatch):
    made, images = build(), photographs(2)
    tags = torch.zeros(2, made.first_stage.coarse_head.conv.out_channels)
    tags[:, 0] = 1
    unknown = torch.cat([tags[:1], torch.full_like(tags[:1], -1)])
    expected = made.label_probabilities(images, unknown)[0]
    monkeypatch.setattr(frozen_segmenter, "seen_tags", None)
    torch.testing.assert_close(made.label_probabilities(images, tags)[0], expected)


def test_boundaries_are_those_of_the_photograph_at_its_own_size():
    made, images = build(walks=True), photographs(2, 48, 64)
    views = made.views(images, scales=[0.5, 1.0, 2.0], flip=True)
    mean, boundary = made.unwalked(views, None, **PROPAGATION)
    assert boundary is not None
    torch.testing.assert_close(boundary, made.boundary_network(images).detach(), atol=1e-5, rtol=1e-4)
    found = made.label_probabilities(images, scales=[0.5, 1.0, 2.0], flip=True)
    torch.testing.assert_close(found, walk_probabilities(mean, boundary))


def test_a_walk_is_that_of_the_labels_that_are_shown():
    probabilities = torch.tensor([0.7, 0.26, 0.04]).reshape(1, 3, 1, 1).expand(1, 3, 4, 4).clone()
    probabilities[:, :, :, :2] = torch.tensor([0.2, 0.78, 0.02]).reshape(1, 3, 1, 1)
    boundary = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = walk_probabilities(probabilities, boundary)
    enlarged = F.interpolate(probabilities, (8, 8), mode="bilinear")
    torch.testing.assert_close(found[:, :2], boundary_walk(enlarged[:, :2], boundary))
    assert not found[:, 2].any()
    assert not torch.allclose(found[:, :2], enlarged[:, :2], atol=0.01)
    lost = boundary_walk(enlarged[:, 2:], boundary)
    torch.testing.assert_close(found.sum(1) + lost[:, 0], torch.ones(1, 8, 8), atol=1e-4, rtol=0)


def test_the_most_probable_label_is_walked_however_little_it_is():
    probabilities = torch.full((1, 40, 2, 2), 1 / 40)
    probabilities[:, 7] += 0.01
    found = walk_probabilities(probabilities, torch.zeros(1, 8, 8))
    torch.testing.assert_close(found[:, 7], torch.full((1, 8, 8), 0.035))
    assert int((found.amax((2, 3)) > 0).sum()) == 1


def test_the_walk_keeps_the_sum_of_what_is_walked():
    made, images = build(walks=True), photographs()
    found = made.label_probabilities(images)
    assert found.shape[2:] == (12, 20)
    views = made.views(images)
    mean, _ = made.unwalked(views, None, **PROPAGATION)
    unwalked = (mean * (found.amax((2, 3), keepdim=True) == 0)).sum(1).amax()
    assert (found.sum(1) - 1).abs().max() <= unwalked + 1e-4


def test_everything_shares_one_backbone_that_nothing_trains():
    made = build(walks=True)
    backbone = made.first_stage.backbone
    assert made.backbone is made.pyramid.backbone is made.boundary_network.backbone is backbone
    assert made.pyramid is made.boundary_network.pyramid
    backbones = [part for part in made.modules() if isinstance(part, type(backbone))]
    assert [id(part) for part in backbones] == [id(backbone)]
    assert not any(weight.requires_grad for weight in made.parameters())
    assert build().pyramid.backbone is not backbone


def test_levels_on_finer_grids_are_averaged():
    made = build()
    generator = torch.Generator().manual_seed(0)
    first, second = made.pyramid.channels[-2:]
    fine, coarse = (torch.randn(2, first, 4, 6, generator=generator), torch.randn(2, second, 2, 3, generator=generator))
    found = made.embed([torch.zeros(2, 1, 8, 12), fine, coarse])
    torch.testing.assert_close(found[:, :first], F.avg_pool2d(fine, 2))
    torch.testing.assert_close(found[:, first:], coarse)
    assert made.embed([fine.half(), coarse.half()]).dtype == torch.float32


def test_the_prior_of_tags_is_a_logarithm():
    probable = torch.tensor([[0.5, 0.0, 1.0], [0.25, 0.5, 0.75]])
    expected = torch.tensor([[1.0, 0.5, 1e-6, 1.0], [1.0, 0.25, 0.5, 0.75]]).log()
    torch.testing.assert_close(tag_prior(probable, None), expected)
    tags = torch.tensor([[1.0, 0.0, 1.0], [-1.0, -1.0, -1.0]])
    given = torch.stack([torch.tensor([0.0, 0.0, -torch.inf, 0.0]), expected[1]])
    torch.testing.assert_close(tag_prior(probable, tags), given)
