"""Object context against loops in float64: regions, relations, which classes are read."""

from __future__ import annotations

import math

import pytest
import torch

from rca_lightning.rca.object_context import ObjectContext

C, L, D, H, W = 5, 3, 4, 2, 3
TAGS = torch.tensor([[1, 0, 1], [0, 1, 0]])


def built(**options) -> ObjectContext:
    torch.manual_seed(0)
    module = ObjectContext(C, key_channels=D, **options)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, C, H, W, generator=generator), 2 * torch.randn(2, L, H, W, generator=generator)


def softmax(logits: list[float]) -> list[float]:
    weights = [math.exp(value - max(logits)) for value in logits]
    return [weight / sum(weights) for weight in weights]


def dot(first: list[float], second: list[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True))


def transform(layers: torch.nn.Sequential, vector: list[float]) -> list[float]:
    """Linear layer, LayerNorm and ReLU, with plain numbers."""
    linear, norm = layers[0], layers[1]
    values = [dot(row, vector) for row in linear.weight.tolist()]
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values) + norm.eps)
    scaled = zip(values, norm.weight.tolist(), norm.bias.tolist(), strict=True)
    return [max(0.0, (value - mean) / deviation * weight + bias) for value, weight, bias in scaled]


def expected(module: ObjectContext, image: torch.Tensor, maps: torch.Tensor, read: list[int]) -> list[list[float]]:
    """Context of each cell of an image that reads the regions of the classes `read`, and the background if any."""
    cells = [image[:, row, column].tolist() for row in range(H) for column in range(W)]
    logits = [maps[label].flatten().tolist() for label in read]
    if module.background:
        logits.append([-max(column) for column in zip(*logits, strict=True)])
    weights = [softmax(row) for row in logits]
    regions = [[sum(w * cell[c] for w, cell in zip(row, cells, strict=True)) for c in range(C)] for row in weights]
    keys = [transform(module.region_key, region) for region in regions]
    values = [transform(module.region_value, region) for region in regions]
    context = []
    for cell in cells:
        query = transform(module.pixel_query, cell)
        relation = softmax([dot(query, key) / math.sqrt(D) for key in keys])
        mixed = [sum(r * value[d] for r, value in zip(relation, values, strict=True)) for d in range(D)]
        context.append(transform(module.output, mixed))
    return context


@pytest.mark.parametrize("tags_only", [False, True])
@pytest.mark.parametrize("background", [False, True])
def test_context_by_loops(background, tags_only):
    module, (features, maps) = built(background=background, tags_only=tags_only), inputs()
    found = module(features, maps, TAGS)
    assert found.shape == (2, D, H, W)
    for image, tagged in enumerate([[0, 2], [1]]):
        read = tagged if tags_only else list(range(L))
        for index, context in enumerate(expected(module, features[image], maps[image], read)):
            assert found[image, :, index // W, index % W].tolist() == pytest.approx(context, abs=1e-4)


def test_unknown_tags_are_the_probable_classes():
    module, (features, maps) = built(tags_only=True), inputs()
    shifted = maps - maps.mean(dim=(2, 3), keepdim=True) + torch.where(TAGS > 0, 0.1, -0.1)[:, :, None, None]
    assert torch.equal(module(features, shifted), module(features, shifted, TAGS))
    assert not torch.allclose(module(features, shifted), module(features, shifted, 1 - TAGS))


def test_maps_of_untagged_classes_change_nothing_if_only_tags_are_read():
    features, maps = inputs()
    other = torch.where((TAGS > 0)[:, :, None, None], maps, maps.flip(3) + 7)
    tagged, everything = built(tags_only=True), built()
    assert torch.equal(tagged(features, maps, TAGS), tagged(features, other, TAGS))
    assert not torch.allclose(everything(features, maps, TAGS), everything(features, other, TAGS))


def test_with_one_tag_only_the_background_tells_cells_apart():
    features, maps = inputs()
    one = torch.tensor([[1, 0, 0], [0, 1, 0]])
    found = built(tags_only=True, background=False)(features, maps, one).flatten(2)
    torch.testing.assert_close(found, found[:, :, :1].expand_as(found))
    found = built(tags_only=True)(features, maps, one).flatten(2)
    assert not torch.allclose(found, found[:, :, :1].expand_as(found))


def test_who_may_read_nothing_gets_the_transform_of_zero():
    module, (features, maps) = built(tags_only=True, background=False), inputs()
    found = module(features, maps, torch.tensor([[0, 0, 0], [1, 0, 0]]))
    nothing = torch.tensor(transform(module.output, [0.0] * D))[:, None, None]
    torch.testing.assert_close(found[0], nothing.expand(D, H, W))
    assert not torch.allclose(found[1], nothing.expand(D, H, W))


def test_without_any_tag_the_whole_image_is_background():
    module, (features, maps) = built(tags_only=True), inputs()
    found = module(features, maps, torch.zeros(2, L))
    region = features[0].flatten(1).mean(dim=1).tolist()
    context = torch.tensor(transform(module.output, transform(module.region_value, region)))[:, None, None]
    torch.testing.assert_close(found[0], context.expand(D, H, W))


def test_context_stays_within_the_image():
    module, (features, maps) = built(), inputs()
    other = features.clone()
    other[1] = 1
    assert torch.equal(module(features, maps)[0], module(other, maps)[0])
