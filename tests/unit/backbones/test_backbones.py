"""The feature extractors: sizes, strides, dilation, what is frozen, and real weights on real photographs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from rca_lightning.backbones.build import Backbone, build_backbone
from rca_lightning.errors import ArgumentError

# Counts of torchvision's networks less their classifiers.
PARAMETERS = {
    "resnet18": 11_176_512,
    "resnet34": 21_284_672,
    "resnet50": 23_508_032,
    "resnet101": 42_500_160,
    "vgg16": 14_714_688,
}
WIDTHS = {"resnet18": 512, "resnet34": 512, "resnet50": 2048, "resnet101": 2048, "vgg16": 512, "resnet38d": 4096}
STEM_KEYS = {"conv1.weight", "bn1.weight", "bn1.bias"}


def build_on_meta(name: str, **options: object) -> Backbone:
    with torch.device("meta"):
        return build_backbone(name, **options)


def randomise(network: nn.Module) -> nn.Module:
    """Batch normalisations that do something, so that equal outputs mean equal computations."""
    generator = torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            for tensor in (module.bias.data, module.running_mean):
                tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
    return network.eval()


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_parameter_counts_are_those_of_torchvision(name):
    backbone = build_on_meta(name)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == PARAMETERS[name]


def test_resnet38d_has_the_parameters_its_table_of_widths_adds_up_to():
    wide = [(64, 128, 128), *[(128, 128, 128)] * 2, (128, 256, 256), *[(256, 256, 256)] * 2, (256, 512, 512)]
    wide += [*[(512, 512, 512)] * 5, (512, 512, 1024), *[(1024, 512, 1024)] * 2]
    total = 3 * 64 * 9 + 2 * 4096
    for first, middle, last in wide:
        total += 9 * (first * middle + middle * last) + 2 * (first + middle) + (first * last if first != last else 0)
    for first, last in ((1024, 2048), (2048, 4096)):
        a, b = last // 4, last // 2
        total += first * a + 9 * a * b + b * last + first * last + 2 * (first + a + b)
    assert sum(parameter.numel() for parameter in build_on_meta("resnet38d").parameters()) == total


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 50), (1, 7)])
@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("name", list(WIDTHS))
def test_cells_are_the_image_over_the_stride_rounded_up(name, stride, size):
    backbone = build_on_meta(name, output_stride=stride)
    shapes = [tuple(stage.shape) for stage in backbone(torch.empty(2, 3, *size, device="meta"))]
    expected = zip(backbone.stage_channels, backbone.stage_strides, strict=True)
    whole = [-(-side // stride) * stride for side in size] if name == "vgg16" else size  # it enlarges images
    assert shapes == [(2, width, -(-whole[0] // step), -(-whole[1] // step)) for width, step in expected]
    assert backbone.stage_strides[-1] == stride
    assert (backbone.num_features, backbone.output_stride) == (WIDTHS[name], stride)


@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet18", {}), ("resnet50", {}), ("resnet50", {"stride_in": "1x1"}), ("resnet38d", {})],
    ids=["basic", "bottleneck-3x3", "bottleneck-1x1", "resnet38d"],
)
@pytest.mark.parametrize("size", [(64, 32), (45, 39)])
@torch.no_grad()
def test_dense_network_agrees_with_the_strided_one_at_shared_cells(name, options, size):
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.device("meta"):
        networks = {stride: build_backbone(name, output_stride=stride, **options) for stride in (32, 16, 8)}
    strided = randomise(fill(networks.pop(32)))
    expected = strided(images)[-1]
    assert expected.std() > 0.01
    for stride, dense in networks.items():
        dense.load_state_dict(strided.state_dict(), assign=True)
        step = 32 // stride
        found = dense.eval()(images)[-1]
        torch.testing.assert_close(
            found[..., ::step, ::step], expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())
        )


def fill(network: nn.Module) -> nn.Module:
    """Uniform random weights of He's variance: much quicker than a normal distribution for the widest network."""
    network.to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            bound = (3.0 / (module.in_channels * module.kernel_size[0] ** 2)) ** 0.5
            nn.init.uniform_(module.weight, -bound, bound)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    return network


