"""Rival contexts against loops over plain numbers, in the states that training meets, and in a training step."""

from __future__ import annotations

import io
import math

import pytest
import torch
from contexts import CoAttention, ContextModule, DoubleAttention, ObjectContext, attend, choose_partners, gather
from rival import RivalModule

from rca_lightning.errors import ArgumentError

C, L, D, H, W = 5, 3, 4, 2, 3
TAGS = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 0]])
BUILDERS = {
    "co_attention": lambda: CoAttention(C, L, key_channels=D, reference_grid=2),
    "double_attention": lambda: DoubleAttention(C, channels=D, descriptors=4),
    "object_context": lambda: ObjectContext(C, key_channels=D),
    "object_context_of_tags": lambda: ObjectContext(C, key_channels=D, tags_only=True, background=False),
}
every_context = pytest.mark.parametrize("name", BUILDERS)


def built(module: ContextModule) -> ContextModule:
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


def inputs(batch: int = 3, height: int = H, width: int = W, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, C, height, width, generator=generator)
    return features, 2 * torch.randn(batch, L, height, width, generator=generator)


def cells(image: torch.Tensor) -> list[list[float]]:
    """The cells of one image `(C, H, W)`, row after row."""
    return [image[:, row, column].tolist() for row in range(image.shape[1]) for column in range(image.shape[2])]


def dot(first: list[float], second: list[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True))


def softmax(logits: list[float]) -> list[float]:
    weights = [math.exp(value - max(logits)) for value in logits]
    return [weight / sum(weights) for weight in weights]


def mean(weights: list[float], vectors: list[list[float]]) -> list[float]:
    return [dot(weights, list(column)) for column in zip(*vectors, strict=True)]


def times(matrix: torch.Tensor, vector: list[float]) -> list[float]:
    return [dot(row, vector) for row in matrix.flatten(1).tolist()]


def transform(layers: torch.nn.Sequential, vector: list[float]) -> list[float]:
    """Linear layer, LayerNorm and ReLU."""
    values, norm = times(layers[0].weight, vector), layers[1]
    center = sum(values) / len(values)
    deviation = math.sqrt(sum((value - center) ** 2 for value in values) / len(values) + norm.eps)
    scaled = zip(values, norm.weight.tolist(), norm.bias.tolist(), strict=True)
    return [max(0.0, (value - center) / deviation * weight + bias) for value, weight, bias in scaled]


def assert_context(context: torch.Tensor, expected: list[list[float]]) -> None:
    """Context `(C, H, W)` of one image against that of each of its cells."""
    for cell, wanted in zip(cells(context), expected, strict=True):
        assert cell == pytest.approx(wanted, abs=1e-4)


def co_attention(module: CoAttention, image: torch.Tensor, source: list[list[float]]) -> list[list[float]]:
    keys = [times(module.key.weight, cell) for cell in source]
    queries = [times(module.query.weight, cell) for cell in cells(image)]
    return [mean(softmax([dot(query, key) / math.sqrt(D) for key in keys]), source) for query in queries]


def test_attention_by_loops_with_rows_that_may_not_be_read():
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (torch.randn(2, n, d, generator=generator) for n, d in ((3, 4), (5, 4), (5, 2)))
    readable = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0]]).bool()
    keys.requires_grad_()
    context = attend(queries, keys, values, readable)
    for query, read in zip(queries[0].tolist(), context[0].tolist(), strict=True):
        weights = softmax([dot(query, keys[0, row].tolist()) / 2 for row in (0, 2, 3)])
        assert read == pytest.approx(mean(weights, values[0, [0, 2, 3]].tolist()), abs=1e-5)
    assert not context[1].any()
    context.square().sum().backward()
    assert torch.isfinite(keys.grad).all()


def test_half_precision_keeps_large_products_and_small_weights():
    rows = 300 * torch.eye(3, 16).half()[None]  # 300 * 300 > 65504, the largest number of float16
    with torch.autocast("cpu", dtype=torch.float16):
        context = attend(rows, rows, torch.eye(3)[None])
        means = gather(torch.zeros(1, 1, 300, 300).half(), torch.ones(1, 2, 300, 300).half())
    torch.testing.assert_close(context[0].float(), torch.eye(3))
    torch.testing.assert_close(means, torch.ones(1, 1, 2), atol=5e-4, rtol=0)


def test_co_attention_in_training_reads_the_partner():
    module, (features, maps) = built(CoAttention(C, L, key_channels=D, reference_grid=2)), inputs()
    context = module(features, maps, TAGS)
    for image, partner in ((0, 2), (1, 1), (2, 0)):  # the one in the middle is alone with its tag
        assert_context(context[image], co_attention(module, features[image], cells(features[partner])))


@pytest.mark.parametrize("size", [1, 2, 5, 16])
def test_partners_share_most_tags_and_among_equals_the_next_is_taken(size: int):
    tags = (torch.rand(size, 6, generator=torch.Generator().manual_seed(size)) < 0.3).float()
    partners = choose_partners(tags).tolist()
    for image in range(size):
        best, most = image, 0
        for other in ((image + step) % size for step in range(1, size)):
            shared = int((tags[image] * tags[other]).sum())
            if shared > most:
                best, most = other, shared
        assert partners[image] == best


def test_store_keeps_an_even_grid_of_the_latest_finite_image_of_each_class():
    module, (features, maps) = built(CoAttention(C, L, key_channels=D, reference_grid=2)), inputs(4, 4, 7)
    features[3] = math.inf
    module(features, maps, torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 1, 1]]))
    assert module.filled.tolist() == [True, True, False]
    for label, image in ((0, 1), (1, 2)):
        grid = [features[image, :, row, column].tolist() for row in (1, 3) for column in (1, 5)]
        assert module.reference[label].tolist() == grid
    before = module.reference.clone()
    module.eval()(*inputs(seed=2), TAGS)
    assert torch.equal(module.reference, before)


