"""The network wired by hand: which features meet which head, and how maps are read."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rca_lightning.backbones.base import Backbone
from rca_lightning.backbones.build import build_backbone
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.rca.aggregation import SemanticAggregation
from rca_lightning.rca.network import ActivationMaps, RCANetwork
from rca_lightning.rca.projection import Moments

C, L, K = 6, 3, 2


class TinyBackbone(Backbone):
    output_stride = 2

    def __init__(self) -> None:
        super().__init__()
        self.stage_channels, self.stage_strides = [C], [2]
        self.conv = nn.Conv2d(3, C, 2, stride=2)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [self.conv(images).relu()]

    def stages(self) -> list[list[nn.Module]]:
        return []


def build(dim: int | None = None, *, prototypes: bool = True, background: int = 1, **options) -> RCANetwork:
    torch.manual_seed(0)
    reader = SemanticAggregation(dim or C, L, K, temperature=0.1, background_prototypes=background)
    if prototypes:
        total = L * K + background
        reader.write(F.normalize(torch.rand(total, dim or C), dim=1), torch.ones(total, dtype=torch.bool))
    options = {"attention_classes": "all", **options}
    network = RCANetwork(TinyBackbone(), L, embedding_dim=dim, aggregation=reader, **options)
    for head in (network.coarse_head, network.refined_head):
        if head is not None:
            nn.init.normal_(head.conv.weight)
            if head.conv.bias is not None:
                nn.init.normal_(head.conv.bias)
    if network.pca is not None:
        moments = Moments(C)
        moments.add(network.backbone(images(8))[0].detach().permute(0, 2, 3, 1).reshape(-1, C))
        network.pca.learn(moments)
    return network


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 8, 6, generator=torch.Generator().manual_seed(5))


def standardised(network: RCANetwork, features: torch.Tensor) -> torch.Tensor:
    stored = network.standardization
    mean, variance = (value[None, :, None, None] for value in (stored.running_mean, stored.running_var))
    return (features - mean) / (variance + stored.eps).sqrt()


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("dim", [None, 4])
def test_refined_head_reads_context_at_the_length_of_the_pixel_then_features(dim, standardize):
    network = build(dim, standardize=standardize)
    network(images())  # a training step, so that there are statistics
    network.eval()
    maps, features = network(images()), network.backbone(images())[-1]
    embeddings = features
    if dim:
        embeddings = torch.einsum("dc,bchw->bdhw", network.projection.weight[:, :, 0, 0], features)
    if standardize:
        embeddings = standardised(network, embeddings)
    torch.testing.assert_close(maps.embeddings, embeddings)
    torch.testing.assert_close(maps.coarse, network.coarse_head(features))
    read = network.aggregation(embeddings)
    weight = network.refined_head.conv.weight.detach()[:, :, 0, 0]
    assert weight.shape == (L, C + (dim or C))
    for row in range(4):
        for column in range(3):
            length = embeddings[0, :, row, column].square().sum().sqrt()
            stacked = torch.cat([read.context[0, :, row, column] * length, features[0, :, row, column]]).tolist()
            for label in range(L):
                expected = sum(w * v for w, v in zip(weight[label].tolist(), stacked, strict=True))
                assert maps.refined[0, label, row, column].item() == pytest.approx(expected, abs=1e-4)
    torch.testing.assert_close(maps.attention, read.class_attention[:, :L])


@pytest.mark.parametrize("projection", ["learned", "pca"])
@pytest.mark.parametrize("second_head", [True, False])
@pytest.mark.parametrize("tags", [None, torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])])
@pytest.mark.parametrize("attention_classes", ["all", "tags"])
def test_fused_network_computes_the_maps_and_gradients_of_the_equations(
    projection, second_head, tags, attention_classes
):
    options = {"second_head": second_head, "attention_classes": attention_classes, "projection": projection}
    plain, fused = (build(4, fused=fused, **options) for fused in (False, True))
    fused.load_state_dict(plain.state_dict())
    gradients = []
    for network in (plain, fused):
        maps = network(images(), tags)
        shown = [one for one in (maps.coarse, maps.refined, maps.attention) if one is not None]
        torch.stack([one.sin().mean() for one in shown]).sum().backward()
        gradients.append({name: weight.grad for name, weight in network.named_parameters()})
    for name in ("coarse", "refined", "attention"):
        one, other = (getattr(network(images(), tags), name) for network in (plain, fused))
        assert (one is None) == (other is None) == (name == "refined" and not second_head)
        if one is not None:
            torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)


def test_pca_is_read_by_memory_and_heads_alike():
    network = build(4, projection="pca").eval()
    (projected,) = network.stages(images())
    features = network.backbone(images())[-1]
    expected = torch.einsum("dc,bchw->bdhw", network.pca.weight, features) + network.pca.bias[:, None, None]
    torch.testing.assert_close(projected, expected, atol=1e-5, rtol=1e-4)
    maps = network.read([projected])
    assert torch.equal(maps.embeddings, projected)
    head = network.coarse_head.conv
    coarse = torch.einsum("lc,bchw->blhw", head.weight[:, :, 0, 0], projected) + head.bias[:, None, None]
    torch.testing.assert_close(maps.coarse, coarse, atol=1e-5, rtol=1e-4)
    assert network.standardization is None
    assert network.prototype_scores(network.aggregation.by_class()[0]).shape == (L, K)


def test_library_runs_the_fused_path_and_a_network_by_hand_the_equations():
    assert not build().fused
    assert RCAModule(num_classes=2, backbone="resnet14").network.fused


class Context(nn.Module):
    """The mean of the image for every pixel."""

    context_channels = C

    def forward(self, features, coarse, tags):
        assert not coarse.requires_grad
        return features.mean(dim=(2, 3), keepdim=True).expand_as(features)


def test_second_head_reads_another_context_in_place_of_prototypes():
    torch.manual_seed(0)
    network = RCANetwork(TinyBackbone(), L, context=Context()).eval()
    maps, features = network(images()), network.backbone(images())[-1]
    stacked = torch.cat([features.mean(dim=(2, 3), keepdim=True).expand_as(features), features], dim=1)
    torch.testing.assert_close(maps.refined, network.refined_head(stacked))
    assert maps.attention is None


def test_embeddings_in_training_have_mean_0_and_variance_1_in_every_channel():
    embeddings = build()(images(4)).embeddings.detach().double()
    for channel in range(C):
        values = embeddings[:, channel].flatten().tolist()
        mean = sum(values) / len(values)
        assert mean == pytest.approx(0, abs=1e-5)
        assert sum((value - mean) ** 2 for value in values) / len(values) == pytest.approx(1, abs=1e-2)


def test_without_aggregation_it_is_a_plain_cam():
    network = RCANetwork(TinyBackbone(), L)
    maps = network(images())
    assert (maps.refined, maps.attention) == (None, None)
    for name in ("coarse", "refined", "attention", "mean"):
        assert torch.equal(maps.final_cam(name), maps.coarse.clamp_min(0))
    assert {name.split(".")[0] for name, _ in network.named_parameters()} == {"backbone", "coarse_head"}


def test_without_second_head_the_attention_stays_as_it_is():
    whole, lean = (
        build(4, attention_classes="tags").eval(),
        build(4, attention_classes="tags", second_head=False).eval(),
    )
    left = whole.load_state_dict(lean.state_dict(), strict=False)
    assert left.missing_keys == ["refined_head.conv.weight"]
    tags = torch.tensor([[1, 0, 0], [0, 1, 1]])
    maps, expected = lean(images(), tags), whole(images(), tags)
    torch.testing.assert_close(maps.attention, expected.attention)
    assert maps.refined is None
    torch.testing.assert_close(maps.final_cam("attention"), expected.attention)
    assert torch.equal(maps.final_cam("coarse"), maps.coarse.clamp_min(0))
    maps = lean.train()(images(), tags)
    (maps.coarse.mean() + maps.embeddings.sum() * 0).backward()
    assert all(parameter.grad is not None for parameter in lean.parameters())


def test_all_parameters_get_a_gradient_before_the_first_clustering():
    network = build(4, prototypes=False)
    maps = network(images())
    (maps.coarse.mean() + maps.refined.mean() + maps.embeddings.sum() * 0).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_tags_restrict_attention_only_if_asked():
    tags = torch.tensor([[1, 0, 0], [0, 1, 1]])
    everything, tagged = build(), build(attention_classes="tags")
    assert torch.equal(everything(images(), tags).refined, everything(images()).refined)
    attention = tagged(images(), tags).attention
    assert not attention[0, 1:].any()
    assert not attention[1, 0].any()
    assert (attention[1, 1:] > 0).all()


def test_unknown_tags_are_those_the_image_probably_has():
    network = build(attention_classes="tags")
    with torch.no_grad():  # features are positive: the signs decide
        network.coarse_head.conv.weight.abs_()
        network.coarse_head.conv.weight[1] *= -1
    probable = network(images()).coarse.mean(dim=(2, 3)).sigmoid() > 0.5
    assert probable.tolist() == [[True, False, True]] * 2
    assert torch.equal(network(images()).refined, network(images(), probable).refined)


def example_maps() -> ActivationMaps:
    generator = torch.Generator().manual_seed(2)
    return ActivationMaps(
        embeddings=torch.zeros(1, C, 2, 3),
        coarse=torch.randn(1, L, 2, 3, generator=generator),
        refined=torch.randn(1, L, 2, 3, generator=generator).bfloat16(),
        attention=torch.rand(1, L, 2, 3, generator=generator),
    )


def test_read_gives_the_named_map_without_negative_values():
    maps = example_maps()
    assert torch.equal(maps.final_cam("coarse"), maps.coarse.clamp_min(0))
    assert torch.equal(maps.final_cam("refined"), maps.refined.float().clamp_min(0))
    assert torch.equal(maps.final_cam("attention"), maps.attention)
    assert {maps.final_cam(name).dtype for name in ("coarse", "refined", "mean", "attention")} == {torch.float32}


def test_mean_gives_both_maps_one_vote():
    maps = example_maps()
    maps.refined *= 100
    found = maps.final_cam("mean")
    for label in range(L):
        first, second = maps.coarse[0, label].clamp_min(0), maps.refined[0, label].float().clamp_min(0)
        expected = (first / first.max() + second / second.max()) / 2
        torch.testing.assert_close(found[0, label], expected)


def test_channels_last_gives_the_same_maps():
    torch.manual_seed(0)
    plain = RCANetwork(build_backbone("resnet18"), 3).eval()
    last = RCANetwork(build_backbone("resnet18"), 3, channels_last=True).eval()
    last.load_state_dict(plain.state_dict())
    photos = torch.randn(2, 3, 48, 40)
    found = last(photos)
    assert found.embeddings.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.coarse, plain(photos).coarse, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prototypes_are_scored_by_a_head_of_any_precision(dtype):
    network = build()
    prototypes = F.normalize(torch.randn(L, K, C, generator=torch.Generator().manual_seed(0)), dim=2)
    expected = network.prototype_scores(prototypes)
    found = network.to(dtype).prototype_scores(prototypes)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)