def test_stride_moves_between_the_convolutions_of_a_bottleneck():
    for stride_in, expected in (("3x3", [(1, 1), (2, 2)]), ("1x1", [(2, 2), (1, 1)])):
        block = build_on_meta("resnet50", output_stride=32, stride_in=stride_in).layer3[0]
        assert [block.conv1.stride, block.conv2.stride] == expected


def test_dilations_of_resnet50_follow_torchvision():
    backbone = build_on_meta("resnet50", output_stride=8)
    found = [[block.conv2.dilation[0] for block in layer] for layer in (backbone.layer3, backbone.layer4)]
    assert found == [[1, 2, 2, 2, 2, 2], [2, 4, 4]]


def test_vgg16_is_the_network_of_oaa_at_stride_8_and_torchvisions_at_32():
    dense, plain = build_on_meta("vgg16", output_stride=8).features, build_on_meta("vgg16", output_stride=32).features
    assert (len(dense), len(plain)) == (30, 31)
    convolutions = [index for index, module in enumerate(plain) if isinstance(module, nn.Conv2d)]
    assert convolutions == [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    assert [dense[index].dilation[0] for index in convolutions] == [1] * 10 + [2] * 3
    assert (dense[23].kernel_size, dense[23].stride) == (3, 1)


def test_vgg16_at_stride_32_computes_what_a_plain_vgg_does():
    backbone = build_backbone("vgg16", output_stride=32).eval()
    expected = images = torch.randn(1, 3, 64, 32)
    weights = iter(backbone.state_dict().values())
    for convolutions in (2, 2, 3, 3, 3):
        for _ in range(convolutions):
            expected = nn.functional.conv2d(expected, next(weights), next(weights), padding=1).relu()
        expected = nn.functional.max_pool2d(expected, 2)
    torch.testing.assert_close(backbone(images)[-1], expected)


def test_key_names_are_those_of_the_published_files():
    resnet = build_on_meta("resnet50").state_dict()
    assert {*STEM_KEYS, "layer1.0.downsample.0.weight", "layer4.2.bn3.running_var"} <= resnet.keys()
    wide = build_on_meta("resnet38d").state_dict()
    names = {"conv1a.weight", "b2.conv_branch1.weight", "b4_5.bn_branch2b1.running_mean", "b7.conv_branch2b2.weight"}
    assert {*names, "b6.bn_branch2b2.bias", "bn7.weight"} <= wide.keys()
    assert "b2_1.conv_branch1.weight" not in wide
    assert "features.28.bias" in build_on_meta("vgg16").state_dict()


def test_frozen_batchnorm_stays_as_it_was_through_training():
    backbone = build_backbone("resnet18")
    before = {key: value.clone() for key, value in backbone.state_dict().items() if "running" in key}
    backbone.train().float()(torch.randn(2, 3, 32, 32))[-1].sum().backward()
    after = backbone.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 20
    assert not any(norm.training or norm.weight.requires_grad or norm.bias.requires_grad for norm in norms)
    assert backbone.training
    assert backbone.conv1.weight.grad is not None


def test_batchnorm_learns_when_it_is_not_frozen():
    backbone = build_backbone("resnet18", frozen_batchnorm=False)
    before = backbone.bn1.running_mean.clone()
    backbone(torch.randn(2, 3, 32, 32))[-1].sum().backward()
    assert not torch.equal(before, backbone.bn1.running_mean)
    assert all(parameter.grad is not None for parameter in backbone.parameters())


@pytest.mark.parametrize("stages", range(6))
def test_frozen_stages_get_no_gradient_and_stay_in_evaluation_mode(stages):
    backbone = build_backbone("resnet18", frozen_batchnorm=False, frozen_stages=stages).eval().train()
    frozen = (("conv1.", "bn1."), "layer1.", "layer2.", "layer3.", "layer4.")[:stages]
    prefixes = tuple(prefix for entry in frozen for prefix in ([entry] if isinstance(entry, str) else entry))
    features = backbone(torch.randn(2, 3, 32, 32))[-1]
    if stages < 5:
        features.sum().backward()
    for key, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == key.startswith(prefixes), key
    for key, module in backbone.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.training != f"{key}.".startswith(prefixes), key


@pytest.mark.parametrize(
    ("name", "stages", "first_trained"),
    [("vgg16", 2, "features.10.weight"), ("resnet38d", 2, "b3.bn_branch2a.weight"), ("resnet38d", 0, "conv1a.weight")],
)
def test_stages_of_the_other_networks(name, stages, first_trained):
    backbone = build_on_meta(name, frozen_stages=stages, frozen_batchnorm=False)
    parameters = list(backbone.named_parameters())
    first = [key for key, _ in parameters].index(first_trained)
    assert [parameter.requires_grad for _, parameter in parameters] == [False] * first + [True] * (
        len(parameters) - first
    )


@pytest.mark.parametrize(
    ("name", "stride"), [("resnet14", 8), ("resnet18", 16), ("resnet50", 8), ("resnet50", 32), ("vgg16", 8)]
)
@torch.no_grad()
def test_borders_look_like_the_middle_of_a_plain_image_unless_they_see_zeros(name, stride):
    images = torch.full((1, 3, 96, 64), 0.7)
    torch.manual_seed(0)
    zeros = randomise(build_backbone(name, output_stride=stride))
    replicated = randomise(build_backbone(name, output_stride=stride, padding_mode="replicate"))
    replicated.load_state_dict(zeros.state_dict())  # same names and shapes
    middle = replicated(images)[-1][:, :, 1:2, 1:2]
    torch.testing.assert_close(replicated(images)[-1], middle.expand_as(zeros(images)[-1]), rtol=1e-3, atol=1e-5)
    spread = zeros(images)[-1].std(dim=(2, 3))
    assert bool((spread > 1e-3 * middle.abs().amax()).any())


def test_cells_far_from_the_border_do_not_depend_on_the_padding():
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    zeros, replicated = (build_backbone("resnet14", padding_mode=mode).eval() for mode in ("zeros", "replicate"))
    replicated.load_state_dict(zeros.state_dict())
    first, second = zeros(images)[0], replicated(images)[0]  # stride 4, 43 pixels are seen
    torch.testing.assert_close(second[..., 6:-6, 6:-6], first[..., 6:-6, 6:-6])
    assert not torch.allclose(second[..., 0, :], first[..., 0, :])


@pytest.mark.parametrize("size", [(1, 7), (16, 16)])
def test_replicated_borders_of_images_of_a_cell(size):
    assert build_backbone("resnet18", padding_mode="replicate")(torch.zeros(2, 3, *size))[-1].shape == (2, 512, 1, 1)


@pytest.mark.parametrize("name", ["vgg16", "resnet38d", "resnet50"])
def test_five_stages_are_the_whole_network(name):
    backbone = build_on_meta(name, frozen_stages=5, frozen_batchnorm=False)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_dropout_of_resnet38d_is_off_in_frozen_stages_only():
    assert build_on_meta("resnet38d").b6.dropout_2b1.training
    assert not build_on_meta("resnet38d", frozen_stages=5).b6.dropout_2b1.training
    assert (build_on_meta("resnet38d").num_features, build_on_meta("resnet38d").b7.dropout_2b2.p) == (4096, 0.5)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (
            {"name": "resnet51"},
            "resnet51.*resnet18, resnet34, resnet50, resnet101, vgg16, resnet38d, timm:<model> or clip:",
        ),
        ({"name": "resnet18", "output_stride": 4}, "output_stride=4"),
        ({"name": "resnet18", "padding_mode": "reflect"}, "padding_mode='reflect'.*zeros.*replicate"),
        ({"name": "resnet50", "stride_in": "5x5"}, "stride_in='5x5'"),
        ({"name": "resnet18", "stride_in": "1x1"}, "stride_in='1x1'.*resnet50 and resnet101"),
        ({"name": "vgg16", "stride_in": "1x1"}, "stride_in='1x1'"),
        ({"name": "resnet18", "frozen_stages": 6}, "frozen_stages=6.*0 .none. to 5"),
        ({"name": "vgg16", "frozen_stages": -1}, "frozen_stages=-1"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, named):
    with torch.device("meta"), pytest.raises(ArgumentError, match=named):
        build_backbone(**arguments)


def test_channels_last_bfloat16_gives_the_same_features_and_gradients():
    torch.manual_seed(0)
    backbone = build_backbone("resnet18")
    images = torch.randn(2, 3, 48, 48)
    expected = backbone(images)[-1]
    with torch.autocast("cpu", torch.bfloat16):
        found = backbone.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))[-1]
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert nn.functional.cosine_similarity(found.float().flatten(), expected.flatten(), dim=0) > 0.99
    found.float().sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("name", ["resnet18", "vgg16"])
