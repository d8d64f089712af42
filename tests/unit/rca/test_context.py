"""What the context modules share: attention and weighted means against loops in float64, the builder, training."""

from __future__ import annotations

import io
import math

import pytest
import torch

from rca_lightning.errors import ArgumentError
from rca_lightning.rca.co_attention import CoAttention
from rca_lightning.rca.context import attend, build_context, gather, present_classes
from rca_lightning.rca.double_attention import DoubleAttention
from rca_lightning.rca.object_context import ObjectContext

C, L, D = 12, 3, 4
NAMES = ("co_attention", "double_attention", "object_context")
TAGS = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 0, 0]])


def built(name: str, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_context(name, C, L, key_channels=D, reference_grid=2, **options)


def inputs(batch: int = 3, height: int = 5, width: int = 3, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = 2 * torch.randn(batch, C, height, width, generator=generator).relu()
    return features, torch.randn(batch, L, height, width, generator=generator)


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(value - top) for value in logits]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("masked", [False, True])
def test_attend_by_loops(masked):
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (torch.randn(2, n, d, generator=generator) for n, d in ((3, 4), (5, 4), (5, 2)))
    readable = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 1, 0]]).bool() if masked else None
    found = attend(queries, keys, values, readable)
    for image in range(2):
        open_rows = [row for row in range(5) if readable is None or readable[image, row]]
        for query in range(3):
            logits = [
                sum(a * b for a, b in zip(queries[image, query].tolist(), keys[image, row].tolist(), strict=True)) / 2
                for row in open_rows
            ]
            weights = softmax(logits)
            for channel in range(2):
                expected = sum(
                    w * values[image, row, channel].item() for w, row in zip(weights, open_rows, strict=True)
                )
                assert found[image, query, channel].item() == pytest.approx(expected, abs=1e-5)


def test_who_may_read_nothing_gets_zero_and_finite_gradients():
    keys = torch.randn(2, 5, 4, requires_grad=True)
    readable = torch.tensor([[False] * 5, [True] * 5])
    found = attend(torch.randn(2, 3, 4), keys, torch.ones(2, 5, 2), readable)
    assert not found[0].any()
    torch.testing.assert_close(found[1], torch.ones(3, 2))
    found.square().sum().backward()
    assert torch.isfinite(keys.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attend_survives_products_that_half_precision_cannot_hold(dtype):
    rows = 300 * torch.eye(3, 16).to(dtype)[None]  # 300 * 300 > 65504, the largest number of float16
    with torch.autocast("cpu", dtype=dtype):
        found = attend(rows, rows, torch.eye(3)[None])
    torch.testing.assert_close(found[0].float(), torch.eye(3))


def test_gather_by_loops():
    features, maps = inputs(batch=2)
    found = gather(maps, features)
    assert found.shape == (2, L, C)
    for image in range(2):
        for row in range(L):
            weights = softmax(maps[image, row].flatten().tolist())
            for channel in range(C):
                cells = features[image, channel].flatten().tolist()
                expected = sum(w * v for w, v in zip(weights, cells, strict=True))
                assert found[image, row, channel].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gather_keeps_small_weights_in_half_precision(dtype):
    # Each of 300 x 300 equal weights is 1.1e-5: both half precisions store it with an error of 2 per mille.
    with torch.autocast("cpu", dtype=dtype):
        found = gather(torch.zeros(1, 1, 300, 300, dtype=dtype), torch.ones(1, 2, 300, 300, dtype=dtype))
    torch.testing.assert_close(found, torch.ones(1, 1, 2), atol=5e-4, rtol=0)


def test_present_classes_are_the_tags_or_else_the_probable_ones():
    maps = torch.tensor([-1.0, 0.5, 3.0])[None, :, None, None].repeat(1, 1, 2, 2)
    maps[0, 1] = torch.tensor([[9.0, -4.0], [-4.0, -4.0]])  # a high peak, but a mean below 0
    assert present_classes(maps, None).tolist() == [[False, False, True]]
    assert present_classes(maps, torch.tensor([[1.0, 0.0, 0.0]])).tolist() == [[True, False, False]]


def test_builder_hands_its_arguments_on():
    co = build_context("co_attention", C, L, key_channels=D, reference_grid=3, attention_classes="tags")
    assert isinstance(co, CoAttention)
    assert (co.query.weight.shape, co.reference.shape, co.context_channels) == ((D, C), (L, 9, C), C)
    double = build_context("double_attention", C, L, key_channels=D)
    assert isinstance(double, DoubleAttention)
    assert (double.content.weight.shape, double.distribution.weight.shape) == ((D, C, 1, 1), (D, C, 1, 1))
    regions = build_context("object_context", C, L, key_channels=D, attention_classes="tags", background=False)
    assert isinstance(regions, ObjectContext)
    assert (regions.tags_only, regions.background, regions.context_channels) == (True, False, D)
    assert not build_context("object_context", C, L).tags_only


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("prototypes", {}, "context='prototypes': give one of co_attention, double_attention, object_context"),
        ("co_attention", {"key_channels": 0}, "key_channels=0"),
        ("co_attention", {"reference_grid": -1}, "reference_grid=-1"),
        ("object_context", {"attention_classes": "some"}, "attention_classes='some'"),
        ("double_attention", {"attention_classes": "tags"}, "attention_classes='tags': double_attention"),
    ],
)
def test_bad_arguments_are_named(name, options, message):
    with pytest.raises(ArgumentError, match=message):
        build_context(name, C, L, **options)


