"""InfoNCE with each choice of positives, against its formula in loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from rca_lightning.errors import ArgumentError
from rca_lightning.rca.contrast import RegionContrastLoss, region_contrast_loss

pytestmark = pytest.mark.usefixtures("each_reading")

R, C, N, K, D = 6, 4, 3, 2, 5
CHOICES = ["all", "prototypes", "hardest"]
Case = dict[str, torch.Tensor]


def example(seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)
    valid = torch.arange(N)[None] < torch.tensor([3, 2, 1, 3])[:, None]
    labels = torch.tensor([0, 1, 1, 2, 3, 0])
    absent = torch.rand(R, C, generator=generator) < 0.6
    absent[:, 3] = True
    absent[torch.arange(R), labels] = False
    prototypes_valid = torch.tensor([[True, True], [True, False], [False, True], [True, True]])
    return {
        "embeddings": 5 * torch.randn(R, D, generator=generator),
        "labels": labels,
        "absent": absent,
        "memory": F.normalize(torch.randn(C, N, D, generator=generator), dim=2) * valid[:, :, None],
        "valid": valid,
        "prototypes": 0.3 * torch.randn(C, K, D, generator=generator) * prototypes_valid[:, :, None],
        "prototypes_valid": prototypes_valid,
    }


def cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    a, b = first.double().tolist(), second.double().tolist()
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def reference(case: Case, positives: str, temperature: float) -> float:
    losses = []
    for query, label, absent in zip(case["embeddings"], case["labels"].tolist(), case["absent"], strict=True):
        negatives = sum(
            math.exp(cosine(query, case["memory"][other, slot]) / temperature)
            for other in range(C)
            for slot in range(N)
            if absent[other] and case["valid"][other, slot]
        )
        if positives == "prototypes":
            own, usable = case["prototypes"], case["prototypes_valid"]
        else:
            own, usable = case["memory"], case["valid"]
        pulls = []
        if label < len(own):
            pulls = [cosine(query, row) for row, used in zip(own[label], usable[label], strict=True) if used]
        if positives == "hardest" and pulls:
            pulls = [min(pulls)]
        if pulls and negatives:
            towards = [math.exp(pull / temperature) for pull in pulls]
            terms = [-math.log(positive / (positive + negatives)) for positive in towards]
            losses.append(sum(terms) / len(terms))
    return sum(losses) / len(losses) if losses else 0.0


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("positives", CHOICES)
def test_loss_by_loops(positives, seed, temperature):
    case = example(seed)
    found = region_contrast_loss(**case, temperature=temperature, positives=positives)
    assert float(found) == pytest.approx(reference(case, positives, temperature), rel=1e-4, abs=1e-6)


def test_choices_differ():
    losses = {positives: float(region_contrast_loss(**example(), positives=positives)) for positives in CHOICES}
    assert len(set(losses.values())) == 3
    assert losses["hardest"] > losses["all"]


@pytest.mark.parametrize("positives", CHOICES)
def test_class_without_positive_skips_its_regions(positives):
    case = example()
    case["valid"][1] = False
    case["prototypes_valid"][1] = False
    case["absent"][:, 1] = False
    expected = reference(case, positives, 0.1)
    kept = case["labels"] != 1
    fewer = {**case, **{name: case[name][kept] for name in ("embeddings", "labels", "absent")}}
    case["embeddings"].requires_grad_()
    loss = region_contrast_loss(**case, positives=positives)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert loss.item() == pytest.approx(float(region_contrast_loss(**fewer, positives=positives)), rel=1e-5)
    assert case["embeddings"].grad[kept].any(dim=1).all()
    assert not case["embeddings"].grad[~kept].any()


@pytest.mark.parametrize("positives", CHOICES)
def test_gradient_equals_finite_differences(positives):
    case = example()
    case["embeddings"].requires_grad_()
    region_contrast_loss(**case, temperature=0.3, positives=positives).backward()
    flat = case["embeddings"].detach().double()
    for region in range(R):
        for channel in (0, D - 1):
            step = torch.zeros_like(flat)
            step[region, channel] = 1e-5
            numeric = [reference({**case, "embeddings": flat + sign * step}, positives, 0.3) / 2e-5 for sign in (1, -1)]
            assert float(case["embeddings"].grad[region, channel]) == pytest.approx(numeric[0] - numeric[1], abs=1e-5)


@pytest.mark.parametrize("temperature", [1e-6, 1e-3])
@pytest.mark.parametrize("positives", CHOICES)
def test_gradient_is_finite_at_tiny_temperatures(positives, temperature):
    case = example()
    case["absent"][3] = False
    case["valid"][2] = False
    case["prototypes_valid"][2] = False
    case["embeddings"].requires_grad_()
    loss = region_contrast_loss(**case, temperature=temperature, positives=positives)
    loss.backward()
    assert loss > 0
    assert torch.isfinite(loss)
    assert torch.isfinite(case["embeddings"].grad).all()


@pytest.mark.parametrize("what", ["no regions", "nothing to pull to"])
@pytest.mark.parametrize("positives", CHOICES)
def test_nothing_to_contrast_is_zero_and_backward_works(positives, what):
    case = example()
    if what == "no regions":
        case = {**case, **{name: case[name][:0] for name in ("embeddings", "labels", "absent")}}
    else:
        case["valid"] = torch.zeros_like(case["valid"])
        case["prototypes_valid"] = torch.zeros_like(case["prototypes_valid"])
    case["embeddings"].requires_grad_()
    loss = region_contrast_loss(**case, positives=positives)
    assert loss.item() == 0
    loss.backward()
    assert case["embeddings"].grad is not None
    assert not case["embeddings"].grad.any()


def test_prototypes_need_no_slot_of_the_class_and_get_no_gradient():
    case = example()
    case["valid"][:3] = False
    case["prototypes"].requires_grad_()
    case["memory"].requires_grad_()
    case["embeddings"].requires_grad_()
    loss = region_contrast_loss(**case, positives="prototypes")
    assert loss.item() == pytest.approx(reference(case, "prototypes", 0.1), rel=1e-4)
    loss.backward()
    assert case["embeddings"].grad.any()
    assert case["prototypes"].grad is None
    assert case["memory"].grad is None


def test_length_of_a_prototype_does_not_matter():
    case = example()
    expected = region_contrast_loss(**case, positives="prototypes")
    case["prototypes"] = 40 * case["prototypes"]
    torch.testing.assert_close(region_contrast_loss(**case, positives="prototypes"), expected)


def test_all_prototypes_are_valid_unless_told():
    case = {**example(), "prototypes": torch.randn(C, K, D), "prototypes_valid": torch.ones(C, K, dtype=torch.bool)}
    expected = region_contrast_loss(**case, positives="prototypes")
    del case["prototypes_valid"]
    assert torch.equal(region_contrast_loss(**case, positives="prototypes"), expected)


def test_classes_past_the_last_row_have_no_prototype():
    case = example()
    case["prototypes"], case["prototypes_valid"] = case["prototypes"][:3], case["prototypes_valid"][:3]
    assert float(region_contrast_loss(**case, positives="prototypes")) == pytest.approx(
        reference(case, "prototypes", 0.1), rel=1e-4
    )


@pytest.mark.parametrize("positives", ["all", "hardest"])
def test_prototypes_are_ignored_where_slots_are_the_positives(positives):
    case = example()
    expected = region_contrast_loss(**case, positives=positives)
    del case["prototypes"], case["prototypes_valid"]
    assert torch.equal(region_contrast_loss(**case, positives=positives), expected)


@pytest.mark.parametrize("positives", CHOICES)
def test_autocast_does_not_coarsen_the_similarities(positives):
    case = example()
    single = region_contrast_loss(**case, temperature=0.01, positives=positives)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = region_contrast_loss(**case, temperature=0.01, positives=positives)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, single)


@pytest.mark.parametrize("positives", CHOICES)
def test_module_hands_on_its_choice(positives):
    case = example()
    expected = region_contrast_loss(**case, temperature=0.37, positives=positives)
    assert torch.equal(RegionContrastLoss(0.37, positives)(**case), expected)


def test_unknown_positives_are_named():
    for call in (lambda: RegionContrastLoss(0.1, "easiest"), lambda: region_contrast_loss(**example(), positives="x")):
        with pytest.raises(ArgumentError, match=r"positives='.*': give one of all"):
            call()


@pytest.mark.parametrize(
    ("prototypes", "valid", "argument"),
    [
        (None, None, "prototypes=None"),
        (torch.zeros(C, D), None, r"prototypes=\(4, 5\)"),
        (torch.zeros(0, K, D), None, r"prototypes=\(0, 2, 5\)"),
        (torch.zeros(C, K, D + 1), None, r"prototypes=\(4, 2, 6\): give \(C, K, 5\)"),
        (torch.zeros(C, K, D), torch.ones(C, K + 1, dtype=torch.bool), r"prototypes_valid=\(4, 3\)"),
    ],
)
def test_prototypes_of_another_shape_are_refused(prototypes, valid, argument):
    case = {**example(), "prototypes": prototypes, "prototypes_valid": valid}
    with pytest.raises(ArgumentError, match=argument):
        region_contrast_loss(**case, positives="prototypes")
