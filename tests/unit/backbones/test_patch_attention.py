"""Affinity of the cells of an image by the attention of a transformer, against plain loops."""

from __future__ import annotations

import pytest
import torch
from tests.unit.backbones.plain_transformer import (
    plain_attention_affinity,
    plain_key_affinity,
    random_transformer,
    run_plainly,
)

from rca_lightning.backbones import attention
from rca_lightning.backbones.base import enlarge_to_whole_cells
from rca_lightning.backbones.build import build_backbone
from rca_lightning.errors import ArgumentError


def test_backbone_without_attention_says_which_have_one():
    backbone = build_backbone("resnet14", weights="none")
    with pytest.raises(ArgumentError, match=r"backbone='ResNet': it has no attention.*timm:vit_small_patch14_dinov2"):
        backbone.affinity(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ArgumentError, match=r"backbone='ResNet': it has no attention"):
        backbone.maps_and_relation(torch.zeros(1, 3, 32, 32), 1, "keys")


@pytest.mark.parametrize("sinkhorn", [0, 3])
def test_normalised_affinity_is_that_of_loops_whatever_the_block(monkeypatch, sinkhorn):
    given = torch.rand(2, 7, 7, dtype=torch.float64) + 0.1
    expected = given.clone()
    for one in expected:
        for row in one:
            row /= row.sum()
        for _ in range(sinkhorn):
            for column in range(7):
                one[:, column] /= one[:, column].sum()
            for row in one:
                row /= row.sum()
    expected = (expected + expected.transpose(1, 2)) / 2
    monkeypatch.setattr(attention, "BLOCK_BYTES", 2 * 4 * 3**2)  # tiles of 3
    found = attention.normalise_affinity(given, sinkhorn=sinkhorn)
    torch.testing.assert_close(found, expected)
    assert torch.equal(found, found.transpose(1, 2))
    if sinkhorn:
        torch.testing.assert_close(found.sum(dim=1), torch.ones(2, 7, dtype=torch.float64), rtol=0, atol=0.02)


class TestOfTimm:
    """With the package."""

    @pytest.fixture(autouse=True)
    def timm(self):
        return pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)

    @pytest.mark.parametrize(
        "name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "vit_base_patch16_224"]
    )
    @torch.no_grad()
    def test_affinity_equals_plain_loops(self, name, monkeypatch):
        monkeypatch.setattr(attention, "BLOCK_BYTES", 2**13)  # a few rows, and some in the last block
        backbone = random_transformer(name)
        patch = backbone.output_stride
        images = torch.randn(2, 3, 3 * patch - 5, 4 * patch + 1)
        whole = enlarge_to_whole_cells(images, patch)
        run = run_plainly(backbone.model, whole[1] * backbone._scale + backbone._shift, patch=patch)
        for options in ({}, {"layers": 1}, {"layers": 3, "sinkhorn": 2}):
            found = backbone.affinity(images, **options)
            assert found.shape == (2, 15, 15)
            plain = plain_attention_affinity(run, layers=options.get("layers", 8), sinkhorn=options.get("sinkhorn", 0))
            torch.testing.assert_close(found[1].double(), plain, rtol=1e-5, atol=1e-5)
            assert plain.std() > 0.003  # not even
        found = backbone.affinity(images, kind="keys")
        torch.testing.assert_close(found[1].double(), plain_key_affinity(run), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("kind", ["attention", "keys"])
    @torch.no_grad()
    def test_relation_comes_with_the_maps_of_one_pass(self, kind):
        backbone = random_transformer("vit_tiny_patch16_224")
        images, passes = torch.randn(2, 3, 40, 60), []
        backbone.model.patch_embed.register_forward_hook(lambda *_: passes.append(1))
        maps, relation = backbone.maps_and_relation(images, 2, kind)
        assert len(passes) == 1
        assert relation.shape == (2, 12 if kind == "attention" else 192, 3, 4)
        for found, expected in zip(maps, backbone.last_maps(images, 2), strict=True):
            assert torch.equal(found, expected)
        affinity = backbone.affinity(images, kind=kind)
        if kind == "attention":
            torch.testing.assert_close(relation.flatten(2) / 12, affinity)
        else:
            directions = torch.nn.functional.normalize(relation.flatten(2), dim=1)
            torch.testing.assert_close((directions.transpose(1, 2) @ directions).clamp(min=0), affinity)
        assert not any(layer._forward_pre_hooks for layer in backbone.modules())

    @pytest.mark.parametrize(
        "name",
        [
            "vit_tiny_patch16_224",
            "eva02_tiny_patch14_224",  # rotary embeddings, keys without a bias
            "vit_small_patch16_dinov3",  # registers, rotary embeddings of halves
            "vit_small_patch16_rope_mixed_224",  # rotary embeddings of each block
            "vit_base_patch16_siglip_224",  # no class token
        ],
    )
    @torch.no_grad()
    def test_scores_are_those_of_the_layer_itself(self, name):
        """Values that tell the number of their token come out as the rows of its attention."""
        torch.manual_seed(0)
        backbone = build_backbone(f"timm:{name}", weights="none").eval()
        layers = attention.attention_layers(backbone.model, name)
        layer, seen = layers[3], []
        layer.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args[0], kwargs)), with_kwargs=True)
        backbone(torch.randn(1, 3, 3 * backbone.output_stride, 2 * backbone.output_stride))
        tokens, kwargs = seen[0]
        query, key = attention.queries_and_keys(layer, tokens, kwargs.get("rope"))
        scores = (query * layer.scale @ key.transpose(2, 3)).softmax(dim=3)
        value_weight = layer.v_proj if layer.qkv is None else layer.qkv
        value = value_weight(tokens)[..., -query.shape[1] * query.shape[3] :]
        if getattr(layer, "v_bias", None) is not None:
            value = value + layer.v_bias
        value = value.unflatten(2, (query.shape[1], -1)).transpose(1, 2)
        expected = layer.proj(layer.norm((scores @ value).transpose(1, 2).flatten(2)))
        torch.testing.assert_close(layer(tokens, **kwargs), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "convnext_atto"])
    def test_models_without_attention_between_cells_are_refused(self, name):
        backbone = build_backbone(f"timm:{name}", output_stride=32, weights="none")
        with pytest.raises(ArgumentError, match=f"backbone='timm:{name}': it has no attention between cells"):
            backbone.affinity(torch.zeros(1, 3, 32, 32))

    def test_attention_of_an_unknown_class_is_refused(self):
        backbone = build_backbone("timm:vit_tiny_patch16_224", weights="none")

        class Other(type(backbone.model.blocks[0].attn)):
            """Adds something to the scores."""

        backbone.model.blocks[5].attn.__class__ = Other
        with pytest.raises(ArgumentError, match=r"tiny_patch16_224': the scores of its attention .*Other\) are not"):
            backbone.check_affinity()

    @pytest.mark.parametrize(
        ("options", "named"),
        [({"layers": 13}, "layers=13.*1 to 12"), ({"layers": 0}, "layers=0"), ({"sinkhorn": -1}, "sinkhorn=-1")],
    )
    def test_numbers_out_of_range_are_refused(self, options, named):
        with pytest.raises(ArgumentError, match=named):
            build_backbone("timm:vit_tiny_patch16_224").affinity(torch.zeros(1, 3, 32, 32), **options)
