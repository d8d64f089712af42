"""Models of timm, through a stand-in for the package and, where it is installed, through timm itself."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from rca_lightning.backbones.build import build_backbone
from rca_lightning.errors import ArgumentError, MissingExtraError, WeightsError


class _Convolutional(nn.Module):
    """A network of stride 32 or 16 with a layer that only its classifier uses."""

    num_features = 6

    def __init__(self, num_classes: int, output_stride: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, output_stride, stride=output_stride)
        self.bn = nn.BatchNorm2d(6)
        self.head = nn.Sequential(nn.LayerNorm(6))

    def forward_features(self, images):
        return self.bn(self.stem(images))


class _Fixed(_Convolutional):
    """A network that cannot be dilated."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)


class _Vision(nn.Module):
    """A transformer whose two blocks change nothing: a token is the mean colour of its patch and its number."""

    num_features = 4
    num_prefix_tokens = 2
    pretrained_cfg: dict = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # noqa: RUF012 - timm's form
    feature_info: list = [{"module": f"blocks.{i}", "reduction": 14} for i in range(2)]  # noqa: RUF012 - timm's form

    def __init__(self, num_classes: int, dynamic_img_size: bool = False) -> None:
        super().__init__()
        assert dynamic_img_size
        self.gain = nn.Parameter(torch.ones(1))
        self.patch_embed = nn.Identity()
        self.patch_embed.patch_size = (14, 14)
        self.blocks = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
        for block in self.blocks:
            nn.init.constant_(block.weight, 1)
            nn.init.zeros_(block.bias)
        self.norm = nn.LayerNorm(4)

    def forward_intermediates(self, images, *, indices, norm, intermediates_only):
        assert norm
        assert intermediates_only
        cells = nn.functional.avg_pool2d(images, 14)
        number = torch.arange(cells[0, 0].numel()).float().view(1, 1, *cells.shape[2:]).expand(len(images), -1, -1, -1)
        features, maps = torch.cat([cells, number], dim=1) * self.gain, []
        for block in self.blocks:
            features = block(features[..., None])[..., 0]
            maps.append(features)
        return maps[-indices:]


class _Staged(_Convolutional):
    """A network of timm that gives its inner stages: mean colours, as far as its output stride allows."""

    feature_info: list = [{"reduction": stride} for stride in (2, 4, 8, 16)]  # noqa: RUF012 - timm's form

    def forward_intermediates(self, images, *, indices):
        inner = [nn.functional.avg_pool2d(images, self.feature_info[index]["reduction"]) for index in indices]
        return self.forward_features(images), inner


class _Activating(_Convolutional):
    """Its normalisation holds the activation, as `BatchNormAct2d` of timm does."""

    class Layer(nn.BatchNorm2d):
        def __init__(self, channels: int) -> None:
            super().__init__(channels)
            self.act = nn.ReLU()

        def forward(self, features):
            return self.act(super().forward(features))

    def __init__(self, num_classes: int, output_stride: int = 32) -> None:
        super().__init__(num_classes, output_stride)
        self.bn = self.Layer(6)


class _Broken(_Convolutional):
    def forward_features(self, images):
        raise AssertionError("only 224 pixels")


class _TokensAlone(_Convolutional):
    def forward_features(self, images):
        return super().forward_features(images).mean(dim=(2, 3))


@pytest.fixture
def fake_timm(monkeypatch):
    models = {
        "conv": _Convolutional,
        "fixed": _Fixed,
        "staged": _Staged,
        "vision": _Vision,
        "activating": _Activating,
        "broken": _Broken,
        "flat": _TokensAlone,
    }
    module = ModuleType("timm")
    module.is_model = models.__contains__
    module.asked = []

    def create_model(name, *, pretrained, **options):
        module.asked.append((name, pretrained, options))
        return models[name](**options)

    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


def test_convolutional_network_is_dilated_and_sees_whole_cells(fake_timm):
    backbone = build_backbone("timm:conv", output_stride=16).eval()
    images = torch.randn(2, 3, 33, 64)
    [found] = backbone(images)
    assert (backbone.num_features, backbone.output_stride, found.shape) == (6, 16, (2, 6, 3, 4))
    enlarged = nn.functional.interpolate(images, size=(48, 64), mode="bilinear")
    torch.testing.assert_close(found, backbone.model.forward_features(enlarged))
    assert all(pretrained is False for _, pretrained, _ in fake_timm.asked)