@pytest.mark.parametrize(
    ("name", "parameters"), [("co_attention", 1048576), ("double_attention", 1572864), ("object_context", 1640448)]
)
def test_parameters_are_as_documented(name, parameters):
    with torch.device("meta"):
        context = build_context(name, 2048, 20)
    assert sum(parameter.numel() for parameter in context.parameters()) == parameters


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3), (9, 4)])
@pytest.mark.parametrize("name", NAMES)
def test_any_size_gives_a_context_of_that_size(name, size, training):
    context = built(name).train(training)
    features, maps = inputs(3, *size)
    for tags in (TAGS, None):
        found = context(features, maps, tags)
        assert found.shape == (3, context.context_channels, *size)
        assert torch.isfinite(found).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_and_the_features_get_a_gradient(name, layout):
    context, (features, maps) = built(name), inputs()
    features = features.contiguous(memory_format=layout).requires_grad_()
    (context(features, maps, TAGS) * torch.randn(context.context_channels, 1, 1)).square().sum().backward()
    for key, parameter in context.named_parameters():
        assert parameter.grad.abs().sum() > 0, key
    assert features.grad.abs().sum() > 0


@pytest.mark.parametrize("tags", [torch.zeros(1, L), torch.tensor([[0, 1, 0]]), None])
@pytest.mark.parametrize("options", [{}, {"background": False, "attention_classes": "tags"}])
@pytest.mark.parametrize("name", NAMES)
def test_no_parameter_is_left_out_of_the_poorest_step(name, options, tags):
    context = built(name, **({} if name == "double_attention" else options))
    features, maps = inputs(1, 1, 1)
    context(features, maps, tags).sum().backward()
    for key, parameter in context.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_autocast_is_close_to_single_precision(name, training, dtype):
    context, (features, maps) = built(name), inputs()
    context(features, maps, TAGS)
    context.train(training)
    single = context(features, maps, TAGS)
    with torch.autocast("cpu", dtype=dtype):
        half = context(features.to(dtype), maps.to(dtype), TAGS)
    torch.testing.assert_close(half.float(), single, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_large_features_stay_finite_in_float16(name, training):
    context, (features, maps) = built(name).train(training), inputs()
    features = (1000 * features).half().requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16):
        found = context(features, 1000 * maps, TAGS)
    assert torch.isfinite(found).all()
    found.float().mean().backward()
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize("tags", [TAGS, None])
@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_alone_predicts_the_same(name, tags):
    context = built(name)
    context(*inputs(), TAGS)
    saved = io.BytesIO()
    torch.save(context.state_dict(), saved)
    saved.seek(0)
    again = build_context(name, C, L, key_channels=D, reference_grid=2)
    again.load_state_dict(torch.load(saved, weights_only=True))
    features, maps = inputs(seed=7)
    assert torch.equal(again.eval()(features, maps, tags), context.eval()(features, maps, tags))
