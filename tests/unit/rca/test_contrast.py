"""InfoNCE against its formula, written out with loops over regions and slots."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from rca_lightning.errors import ArgumentError
from rca_lightning.rca.contrast import RegionContrastLoss, region_contrast_loss

pytestmark = pytest.mark.usefixtures("each_reading")

R, C, N, D = 5, 4, 3, 6


def example(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.tensor([3, 2, 1, 3])
    valid = torch.arange(N)[None] < counts[:, None]
    memory = F.normalize(torch.randn(C, N, D, generator=generator), dim=2) * valid[:, :, None]
    labels = torch.tensor([0, 1, 1, 2, 3])
    absent = torch.rand(R, C, generator=generator) < 0.6
    absent[:, 3] = True
    absent[torch.arange(R), labels] = False
    return {
        "embeddings": 5 * torch.randn(R, D, generator=generator),
        "labels": labels,
        "absent": absent,
        "memory": memory,
        "valid": valid,
    }


def reference(case: dict[str, torch.Tensor], temperature: float) -> float:
    losses = []
    for region, label in enumerate(case["labels"].tolist()):
        query = [float(value) for value in case["embeddings"][region]]
        length = math.sqrt(sum(value * value for value in query))

        def similarity(other: int, slot: int, query=query, length=length) -> float:
            row = case["memory"][other, slot]
            return sum(q / length * float(m) for q, m in zip(query, row, strict=True)) / temperature

        negatives = [
            math.exp(similarity(other, slot))
            for other in range(C)
            for slot in range(N)
            if case["absent"][region, other] and case["valid"][other, slot]
        ]
        positives = [math.exp(similarity(label, slot)) for slot in range(N) if case["valid"][label, slot]]
        if negatives and positives:
            terms = [-math.log(positive / (positive + sum(negatives))) for positive in positives]
            losses.append(sum(terms) / len(terms))
    return sum(losses) / len(losses) if losses else 0.0


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_loss_by_loops(seed, temperature):
    case = example(seed)
    assert float(region_contrast_loss(**case, temperature=temperature)) == pytest.approx(
        reference(case, temperature), rel=1e-4, abs=1e-6
    )


def test_regions_without_positives_or_negatives_are_left_out_of_the_mean():
    case = example()
    case["valid"][1] = False  # no positive for regions 1 and 2
    case["absent"][3] = False  # no negative for region 3
    assert float(region_contrast_loss(**case)) == pytest.approx(reference(case, 0.1), rel=1e-4)
    for region in (1, 2, 3):
        case["embeddings"][region] = 1e3
    assert float(region_contrast_loss(**case)) == pytest.approx(reference(case, 0.1), rel=1e-4)


def test_classes_in_the_image_are_no_negatives():
    case = example()
    case["absent"][:, 0] = False
    before = region_contrast_loss(**case)
    case["memory"][0] = F.normalize(torch.randn(N, D), dim=1)
    usable = case["labels"] != 0
    kept = {**case, **{name: case[name][usable] for name in ("embeddings", "labels", "absent")}}
    old = example()
    old["absent"][:, 0] = False
    old = {**old, **{name: old[name][usable] for name in ("embeddings", "labels", "absent")}}
    assert torch.equal(region_contrast_loss(**kept), region_contrast_loss(**old))
    assert not torch.equal(region_contrast_loss(**case), before)  # there class 0 is the positive


@pytest.mark.parametrize("temperature", [1e-6, 1e-4, 1e-2])
def test_gradient_is_finite_at_tiny_temperatures(temperature):
    case = example()
    case["absent"][3] = False
    case["valid"][2] = False
    case["embeddings"].requires_grad_()
    loss = region_contrast_loss(**case, temperature=temperature)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(case["embeddings"].grad).all()
    assert not case["embeddings"].grad[3].any()  # left out: no gradient


def test_gradient_equals_finite_differences():
    case = example()

    def loss(embeddings: torch.Tensor) -> float:
        return reference({**case, "embeddings": embeddings}, 0.3)

    case["embeddings"].requires_grad_()
    region_contrast_loss(**case, temperature=0.3).backward()
    flat = case["embeddings"].detach().double()
    for region, channel in [(0, 0), (2, 3), (4, 5)]:
        step = torch.zeros_like(flat)
        step[region, channel] = 1e-4
        numeric = (loss(flat + step) - loss(flat - step)) / 2e-4
        assert float(case["embeddings"].grad[region, channel]) == pytest.approx(numeric, abs=1e-4)


def test_descent_moves_towards_positives():
    case = example()
    case["embeddings"].requires_grad_()
    before = region_contrast_loss(**case)
    before.backward()
    with torch.no_grad():
        case["embeddings"] -= 0.5 * case["embeddings"].grad
    assert region_contrast_loss(**case) < before


def test_no_gradient_flows_into_the_memory():
    case = example()
    case["memory"].requires_grad_()
    case["embeddings"].requires_grad_()
    region_contrast_loss(**case).backward()
    assert case["memory"].grad is None


@pytest.mark.parametrize("what", ["no regions", "empty memory"])
def test_nothing_to_contrast_is_zero_and_backward_works(what):
    case = example()
    if what == "no regions":
        case = {**case, **{name: case[name][:0] for name in ("embeddings", "labels", "absent")}}
    else:
        case["valid"][:] = False
        case["memory"][:] = 0
    case["embeddings"].requires_grad_()
    loss = region_contrast_loss(**case)
    assert loss.item() == 0
    loss.backward()
    assert case["embeddings"].grad is not None
    assert not case["embeddings"].grad.any()


def test_autocast_does_not_coarsen_the_similarities():
    case = example()
    single = region_contrast_loss(**case, temperature=0.01)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = region_contrast_loss(**case, temperature=0.01)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, single)


def test_module_hands_on_its_temperature():
    case = example()
    assert torch.equal(RegionContrastLoss(0.37)(**case), region_contrast_loss(**case, temperature=0.37))


@pytest.mark.parametrize("temperature", [0.0, -0.1])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ArgumentError, match="contrast_temperature="):
        RegionContrastLoss(temperature)
