"""Every backbone with every head: sizes, what is frozen, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rca_lightning.backbones.base import Backbone
from rca_lightning.backbones.build import build_backbone
from rca_lightning.errors import ArgumentError
from rca_lightning.segmentation.heads import DeepLabV2Head, DeepLabV3PlusHead
from rca_lightning.segmentation.network import SegmentationNetwork, weigh_by_tags

LABELS = 4
# Channels of the stage with cells of 4 pixels.
LOW_LEVEL = {"resnet14": 32, "resnet18": 64, "resnet34": 64, "resnet50": 256, "vgg16": 128, "resnet38d": 256}


def build(backbone: str, head: str, **options: object) -> SegmentationNetwork:
    torch.manual_seed(0)
    own = {name: bool(options.pop(name, False)) for name in ("channels_last", "tag_head")}
    return SegmentationNetwork(build_backbone(backbone, **options), head, LABELS, **own)


@pytest.mark.parametrize("head", ["linear", "deeplabv2"])
@pytest.mark.parametrize("name", ["resnet14", "resnet50", "vgg16"])
def test_draws_at_the_output_stride(name, head):
    network = build(name, head, output_stride=16).eval()
    with torch.no_grad():
        assert network(torch.randn(2, 3, 50, 33)).shape == (2, LABELS, 4, 3)


@pytest.mark.parametrize("name", list(LOW_LEVEL))
def test_v3plus_draws_at_a_quarter_of_the_image(name):
    with torch.device("meta"):  # shapes only: ResNet-38d takes seconds to compute
        network = build(name, "deeplabv3plus", output_stride=16).eval()
        assert network.head.low[0].in_channels == LOW_LEVEL[name]
        cells = (16, 12) if name == "vgg16" else (13, 9)  # it enlarges images to 64 x 48 pixels
        assert network(torch.zeros(1, 3, 50, 33)).shape == (1, LABELS, *cells)


@pytest.mark.parametrize(
    ("head", "stride", "rates"),
    [
        ("deeplabv2", 8, [6, 12, 18, 24]),
        ("deeplabv2", 16, [3, 6, 9, 12]),
        ("deeplabv3plus", 8, [12, 24, 36]),
        ("deeplabv3plus", 16, [6, 12, 18]),
        ("deeplabv3plus", 32, [3, 6, 9]),
    ],
)
def test_dilations_reach_as_many_pixels_at_every_stride(head, stride, rates):
    made = build("resnet18", head, output_stride=stride).head
    if isinstance(made, DeepLabV2Head):
        assert [classifier.dilation[0] for classifier in made.classifiers] == rates
    else:
        assert isinstance(made, DeepLabV3PlusHead)
        assert [branch[0].dilation[0] for branch in made.branches[1:]] == rates


@pytest.mark.parametrize("head", ["linear", "deeplabv2", "deeplabv3plus"])
def test_one_image_trains_every_parameter_that_is_not_frozen(head):
    network = build("resnet14", head, frozen_stages=2).train()
    network(torch.randn(1, 3, 32, 32)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    assert any(name.startswith("backbone.layer1.") for name in frozen)
    assert not any(name.startswith("head.") for name in frozen)


def test_looking_for_the_early_stage_leaves_the_backbone_as_it_was():
    backbone = build_backbone("resnet14", frozen_batchnorm=False)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    SegmentationNetwork(backbone, "deeplabv3plus", LABELS)
    assert backbone.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_channels_last_computes_the_same():
    images = torch.randn(1, 3, 32, 32)
    outputs = []
    for channels_last in (False, True):
        network = build("resnet14", "deeplabv3plus", channels_last=channels_last).eval()
        weight = network.backbone.conv1.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
        outputs.append(network(images))
    torch.testing.assert_close(*outputs, atol=1e-4, rtol=1e-3)


class Unknown(Backbone):
    """A network without known stages."""

    output_stride = 16

    def __init__(self) -> None:
        super().__init__()
        self.stage_channels, self.stage_strides = [8], [16]
        self.convolution = nn.Conv2d(3, 8, 16, stride=16)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [self.convolution(images)]

    def stages(self) -> list[list[nn.Module]]:
        return []


def test_v3plus_refuses_a_backbone_without_stages_and_v2_takes_it():
    with pytest.raises(ArgumentError, match=r"head='deeplabv3plus': Unknown has no .*'deeplabv2'"):
        SegmentationNetwork(Unknown(), "deeplabv3plus", LABELS)
    assert SegmentationNetwork(Unknown(), "deeplabv2", LABELS)(torch.zeros(1, 3, 32, 48)).shape == (1, LABELS, 2, 3)


def test_unknown_head_is_refused():
    with pytest.raises(ArgumentError, match=r"head='fcn': give one of linear, deeplabv2, deeplabv3plus"):
        SegmentationNetwork(Unknown(), "fcn", LABELS)


def test_probability_of_a_class_is_weighed_with_that_of_its_tag():
    torch.manual_seed(0)
    logits, tag_logits = torch.randn(2, LABELS, 3, 2).double(), 3 * torch.randn(2, LABELS - 1).double()
    found = weigh_by_tags(logits, tag_logits).softmax(1)
    weighed = logits.softmax(1)
    for image in range(2):
        for label in range(1, LABELS):
            weighed[image, label] *= 1 / (1 + torch.exp(-tag_logits[image, label - 1]))
    torch.testing.assert_close(found, weighed / weighed.sum(1, keepdim=True))


def test_an_impossible_tag_leaves_the_others_finite():
    found = weigh_by_tags(torch.zeros(1, 3, 1, 1), torch.tensor([[-1e4, 1e4]]))
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.softmax(1).flatten(), torch.tensor([0.5, 0.0, 0.5]))


@pytest.mark.parametrize("head", ["linear", "deeplabv3plus"])
def test_tag_head_reads_the_same_features_and_weighs_what_is_drawn(head):
    network = build("resnet14", head, output_stride=16, tag_head=True).eval()
    images = torch.randn(2, 3, 48, 32)
    with torch.no_grad():
        logits, maps = network.branches(images)
        assert maps.shape == (2, LABELS - 1, 3, 2)
        torch.testing.assert_close(maps, network.tag_head(network.backbone(images)[-1]))
        torch.testing.assert_close(network(images), weigh_by_tags(logits, maps.mean((2, 3))))
        without = build("resnet14", head, output_stride=16).eval()
        without.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("tag_head.")})
        torch.testing.assert_close(without(images), logits)
        assert without.branches(images)[1] is None
