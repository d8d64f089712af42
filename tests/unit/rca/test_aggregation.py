"""Semantic aggregation against loops in float64: masked softmax, readout, sums by class."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from rca_lightning.errors import ArgumentError
from rca_lightning.rca.aggregation import SemanticAggregation, first_true, fused_aggregation

D, L, K, H, W = 5, 3, 2, 3, 4


def unit_rows(count: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(count, D, generator=torch.Generator().manual_seed(seed)), dim=1)


def filled(background: int = 0, *, holes: tuple[int, ...] = (), **options) -> SemanticAggregation:
    module = SemanticAggregation(D, L, K, background_prototypes=background, **{"temperature": 0.1, **options})
    total = L * K + background
    valid = torch.ones(total, dtype=torch.bool)
    valid[list(holes)] = False
    module.write(unit_rows(total), valid)
    return module


def pixels(batch: int = 2, seed: int = 1) -> torch.Tensor:
    return 3 * torch.randn(batch, D, H, W, generator=torch.Generator().manual_seed(seed))


def reference(module: SemanticAggregation, pixel: torch.Tensor, readable: list[int]) -> tuple[list[float], list[float]]:
    """Context and class attention of one pixel, with plain numbers."""
    query = [float(value) for value in pixel]
    if module.normalize:
        length = math.sqrt(sum(value * value for value in query))
        query = [value / length for value in query]
    rows = {index: [float(value) for value in module.prototypes[index]] for index in readable}
    logits = {
        index: sum(q * p for q, p in zip(query, row, strict=True)) / module.temperature for index, row in rows.items()
    }
    top = max(logits.values())
    weights = {index: math.exp(value - top) for index, value in logits.items()}
    total = sum(weights.values())
    context = [sum(weights[index] / total * rows[index][d] for index in readable) for d in range(D)]
    owner = [label for label, count in enumerate(module.prototypes_per_class) for _ in range(count)]
    attention = [
        sum(weights[index] / total for index in readable if owner[index] == label)
        for label in range(len(module.prototypes_per_class))
    ]
    return context, attention


@pytest.mark.parametrize("background", [0, 3])
@pytest.mark.parametrize("holes", [(), (1, 4, 5)])
@pytest.mark.parametrize("options", [{"temperature": 0.1}, {"temperature": 1.7, "normalize": False}])
def test_readout_by_loops(background, holes, options):
    module, embeddings = filled(background, holes=holes, **options), pixels()
    found = module(embeddings)
    readable = [index for index in range(L * K + background) if index not in holes]
    assert found.class_attention.shape == (2, L + bool(background), H, W)
    for image in range(2):
        for row in range(H):
            for column in range(W):
                context, attention = reference(module, embeddings[image, :, row, column], readable)
                assert found.context[image, :, row, column].tolist() == pytest.approx(context, abs=1e-5)
                assert found.class_attention[image, :, row, column].tolist() == pytest.approx(attention, abs=1e-5)


@pytest.mark.parametrize("background", [0, 3])
def test_classes_restrict_what_an_image_reads(background):
    module, embeddings = filled(background, holes=(2,)), pixels()
    classes = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    found = module(embeddings, classes)
    extra = list(range(L * K, L * K + background))
    for image, readable in enumerate([[3, *extra], [0, 1, 4, 5, *extra]]):
        for row in range(H):
            for column in range(W):
                context, attention = reference(module, embeddings[image, :, row, column], readable)
                assert found.context[image, :, row, column].tolist() == pytest.approx(context, abs=1e-5)
                assert found.class_attention[image, :, row, column].tolist() == pytest.approx(attention, abs=1e-5)


@pytest.mark.parametrize("background", [0, 3])
@pytest.mark.parametrize("classes", [None, torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])])
@pytest.mark.parametrize("normalize", [True, False])
def test_fused_path_is_a_convolution_of_the_equation(background, classes, normalize):
    module = filled(background, holes=(2,), normalize=normalize)
    weight = torch.randn(5, D, generator=torch.Generator().manual_seed(3)).requires_grad_()
    fused_pixels, plain_pixels = pixels().requires_grad_(), pixels().requires_grad_()
    maps, attention = fused_aggregation(module, fused_pixels, classes, weight)
    expected = module(plain_pixels, classes)
    convolved = F.conv2d(expected.context, weight[:, :, None, None])
    torch.testing.assert_close(maps, convolved, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(attention, expected.class_attention, atol=1e-5, rtol=1e-5)
    gradients = [
        torch.autograd.grad((value.sin() + attended.cos().sum()).sum(), (pixel, weight))
        for value, attended, pixel in (
            (maps, attention, fused_pixels),
            (convolved, expected.class_attention, plain_pixels),
        )
    ]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_fused_attention_needs_no_weight():
    module = filled(2)
    maps, attention = fused_aggregation(module, pixels(), torch.ones(2, L), torch.empty(0, D))
    assert maps.shape == (2, 0, H, W)
    torch.testing.assert_close(attention, module(pixels()).class_attention)


def test_fused_path_before_any_prototype_is_zero():
    module = SemanticAggregation(D, L, K, temperature=0.1)
    maps, attention = fused_aggregation(module, pixels(), torch.ones(2, L), torch.randn(5, D))
    assert not maps.any()
    assert not attention.any()


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), max_size=5))
def test_first_true_lists_the_true_columns_in_order(rows):
    chosen = torch.tensor(rows, dtype=torch.bool).reshape(-1, 4)
    found = first_true(chosen)
    assert found.shape == (len(rows), max((sum(row) for row in rows), default=0))
    for row, columns in zip(rows, found.tolist(), strict=True):
        assert columns[: sum(row)] == [index for index, value in enumerate(row) if value]
        assert len(set(columns)) == len(columns)


def test_one_prototype_a_class_and_none_of_the_background_by_default():
    module = SemanticAggregation(D, L, 1, temperature=0.1)
    assert module.labels.tolist() == [0, 1, 2]
    assert module.prototypes.shape == (L, D)


def test_first_true_keeps_the_order_of_many_columns():
    chosen = torch.rand(3, 500, generator=torch.Generator().manual_seed(0)) < 0.5
    for row, columns in zip(chosen, first_true(chosen), strict=True):
        assert torch.equal(columns[: row.sum()], torch.nonzero(row)[:, 0])


def test_prototypes_by_class_leave_the_background_out():
    module = filled(2, holes=(1, 4))
    vectors, valid = module.by_class()
    assert vectors.shape == (L, K, D)
    assert valid.tolist() == [[True, False], [True, True], [False, True]]
    for label in range(L):
        for place in range(K):
            assert torch.equal(vectors[label, place], module.prototypes[label * K + place])


def test_attention_sums_to_one_over_classes_and_background():
    total = filled(3, holes=(0, 7))(pixels()).class_attention.sum(dim=1)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_context_is_zero_before_any_prototype_and_gradients_are_finite():
    module = SemanticAggregation(D, L, K, temperature=0.1, background_prototypes=2)
    embeddings = pixels().requires_grad_()
    found = module(embeddings)
    assert not found.context.any()
    assert not found.class_attention.any()
    (found.context.sum() + found.class_attention.sum()).backward()
    assert torch.isfinite(embeddings.grad).all()


def test_image_that_may_read_nothing_gets_zero_beside_one_that_may():
    found = filled(0)(pixels(), torch.tensor([[0, 0, 0], [1, 0, 0]]))
    assert not found.context[0].any()
    assert not found.class_attention[0].any()
    assert found.context[1].any()


def test_zero_pixel_and_tiny_temperature_have_finite_values_and_gradients():
    embeddings = pixels()
    embeddings[0, :, 0, 0] = 0
    embeddings.requires_grad_()
    found = filled(temperature=1e-4)(embeddings)
    found.context.square().sum().backward()
    assert torch.isfinite(found.context).all()
    assert torch.isfinite(embeddings.grad).all()


def test_gradient_reaches_embeddings_but_no_prototype():
    module = filled()
    embeddings = pixels().requires_grad_()
    module(embeddings).context[:, 0].sum().backward()
    assert embeddings.grad.abs().sum() > 0
    assert not module.prototypes.requires_grad
    assert list(module.parameters()) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_to_single(dtype):
    module, embeddings = filled(2, holes=(1,), temperature=0.1), pixels()
    single = module(embeddings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = module(embeddings.to(dtype))
    torch.testing.assert_close(half.context.float(), single.context, atol=0.03, rtol=0.05)
    torch.testing.assert_close(half.class_attention.float(), single.class_attention, atol=0.03, rtol=0.05)


def test_checkpoint_carries_prototypes():
    module = filled(3, holes=(1,))
    again = SemanticAggregation(D, L, K, temperature=0.1, background_prototypes=3)
    again.load_state_dict(module.state_dict())
    assert set(module.state_dict()) == {"prototypes", "valid"}
    assert torch.equal(again(pixels()).context, module(pixels()).context)


def test_write_replaces_in_place_and_blanks_what_is_not_valid():
    module = filled()
    storage = module.prototypes.data_ptr()
    fresh = unit_rows(L * K, seed=9)
    fresh[2] = torch.nan  # not valid: may hold anything
    valid = torch.ones(L * K, dtype=torch.bool)
    valid[2] = False
    module.write(fresh, valid)
    assert module.prototypes.data_ptr() == storage
    assert not module.prototypes[2].any()
    assert torch.equal(module.prototypes[valid], fresh[valid])
    assert torch.equal(module.valid, valid)
    assert torch.isfinite(module(pixels()).context).all()


@pytest.mark.parametrize(
    ("rows", "dim", "flags"), [(L * K + 1, D, L * K), (L * K, D + 1, L * K), (L * K, D, L * K + 1)]
)
def test_write_refuses_another_shape(rows, dim, flags):
    with pytest.raises(ArgumentError, match=r"prototypes=\(\d, \d\): give \(6, 5\)"):
        filled().write(torch.ones(rows, dim), torch.ones(flags, dtype=torch.bool))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_write_refuses_what_is_not_finite_and_keeps_the_former(value):
    module = filled()
    before = module.prototypes.clone()
    broken = unit_rows(L * K)
    broken[0, 0] = value
    with pytest.raises(ArgumentError, match="finite"):
        module.write(broken, torch.ones(L * K, dtype=torch.bool))
    assert torch.equal(module.prototypes, before)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"temperature": 0.0}, "attention_temperature"),
        ({"num_prototypes": 0}, "num_prototypes"),
        ({"background_prototypes": -1}, "background_prototypes"),
    ],
)
def test_bad_arguments_are_named(options, name):
    with pytest.raises(ArgumentError, match=f"{name}="):
        SemanticAggregation(D, L, **{"num_prototypes": K, "temperature": 0.1, **options})
