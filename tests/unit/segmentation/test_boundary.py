"""BoundaryNetwork: what it computes, and what of it is trained."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rca_lightning.backbones.build import build_backbone
from rca_lightning.errors import ArgumentError
from rca_lightning.segmentation.boundary import BoundaryNetwork, LevelStandardization
from rca_lightning.segmentation.pyramid import FeaturePyramid

CHANNELS = (4, 6, 8)


def build(width: int = 8) -> BoundaryNetwork:
    torch.manual_seed(0)
    return BoundaryNetwork(
        FeaturePyramid(build_backbone("resnet14", weights="none", output_stride=16), CHANNELS), width
    )


def levels(batch: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = ((16, 24), (8, 12), (4, 6))
    return [torch.randn(batch, c, *size, generator=generator) for c, size in zip((4, 6, 8), sizes, strict=True)]


def test_reading_is_that_of_plain_operations():
    network, read = build(), levels()
    for index, part in enumerate(network.standardizations):
        part.mean.fill_(0.1 * index)
        part.variance.fill_(1.0 + index)
    reduced = []
    for index, level in enumerate(read):
        standard = (level.double() - 0.1 * index) / (1.0 + index + 1e-5) ** 0.5
        weight = network.branches[index][0].weight[:, :, 0, 0].double()
        values = torch.einsum("oc,bchw->bohw", weight, standard)
        groups = values.reshape(2, 4, -1)  # 4 groups of 2 channels
        mean, variance = groups.mean(2, keepdim=True), groups.var(2, correction=0, keepdim=True)
        values = ((groups - mean) / (variance + 1e-5).sqrt()).reshape(values.shape).clamp_min(0)
        reduced.append(F.interpolate(values, (16, 24), mode="bilinear"))
    weight, bias = network.boundary.weight[0, :, 0, 0].double(), network.boundary.bias.double()
    expected = 1 / (1 + torch.exp(-(torch.einsum("c,bchw->bhw", weight, torch.cat(reduced, 1)) + bias)))
    torch.testing.assert_close(network.read(read).double(), expected, rtol=1e-4, atol=1e-5)


def test_boundary_is_at_stride_4_and_images_of_any_size_are_read():
    network = build().eval()
    for stride, size in ((16, (64, 96)), (16, (50, 61))):
        whole = [-(-side // stride) * stride for side in size]
        boundary = network(torch.rand(1, 3, *size))
        finest = network.strides[0]
        assert boundary.shape == (1, whole[0] // finest, whole[1] // finest)
        assert 0 <= float(boundary.detach().min()) <= float(boundary.detach().max()) <= 1


def test_half_precision_levels_are_read_in_single_precision():
    network = build()
    torch.testing.assert_close(
        network.read([level.half() for level in levels()]), network.read(levels()), atol=0.01, rtol=0
    )


def test_only_the_head_is_trained():
    network = build()
    network.read(levels()).sum().backward()
    trained = {name for name, weight in network.named_parameters() if weight.grad is not None}
    assert {name.split(".")[0] for name in trained} == {"branches", "boundary"}
    assert not any(weight.requires_grad for weight in network.pyramid.parameters())
    assert not network.train().backbone.training


def test_standardization_does_not_follow_batches():
    part = LevelStandardization(3).train()
    before = {name: value.clone() for name, value in part.state_dict().items()}
    part(torch.randn(2, 3, 4, 4) + 5)
    for name, value in part.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("width", [0, 6, -4])
def test_widths_that_groups_do_not_divide_are_refused(width):
    with pytest.raises(ArgumentError, match=f"^width={width}: give a multiple of 4"):
        build(width)