def test_compiles_without_a_break(name):
    backbone = build_backbone(name).eval()
    images = torch.randn(1, 3, 33, 47)
    compiled = torch.compile(backbone, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), backbone(images))


@pytest.fixture(scope="module")
def weights_file(shared_root) -> Path:
    path = shared_root / "weights" / "resnet50_v1_imagenet_fp16.pth"
    if not path.is_file():
        pytest.skip("the real weights are not beside this checkout (../shared/weights)")
    return path


def photographs(shared_root: Path, tag: str, count: int) -> torch.Tensor:
    """Photographs of nothing but the tag, squeezed to 224 pixels and normalised: (count, 3, 224, 224)."""
    root = shared_root / "data" / "voc2012_mini"
    lines = [line.split() for line in (root / "image_labels.txt").read_text().splitlines()]
    names = [name for name, *tags in lines if tags == [tag]][:count]
    pictures = []
    for name in names:
        with Image.open(root / "JPEGImages" / f"{name}.jpg") as opened:
            small = opened.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
        pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(224, 224, 3)
        pictures.append(pixels.permute(2, 0, 1).float() / 255)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (torch.stack(pictures) - mean.view(3, 1, 1)) / std.view(3, 1, 1)


@torch.no_grad()
def test_real_weights_recognise_dogs_and_cats(shared_root, weights_file):
    state = torch.load(weights_file, weights_only=True)
    images = torch.cat([photographs(shared_root, "dog", 3), photographs(shared_root, "cat", 3)])
    assert len(images) == 6
    features = {}
    for stride_in in ("1x1", "3x3"):
        with torch.device("meta"):
            backbone = build_backbone("resnet50", output_stride=32, stride_in=stride_in)
        backbone.load_state_dict({k: v.float() for k, v in state.items() if not k.startswith("fc.")}, assign=True)
        features[stride_in] = backbone.eval()(images)[-1]
    logits = nn.functional.linear(
        features["1x1"].mean(dim=(2, 3)), state["fc.weight"].float(), state["fc.bias"].float()
    )
    top = logits.argmax(dim=1)
    right = [*((top[:3] >= 151) & (top[:3] <= 268)), *((top[3:] >= 281) & (top[3:] <= 285))]
    # By chance a dog would be met 118 times in a thousand, a cat 5 times.
    assert sum(right) >= 4
    similarity = nn.functional.cosine_similarity(features["1x1"].flatten(1), features["3x3"].flatten(1))
    assert bool((similarity < 0.99).all())


def test_real_weights_load_by_name_at_another_stride(weights_file):
    backbone = build_backbone("resnet50", output_stride=16, stride_in="1x1", weights=str(weights_file))
    state = torch.load(weights_file, weights_only=True)
    for key in ("conv1.weight", "layer4.2.bn3.running_var", "layer2.0.downsample.0.weight"):
        assert torch.equal(backbone.state_dict()[key], state[key].float())