def test_stages_of_stride_4_and_above_cover_the_image(fake_timm):
    backbone = build_backbone("timm:staged", output_stride=16).eval()
    images = torch.randn(2, 3, 33, 64)
    assert (backbone.stage_channels, backbone.stage_strides) == ([3, 3, 6], [4, 8, 16])
    stages = backbone(images)
    assert [stage.shape for stage in stages] == [(2, 3, 12, 16), (2, 3, 6, 8), (2, 6, 3, 4)]
    enlarged = nn.functional.interpolate(images, size=(48, 64), mode="bilinear")
    torch.testing.assert_close(stages[1], nn.functional.avg_pool2d(enlarged, 8))


def test_layers_of_the_classifier_ask_for_no_gradient(fake_timm):
    backbone = build_backbone("timm:conv", frozen_batchnorm=False)
    assert not any(parameter.requires_grad for parameter in backbone.model.head.parameters())
    backbone(torch.randn(2, 3, 32, 32))[-1].sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters() if parameter.requires_grad)
    assert backbone.model.stem.weight.requires_grad
    assert backbone.training


def test_batchnorm_of_timm_is_frozen(fake_timm):
    backbone = build_backbone("timm:conv").train()
    assert not backbone.model.bn.training
    assert torch.equal(backbone.model.bn.running_mean, torch.zeros(6))


def test_sync_batchnorm_that_would_lose_activations_is_refused(fake_timm):
    backbone = build_backbone("timm:activating", frozen_batchnorm=False).train()
    assert backbone(torch.randn(2, 3, 32, 32))[-1].min().item() == 0
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(backbone)
    with pytest.raises(ArgumentError, match=r"sync_batchnorm=True: leave it out"):
        converted.train()
    nn.SyncBatchNorm.convert_sync_batchnorm(build_backbone("timm:conv")).train()


def test_network_of_one_stride_accepts_that_alone(fake_timm):
    assert build_backbone("timm:fixed", output_stride=32).output_stride == 32
    with pytest.raises(ArgumentError, match=r"output_stride=16.*output stride 32.*give 32"):
        build_backbone("timm:fixed", output_stride=16)


def test_transformer_gives_its_patches_in_place_and_no_other_token(fake_timm):
    backbone = build_backbone("timm:vision", output_stride=16)
    assert (backbone.num_features, backbone.output_stride, backbone.stage_strides) == (4, 14, [14, 14])
    for found in backbone(torch.zeros(2, 3, 28, 40)):
        assert found.shape == (2, 4, 2, 3)
        assert found[1, 3].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert len(backbone.last_maps(torch.zeros(2, 3, 28, 40), 1)) == 1


def test_first_stages_of_a_transformer_are_frozen(fake_timm):
    backbone = build_backbone("timm:vision", frozen_stages=2)
    frozen = {name for name, parameter in backbone.model.named_parameters() if not parameter.requires_grad}
    # The last normalisation has no part in the maps of this one.
    assert frozen == {"gain", "blocks.0.weight", "blocks.0.bias", "norm.weight", "norm.bias"}
    assert [block.training for block in backbone.model.blocks] == [False, True]
    with pytest.raises(ArgumentError, match=r"frozen_stages=4: TimmBackbone accepts a number from 0 \(none\) to 3"):
        build_backbone("timm:vision", frozen_stages=4)


def test_transformer_sees_images_in_its_own_normalisation(fake_timm):
    backbone = build_backbone("timm:vision")
    pixels = torch.tensor([0.1, 0.6, 0.9])
    given = (pixels - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    found = backbone(given.view(1, 3, 1, 1).expand(1, 3, 14, 14))[-1]
    torch.testing.assert_close(found[0, :3, 0, 0], (pixels - 0.5) / 0.5)


def test_weights_use_the_names_of_the_timm_model(fake_timm, tmp_path):
    state = {**_Convolutional(0, 16).state_dict(), "head.fc.weight": torch.ones(2)}
    torch.save(state, tmp_path / "conv.pth")
    backbone = build_backbone("timm:conv", weights=str(tmp_path / "conv.pth"))
    assert torch.equal(backbone.model.stem.weight, state["stem.weight"])
    torch.save({"other": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"does not fit _Convolutional: missing keys \(6\): stem.weight"):
        build_backbone("timm:conv", weights=str(tmp_path / "other.pth"))


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("timm:nothing", {}, "backbone='timm:nothing'.*no model of this name"),
        ("timm:broken", {}, "backbone='timm:broken'.*only 224 pixels"),
        ("timm:flat", {}, "backbone='timm:flat'.*no map"),
        ("timm:conv", {"frozen_stages": 1}, "frozen_stages=1.*accepts 0"),
        ("timm:conv", {"stride_in": "1x1"}, "stride_in='1x1'"),
    ],
)
def test_what_does_not_serve_is_named(fake_timm, name, options, named):
    with pytest.raises(ArgumentError, match=named):
        build_backbone(name, **options)


def test_missing_timm_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"timm:resnet18.*rca-lightning\[timm\]"):
        build_backbone("timm:resnet18")


