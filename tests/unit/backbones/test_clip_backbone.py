"""Image towers of CLIP in timm: cells in the space of text, class token, GradCAM."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rca_lightning.backbones.build import build_backbone
from rca_lightning.errors import ArgumentError, WeightsError

pytest.importorskip("timm", reason="timm, of the extra timm, is not installed")
MODEL = "vit_xsmall_patch16_clip_224"


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return build_backbone(f"clip:{MODEL}", weights="none").eval()


def unit(count: int, width: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(3)), dim=1)


def layer_norm(values: torch.Tensor, layer: torch.nn.LayerNorm) -> torch.Tensor:
    centred = values - values.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt()
    return scaled * layer.weight.double() + layer.bias.double()


def linear(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return values @ weight.double().T + bias.double()


@torch.no_grad()
def tokens_before_the_last(model, images: torch.Tensor) -> torch.Tensor:
    seen = []
    hook = model.blocks[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(images)
    hook.remove()
    return seen[0].double()


@pytest.mark.parametrize("size", [(64, 96), (50, 33)])
def test_last_map_equals_a_plain_computation_of_maskclip(backbone, size):
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        maps = backbone(images)
    model = backbone.model
    block = model.blocks[-1]
    tokens = tokens_before_the_last(model, backbone._prepared(images))
    width = tokens.shape[2]
    value = linear(
        layer_norm(tokens, block.norm1), block.attn.qkv.weight[2 * width :], block.attn.qkv.bias[2 * width :]
    )
    tokens = tokens + linear(value, block.attn.proj.weight, block.attn.proj.bias)
    hidden = linear(layer_norm(tokens, block.norm2), block.mlp.fc1.weight, block.mlp.fc1.bias)
    tokens = tokens + linear(block.mlp.act(hidden), block.mlp.fc2.weight, block.mlp.fc2.bias)
    cells = linear(layer_norm(tokens, model.norm)[:, 1:], model.head.weight, model.head.bias)
    cells = cells / cells.norm(dim=2, keepdim=True)
    expected = cells.transpose(1, 2).unflatten(2, maps[-1].shape[2:])
    torch.testing.assert_close(maps[-1].double(), expected, atol=1e-5, rtol=0)
    assert maps[-1].shape[1] == backbone.num_features == model.head.out_features
    assert tuple(maps[-1].shape[2:]) == tuple(-(-side // 16) for side in size)


def test_last_maps_are_those_of_forward(backbone):
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        every, last = backbone(images), backbone.last_maps(images, 2)
    assert len(every) == len(backbone.model.blocks)
    assert all(torch.equal(one, other) for one, other in zip(every[-2:], last, strict=True))


def test_training_reaches_every_part_of_the_last_map():
    backbone = build_backbone(f"clip:{MODEL}", weights="none")
    trained = {name: value for name, value in backbone.model.named_parameters() if value.requires_grad}
    assert {"head.weight", "blocks.0.attn.qkv.weight", "patch_embed.proj.weight"} <= set(trained)
    last = backbone(torch.randn(1, 3, 64, 64))[-1]
    gradients = torch.autograd.grad((last * torch.randn_like(last)).sum(), list(trained.values()))
    assert all(bool(gradient.any()) for gradient in gradients)


def test_image_embeddings_are_those_of_timm(backbone):
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = F.normalize(backbone.model(images * backbone._scale + backbone._shift), dim=1)
        torch.testing.assert_close(backbone.image_embeddings(images), expected)


def test_grad_cam_equals_finite_differences(backbone):
    """The weights of the channels are the change of the probability when a channel grows in all patches."""
    backbone = backbone.double()
    images = torch.randn(1, 3, 48, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    width = backbone.num_features
    prompts = unit(5, width).double()
    classes, background = prompts[:3], prompts[3:]
    maps = backbone.grad_cam(images, classes, background, torch.tensor([[1, 0, 1]]), scale=10.0)
    assert tuple(maps.shape) == (1, 3, 3, 4)
    assert not maps[0, 1].any()
    norm = backbone.model.blocks[-1].norm1
    rivals = torch.cat([classes[[0, 2]], background])
    kept = []

    def probability(channel: int | None, step: float) -> torch.Tensor:
        def change(_, __, output):
            kept[:] = [output.detach()]
            if channel is None:
                return output
            moved = output.clone()
            moved[:, 1:, channel] += step
            return moved

        hook = norm.register_forward_hook(change)
        with torch.no_grad():
            embedding = backbone.model(backbone._prepared(images))
        hook.remove()
        # in double precision, where image_embeddings rounds
        return (F.normalize(embedding, dim=1) @ rivals.T * 10.0).softmax(1)[0, :2]

    step, channels = 1e-4, range(0, norm.weight.shape[0], 37)
    probability(None, 0)
    tokens = kept[0][0, 1:]
    analytic = []
    numeric = []
    with torch.enable_grad():
        leaf = []

        def keep(_, __, output):
            leaf.append(output.detach().requires_grad_())
            return leaf[-1]

        hook = norm.register_forward_hook(keep)
        embedding = F.normalize(backbone.model(backbone._prepared(images)), dim=1)
        hook.remove()
        chances = (embedding @ rivals.T * 10.0).softmax(1)[0]
        gradients = [torch.autograd.grad(chances[i], leaf[0], retain_graph=True)[0][0, 1:].mean(0) for i in range(2)]
    for channel in channels:
        difference = (probability(channel, step) - probability(channel, -step)) / (2 * step)
        numeric.append(difference / len(tokens))
        analytic.append(torch.stack([gradient[channel] for gradient in gradients]))
    torch.testing.assert_close(torch.stack(analytic), torch.stack(numeric), atol=1e-9, rtol=1e-4)
    for place, gradient in zip((0, 2), gradients, strict=True):
        expected = (tokens @ gradient).clamp_min(0).reshape(3, 4)
        torch.testing.assert_close(maps[0, place], expected, atol=1e-6, rtol=1e-3)
    backbone.float()


def test_grad_cam_needs_a_background(backbone):
    classes = unit(2, backbone.num_features)
    with pytest.raises(ArgumentError, match="background"):
        backbone.grad_cam(torch.randn(1, 3, 32, 32), classes, classes[:0], torch.ones(1, 2))


def test_weights_need_the_projection(backbone, tmp_path):
    state = backbone.model.state_dict()
    torch.save(state, tmp_path / "whole.pt")
    build_backbone(f"clip:{MODEL}", weights=str(tmp_path / "whole.pt"))
    torch.save({name: value for name, value in state.items() if not name.startswith("head.")}, tmp_path / "part.pt")
    with pytest.raises(WeightsError, match=r"head\.weight"):
        build_backbone(f"clip:{MODEL}", weights=str(tmp_path / "part.pt"))


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "resnet10t"])
def test_networks_without_a_space_of_text_are_refused(model):
    with pytest.raises(ArgumentError, match=f"backbone='clip:{model}'"):
        build_backbone(f"clip:{model}", weights="none")


def test_weights_of_open_clip_give_the_embeddings_of_open_clip(tmp_path, monkeypatch):
    open_clip = pytest.importorskip("open_clip", reason="open_clip, of the extra clip, is not installed")
    vision = {"image_size": 224, "layers": 10, "width": 256, "head_width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1}
    monkeypatch.setitem(
        open_clip.factory._MODEL_CONFIGS, "tiny", {"embed_dim": 512, "vision_cfg": vision, "text_cfg": text}
    )
    network = open_clip.create_model("tiny").eval()
    torch.save(network.state_dict(), tmp_path / "both_towers.pt")
    backbone = build_backbone("clip:vit_xsmall_patch16_clip_224", weights=str(tmp_path / "both_towers.pt")).eval()
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = F.normalize(network.encode_image(images * backbone._scale + backbone._shift), dim=1)
        torch.testing.assert_close(backbone.image_embeddings(images), expected, atol=1e-5, rtol=0)
