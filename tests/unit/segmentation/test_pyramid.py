"""Feature pyramid: which stages it reads, and what it makes of them."""

from __future__ import annotations

import pytest
import torch

from rca_lightning.backbones.build import build_backbone
from rca_lightning.errors import ArgumentError
from rca_lightning.rca.projection import (
    Moments,
    are_learned,
    learn_projections,
    load_projections,
    projections_state,
)
from rca_lightning.segmentation.pyramid import FeaturePyramid


def build(backbone: str = "resnet14", channels: tuple[int, ...] = (4, 5, 6), output_stride: int = 16) -> FeaturePyramid:
    torch.manual_seed(0)
    return FeaturePyramid(build_backbone(backbone, weights="none", output_stride=output_stride), channels)


def learned(**options) -> FeaturePyramid:
    pyramid = build(**options)
    with torch.no_grad():
        features = pyramid.features(torch.randn(4, 3, 48, 64))
    moments = [Moments(level.shape[1]) for level in features]
    for of_level, level in zip(moments, features, strict=True):
        of_level.add(level.transpose(0, 1).flatten(1).T)
    learn_projections(pyramid.projections, moments)
    return pyramid


@pytest.mark.parametrize(
    ("backbone", "output_stride", "channels", "strides", "kept"),
    [
        ("resnet50", 16, (48, 96, 256, 384), [4, 8, 16, 16], [48, 96, 256, 384]),
        ("resnet50", 8, (48, 96, 300, 5000), [4, 8, 8, 8], [48, 96, 300, 2048]),
        ("vgg16", 8, (48, 96, 256, 384), [4, 8, 8, 8], [48, 96, 256, 384]),
        ("resnet50", 16, (7, 9), [16, 16], [7, 9]),
    ],
)
def test_stages_from_stride_4_on(backbone, output_stride, channels, strides, kept):
    pyramid = build(backbone, channels, output_stride)
    assert pyramid.strides == strides
    assert pyramid.channels == kept
    with torch.no_grad():
        levels = pyramid(torch.zeros(1, 3, 40, 60))
    size = [-(-side // output_stride) * output_stride for side in (40, 60)]
    assert [tuple(level.shape) for level in levels] == [
        (1, channels, size[0] // stride, size[1] // stride) for channels, stride in zip(kept, strides, strict=True)
    ]


def test_fewer_stages_take_the_last_of_the_channels():
    pyramid = build("resnet14", (9, 4, 5, 6))
    count = len(pyramid.strides)
    assert count < 4
    assert pyramid.channels == [9, 4, 5, 6][-count:]


def test_each_level_is_its_own_projection_of_its_own_stage():
    pyramid = learned()
    images = torch.randn(2, 3, 48, 64)
    with torch.no_grad():
        stages, levels = pyramid.backbone(images), pyramid(images)
    assert len(levels) > 1
    for stage, level, projection in zip(stages[-len(levels) :], levels, pyramid.projections, strict=True):
        expected = torch.einsum("dc,bchw->bdhw", projection.weight.double(), stage.double())
        expected += projection.bias.double()[:, None, None]
        torch.testing.assert_close(level.double(), expected, atol=1e-4, rtol=1e-4)


def test_backbone_is_frozen_in_training_mode_too():
    pyramid = build().train()
    assert not pyramid.backbone.training
    assert not any(weight.requires_grad for weight in pyramid.parameters())


def test_components_are_kept_and_taken():
    one, other = learned(), build()
    assert are_learned(one.projections)
    assert not are_learned(other.projections)
    assert not are_learned([])
    state = projections_state(one.projections)
    assert list(dict.fromkeys(name.split(".")[0] for name in state)) == ["pca", "pca1", "pca2"]
    for name, changed in (("pca1.bias", torch.zeros(9)), ("pca.weight", state["pca.weight"] * float("nan"))):
        assert not load_projections(other.projections, state | {name: changed})
    assert not load_projections(other.projections, state | {"pca1.learned": torch.tensor(False)})
    assert not load_projections(other.projections, {})
    assert not load_projections(other.projections, None)
    assert not load_projections([], {})
    assert not are_learned(other.projections)
    assert load_projections(other.projections, state)
    torch.testing.assert_close(projections_state(other.projections), state, atol=0, rtol=0)
    again = build()
    again.load_state_dict(one.state_dict())
    assert are_learned(again.projections)


def test_no_channels_are_refused():
    for channels in ((), (0, 4)):
        with pytest.raises(ArgumentError, match=r"channels=.*: give at least one number above 0"):
            build(channels=channels)
    with pytest.raises(ArgumentError, match="there are components only with projection='pca'"):
        learn_projections([], [])
