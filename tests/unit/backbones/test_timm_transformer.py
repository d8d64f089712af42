"""Transformers of timm: their maps against plain loops, and the files of weights that people publish."""

from __future__ import annotations

import re

import pytest
import torch
from tests.quiet_trainer import quiet_trainer
from tests.unit.backbones.plain_transformer import random_transformer, run_plainly
from torch import nn

from rca_lightning.backbones.base import enlarge_to_whole_cells
from rca_lightning.backbones.build import build_backbone
from rca_lightning.errors import WeightsError
from rca_lightning.modules.rca_module import RCAModule

timm = pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)

PLAIN = ("vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "vit_base_patch16_224", "vit_small_patch8_224")


@pytest.mark.parametrize("name", PLAIN)
@torch.no_grad()
def test_map_of_every_block_equals_plain_loops(name):
    backbone = random_transformer(name).double()
    patch = backbone.output_stride
    images = torch.randn(2, 3, 3 * patch - 5, 4 * patch + 1, dtype=torch.float64)
    maps = backbone(images)
    assert [tuple(one.shape) for one in maps] == [(2, backbone.num_features, 3, 5)] * len(maps)
    assert (backbone.stage_channels, backbone.stage_strides) == ([maps[0].shape[1]] * len(maps), [patch] * len(maps))
    whole = enlarge_to_whole_cells(images, patch)
    expected = run_plainly(backbone.model, whole[1] * backbone._scale + backbone._shift, patch=patch).maps
    for found, plain in zip(maps, expected, strict=True):
        torch.testing.assert_close(found[1], plain, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_last_maps_are_those_of_forward_and_no_others_are_made(monkeypatch):
    backbone = random_transformer("vit_tiny_patch16_224")
    images, every = torch.randn(1, 3, 40, 33), []
    asked = backbone.model.forward_intermediates

    def counted(*args, **options):
        every.append(asked(*args, **options))
        return every[-1]

    monkeypatch.setattr(backbone.model, "forward_intermediates", counted)
    last = backbone.last_maps(images, 2)
    assert [len(maps) for maps in every] == [2]
    for found, expected in zip(last, backbone(images)[-2:], strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@torch.no_grad()
def test_network_reads_as_many_blocks_as_it_is_told():
    module = RCAModule(2, backbone="timm:vit_tiny_patch16_224", weights="none", backbone_mode="frozen")
    assert module.network.features(torch.zeros(1, 3, 32, 48))[0].shape == (1, 192, 2, 3)  # as before there were more
    arguments = {"weights": "none", "backbone_mode": "frozen", "embedding_stages": 3}
    module = RCAModule(2, backbone="timm:vit_tiny_patch16_224", **arguments)
    images = torch.randn(1, 3, 32, 48)
    expected = torch.cat(module.network.backbone(images)[-3:], dim=1)
    torch.testing.assert_close(module.network.features(images)[0], expected, rtol=0, atol=0)


def _saved(path, content):
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
def test_files_of_the_publisher_of_dinov2_serve(name, tmp_path):
    made = random_transformer(name).model
    state = {key: value.clone() for key, value in made.state_dict().items()}
    hub = {**state, "mask_token": torch.zeros(1, 384)}
    if "reg_token" in state:  # there the class token has a position of its own
        own = torch.randn(1, 1, 384)
        hub["register_tokens"] = hub.pop("reg_token")
        hub["cls_token"], hub["pos_embed"] = state["cls_token"] - own, torch.cat([own, state["pos_embed"]], dim=1)
    loaded = build_backbone(f"timm:{name}", weights=_saved(tmp_path / "hub.pth", hub)).model.state_dict()
    for key, value in state.items():
        torch.testing.assert_close(loaded[key], value, msg=key)


@torch.no_grad()
def test_file_in_the_names_of_clip_computes_what_open_clip_does(tmp_path):
    transformer = pytest.importorskip(
        "open_clip.transformer", reason="open_clip is not installed", exc_type=ImportError
    )
    torch.manual_seed(0)
    visual = transformer.VisionTransformer(
        image_size=224, patch_size=16, width=256, layers=10, heads=4, mlp_ratio=4.0, output_dim=64, output_tokens=True
    ).eval()
    state = {f"visual.{key}": value for key, value in visual.state_dict().items()}
    state |= {
        "token_embedding.weight": torch.zeros(3, 2),
        "logit_scale": torch.ones(()),
        "ln_final.bias": torch.ones(2),
    }
    path = _saved(tmp_path / "clip.pt", state)
    backbone = build_backbone("timm:vit_xsmall_patch16_clip_224", weights=path).eval()
    images = torch.randn(2, 3, 224, 224)
    _, expected = visual(images * backbone._scale + backbone._shift)  # (B, HW, D)
    found = backbone(images)[-1].flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_positions_of_another_grid_are_resampled(tmp_path):
    state = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=160).state_dict()
    path = _saved(tmp_path / "deit.pth", {"model": {**state, "head.weight": torch.zeros(3, 192)}})
    loaded = build_backbone("timm:vit_tiny_patch16_224", weights=path).model
    assert loaded.pos_embed.shape == (1, 197, 192)
    torch.testing.assert_close(loaded.pos_embed[:, 0], state["pos_embed"][:, 0])
    torch.testing.assert_close(loaded.blocks[3].mlp.fc1.weight, state["blocks.3.mlp.fc1.weight"])


def test_swin_in_the_names_of_timm_is_not_renamed(tmp_path):
    name = "swin_tiny_patch4_window7_224"
    state = timm.create_model(
        name, num_classes=0
    ).state_dict()  # without a classifier, by which timm knows its own names
    loaded = build_backbone(f"timm:{name}", output_stride=32, weights=_saved(tmp_path / "swin.pth", state)).model
    torch.testing.assert_close(
        loaded.layers[1].downsample.reduction.weight, state["layers.1.downsample.reduction.weight"]
    )
    published = {key.replace("layers.1.downsample", "layers.0.downsample"): value for key, value in state.items()}
    published = {key.replace("layers.2.downsample", "layers.1.downsample"): value for key, value in published.items()}
    published = {key.replace("layers.3.downsample", "layers.2.downsample"): value for key, value in published.items()}
    path = _saved(tmp_path / "published.pth", {"model": {**published, "layers.0.blocks.1.attn_mask": torch.zeros(1)}})
    loaded = build_backbone(f"timm:{name}", output_stride=32, weights=path).model
    for key, value in loaded.state_dict().items():
        torch.testing.assert_close(value, state[key], msg=key)


def test_weights_of_another_transformer_are_named_in_one_error(tmp_path):
    state = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    state["blocks.12.norm1.weight"] = state.pop("blocks.11.norm1.weight")
    path = _saved(tmp_path / "other.pth", state)
    expected = (
        r"VisionTransformer: missing keys \(1\): blocks.11.norm1.weight; surplus keys \(1\): blocks.12.norm1.weight"
    )
    with pytest.raises(WeightsError, match=expected):
        build_backbone("timm:vit_tiny_patch16_224", weights=path)
    broken = _saved(tmp_path / "broken.pth", {"visual.class_embedding": torch.zeros(()), "visual.proj": torch.zeros(3)})
    with pytest.raises(WeightsError, match=r"broken.pth cannot be converted for this network \(IndexError"):
        build_backbone("timm:vit_tiny_patch16_224", weights=broken)


def test_backbone_of_a_checkpoint_is_taken(tmp_path):
    arguments = {"backbone": "timm:vit_tiny_patch16_224", "backbone_mode": "frozen"}
    module = RCAModule(2, weights="none", **arguments)
    nn.init.normal_(module.network.backbone.model.cls_token)
    trainer = quiet_trainer(tmp_path)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    loaded = RCAModule(2, weights=str(tmp_path / "first.ckpt"), **arguments)
    for key, value in module.network.backbone.state_dict().items():
        torch.testing.assert_close(loaded.network.backbone.state_dict()[key], value, msg=key)


def test_files_of_the_publisher_of_dinov3_serve(tmp_path):
    name = "vit_small_patch16_dinov3"
    state = {key: value.clone() for key, value in random_transformer(name).model.state_dict().items()}
    hub = {"mask_token": torch.zeros(1, 384), "rope_embed.periods": torch.ones(16)}
    for key, value in state.items():
        for own, theirs in (("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma"), ("reg_token", "storage_tokens")):
            key = key.replace(own, theirs)
        hub[key] = value
    assert "storage_tokens" in hub
    loaded = build_backbone(f"timm:{name}", weights=_saved(tmp_path / "hub.pth", hub)).model.state_dict()
    for key, value in state.items():
        torch.testing.assert_close(loaded[key], value, msg=key)


def test_files_of_the_publisher_of_convnext_serve(tmp_path):
    torch.manual_seed(0)
    state = timm.create_model("convnext_atto", num_classes=0, conv_mlp=False).state_dict()
    theirs = {}
    for key, value in state.items():
        key = re.sub(r"^stem\.", "downsample_layers.0.", key)
        key = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", key)
        key = re.sub(r"\.blocks\.(\d+)\.", r".\1.", key)
        key = key.replace("conv_dw", "dwconv").replace("mlp.fc1", "pwconv1").replace("mlp.fc2", "pwconv2")
        theirs[key.replace("head.norm", "norm")] = value
    theirs |= {"head.weight": torch.zeros(2, 320), "head.bias": torch.zeros(2)}
    path = _saved(tmp_path / "convnext.pth", {"model": theirs})
    loaded = build_backbone("timm:convnext_atto", output_stride=32, weights=path).model.state_dict()
    for key, value in state.items():
        if not key.startswith("head."):
            torch.testing.assert_close(loaded[key].flatten(), value.flatten(), msg=key)