@pytest.mark.parametrize("known", [True, False])
def test_co_attention_in_evaluation_reads_the_store_of_the_classes(known: bool):
    module = built(CoAttention(C, L, key_channels=D, reference_grid=2))
    module(*inputs(2), torch.tensor([[1, 0, 0], [0, 1, 0]]))
    images, maps = inputs(3, seed=3)
    tags = torch.tensor([[1, 0, 0], [1, 1, 1], [0, 0, 1]])
    probable = torch.where(tags > 0, 1.0, -1.0)[:, :, None, None].expand(3, L, H, W)
    module.eval()
    context = module(images, maps, tags) if known else module(images, probable)
    first, second = module.reference[0].tolist(), module.reference[1].tolist()
    # Of the last class nothing is stored: it adds nothing to others, and alone it leaves an image to itself.
    for image, source in enumerate([first, first + second, cells(images[2])]):
        assert_context(context[image], co_attention(module, images[image], source))


def test_double_attention_by_loops():
    module, (features, maps) = built(DoubleAttention(C, channels=D, descriptors=4)), inputs()
    context = module(features, maps, TAGS)
    for image in range(3):
        content = [times(module.content.weight, cell) for cell in cells(features[image])]
        gathering = [times(module.gathering.weight, cell) for cell in cells(features[image])]
        descriptors = [mean(softmax([logits[n] for logits in gathering]), content) for n in range(4)]
        shares = [softmax(times(module.distribution.weight, cell)) for cell in cells(features[image])]
        assert_context(context[image], [mean(share, descriptors) for share in shares])


@pytest.mark.parametrize("tags_only", [False, True])
@pytest.mark.parametrize("background", [False, True])
def test_object_context_by_loops(background: bool, tags_only: bool):
    module, (features, maps) = ObjectContext(C, D, tags_only=tags_only, background=background), inputs()
    context = built(module)(features, maps, TAGS)
    for image, tagged in enumerate([[0, 2], [1], [0]]):
        logits = [maps[image, label].flatten().tolist() for label in (tagged if tags_only else range(L))]
        if background:
            logits.append([-max(column) for column in zip(*logits, strict=True)])
        regions = [mean(softmax(row), cells(features[image])) for row in logits]
        keys = [transform(module.region_key, region) for region in regions]
        values = [transform(module.region_value, region) for region in regions]
        expected = []
        for cell in cells(features[image]):
            query = transform(module.pixel_query, cell)
            read = mean(softmax([dot(query, key) / math.sqrt(D) for key in keys]), values)
            expected.append(transform(module.output, read))
        assert_context(context[image], expected)


@pytest.mark.parametrize("tags", [torch.zeros(1, L), torch.tensor([[0, 1, 0]]), None])
@every_context
def test_every_parameter_has_a_finite_gradient_in_the_poorest_step(name: str, tags: torch.Tensor | None):
    context = BUILDERS[name]()
    context(*inputs(1, 1, 1), tags).sum().backward()
    for key, parameter in context.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key


@pytest.mark.parametrize("training", [True, False])
@every_context
def test_any_size_and_half_precision(name: str, training: bool):
    torch.manual_seed(0)
    context = BUILDERS[name]().train(training)
    for size in ((1, 7), (5, 3)):
        features, maps = inputs(3, *size)
        single = context(features, maps, TAGS)
        assert single.shape == (3, context.context_channels, *size)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = context(features.bfloat16(), maps.bfloat16(), TAGS)
        torch.testing.assert_close(half.float(), single, atol=0.1, rtol=0.1)


@every_context
def test_a_checkpoint_alone_predicts_the_same(name: str):
    context, again = built(BUILDERS[name]()), BUILDERS[name]()
    context(*inputs(), TAGS)
    saved = io.BytesIO()
    torch.save(context.state_dict(), saved)
    saved.seek(0)
    again.load_state_dict(torch.load(saved, weights_only=True))
    assert torch.equal(again.eval()(*inputs(seed=7)), context.eval()(*inputs(seed=7)))


@pytest.mark.parametrize("name", ["co_attention", "double_attention", "object_context"])
def test_a_rival_module_trains_a_step(name: str):
    torch.manual_seed(0)
    options = {"backbone": "resnet14", "frozen_batchnorm": False, "contrast": False}
    module = RivalModule(num_classes=L, context=name, **options)
    assert (module.hparams["context"], module.network.aggregation) == (name, None)
    batch = {"image": torch.randn(2, 3, 64, 64), "tags": torch.tensor([[1.0, 0, 1], [1, 0, 0]]), "image_id": ["a", "b"]}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.log = module.log_dict = lambda *args, **kwargs: None  # there is no Trainer
    before = {key: value.clone() for key, value in module.network.context.named_parameters()}
    module.training_step(batch, 0)["loss"].backward()
    optimizer.step()
    for key, value in module.network.context.named_parameters():
        assert not torch.equal(value, before[key]), key


@pytest.mark.parametrize(("argument", "value"), [("beta", 0.0), ("positives", "prototypes")])
def test_a_rival_module_refuses_what_it_has_no_use_for(argument: str, value: object):
    with pytest.raises(ArgumentError, match=argument):
        RivalModule(num_classes=L, backbone="resnet14", context="object_context", **{argument: value})