@pytest.mark.parametrize(
    ("name", "asked", "widths", "strides"),
    [
        ("resnet18", 8, [64, 128, 256, 512], [4, 8, 8, 8]),
        ("resnet18", 16, [64, 128, 256, 512], [4, 8, 16, 16]),
        ("convnext_atto", 16, [40, 80, 160, 320], [4, 8, 16, 16]),
        ("mobilenetv2_050", 16, [16, 16, 48, 1280], [4, 8, 16, 16]),
        ("swin_tiny_patch4_window7_224", 32, [96, 192, 384, 768], [4, 8, 16, 32]),
        ("vit_tiny_patch16_224", 16, [192] * 12, [16] * 12),
        ("vit_tiny_patch16_224", 8, [192] * 12, [16] * 12),
    ],
)
def test_real_timm(name, asked, widths, strides):
    pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)
    backbone = build_backbone(f"timm:{name}", output_stride=asked).eval()
    assert (backbone.stage_channels, backbone.stage_strides) == (widths, strides)
    stages = backbone(torch.randn(1, 3, 65, 97))
    height, width = (-(-side // strides[-1]) * strides[-1] for side in (65, 97))
    expected = [(1, channels, height // s, width // s) for channels, s in zip(widths, strides, strict=True)]
    assert [stage.shape for stage in stages] == expected
    stages[-1].sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("name", "stem", "first", "stages"),
    [
        ("resnet18", "conv1 bn1", "layer1", 5),
        ("convnext_atto", "stem", "stages.0", 5),
        ("swin_tiny_patch4_window7_224", "patch_embed", "layers.0", 5),
        ("mobilenetv2_050", "conv_stem bn1", "blocks.0", 6),
        ("regnetx_002", "stem", "s1", 5),
        ("vit_tiny_patch16_224", "cls_token pos_embed patch_embed", "blocks.0", 13),
        ("vit_small_patch16_dinov3", "cls_token reg_token patch_embed", "blocks.0", 13),
    ],
)
def test_stages_of_real_timm_are_frozen_in_order(name, stem, first, stages):
    pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)
    output_stride = 32 if name.startswith(("swin", "regnet")) else 16
    backbone = build_backbone(f"timm:{name}", output_stride=output_stride, frozen_stages=2, frozen_batchnorm=False)
    assert len(backbone.stages()) == stages
    expected = tuple(f"{part}." for part in [*stem.split(), first])
    frozen = {key for key, value in backbone.model.named_parameters() if not value.requires_grad}
    unused = {key for key in frozen if key.startswith(("head", "fc"))}
    assert frozen - unused == {key for key, _ in backbone.model.named_parameters() if f"{key}.".startswith(expected)}
    backbone(torch.randn(2, 3, 64, 64))[-1].sum().backward()
    for key, value in backbone.model.named_parameters():
        assert (value.grad is None) == (key in frozen), key
    assert not backbone.model.get_submodule(first).training
    assert backbone.training
    backbone.freeze(stages=stages)
    assert not any(value.requires_grad for value in backbone.parameters())


@pytest.mark.parametrize(
    "name",
    ["resnet18", "convnext_atto", "mobilenetv2_050", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"],
)
@torch.no_grad()
def test_last_stage_of_real_timm_is_forward_features(name):
    pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)
    backbone = build_backbone(f"timm:{name}", output_stride=32 if name.startswith("swin") else 16).eval()
    images = torch.randn(1, 3, 32, 64)
    expected = backbone.model.forward_features(images * backbone._scale + backbone._shift)
    if expected.shape[-1] == 768:  # (B, H, W, D) -> (B, D, H, W)
        expected = expected.permute(0, 3, 1, 2)
    if expected.ndim == 3:  # (B, 1 + HW, D) -> (B, D, H, W)
        expected = expected[:, 1:].transpose(1, 2).reshape(1, -1, 2, 4)
    torch.testing.assert_close(backbone(images)[-1], expected)


def test_real_timm_resnet_computes_what_the_resnet_of_this_library_does(tmp_path):
    timm = pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)
    torch.save(timm.create_model("resnet50", num_classes=3).state_dict(), tmp_path / "resnet50.pth")
    images = torch.randn(1, 3, 64, 32)
    options = {"output_stride": 8, "weights": str(tmp_path / "resnet50.pth")}
    expected = build_backbone("resnet50", **options).eval()(images)[-1]
    torch.testing.assert_close(
        build_backbone("timm:resnet50", **options).eval()(images)[-1], expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["conv", "vision"])
def test_network_can_be_tried_without_memory(fake_timm, name):
    with torch.device("meta"):
        found = build_backbone(f"timm:{name}", output_stride=16)
    assert {value.device.type for value in found.state_dict().values()} == {"meta"}
