"""The contrast with a memory that is read block by block against plain loops in double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.new_storage import NewStorage

from rca_lightning.rca import contrast
from rca_lightning.rca import contrast as streaming
from rca_lightning.rca.contrast import region_contrast_loss

CHOICES = ["all", "prototypes", "hardest"]
Case = dict[str, torch.Tensor]


def example(seed: int = 0, *, regions: int = 6, classes: int = 4, slots: int = 7, dim: int = 5) -> Case:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, slots + 1, (classes,), generator=generator)
    valid = torch.arange(slots)[None] < counts[:, None]
    labels = torch.randint(0, classes, (regions,), generator=generator)
    absent = torch.rand(regions, classes, generator=generator) < 0.6
    absent[torch.arange(regions), labels] = False
    unit = lambda *shape: F.normalize(torch.randn(*shape, generator=generator), dim=2)  # noqa: E731
    return {
        "embeddings": 5 * torch.randn(regions, dim, generator=generator),
        "labels": labels,
        "absent": absent,
        # Numbers that half precision holds exactly, so that all versions have the same memory.
        "memory": (unit(classes, slots, dim) * valid[:, :, None]).half().float(),
        "valid": valid,
        "prototypes": unit(classes, 2, dim),
    }


def by_loops(case: Case, temperature: float, positives: str) -> tuple[float, torch.Tensor]:
    """Loss and its gradient, region by region, in float64."""
    embeddings = case["embeddings"].double().requires_grad_()
    losses = []
    for query, label, absent in zip(embeddings, case["labels"].tolist(), case["absent"], strict=True):
        query = query / query.square().sum().sqrt()
        negatives = [slot for other in absent.nonzero()[:, 0] for slot in case["memory"][other][case["valid"][other]]]
        own = case["memory"][label][case["valid"][label]].double()
        if positives == "prototypes":
            own = case["prototypes"][label].double()
        if positives == "hardest" and len(own):
            own = own[(own @ query.detach()).argmin()][None]
        if negatives and len(own):
            logits = torch.stack(negatives).double() @ query / temperature
            terms = [torch.cat([logits, (slot @ query)[None] / temperature]) for slot in own]
            losses.append(sum(term.logsumexp(0) - term[-1] for term in terms) / len(own))
    loss = sum(losses) / len(losses) if losses else embeddings.sum() * 0
    loss.backward()
    return loss.item(), embeddings.grad


def computed(case: Case, temperature: float, positives: str, dtype: torch.dtype) -> tuple[float, torch.Tensor]:
    embeddings = case["embeddings"].clone().requires_grad_()
    given = {**case, "embeddings": embeddings, "memory": case["memory"].to(dtype)}
    loss = region_contrast_loss(**given, temperature=temperature, positives=positives)
    assert loss.dtype == torch.float32
    loss.backward()
    return float(loss), embeddings.grad


# float32 is read at once, the others are converted, so in blocks; as is any memory on another device.
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.03, 0.1, 1.0]),
    positives=st.sampled_from(CHOICES),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.float64]),
    block=st.integers(1, 40),
    shape=st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(1, 9)),
)
def test_loss_and_gradient_by_loops(seed, temperature, positives, dtype, block, shape):
    case = example(seed, regions=shape[0], classes=shape[1], slots=shape[2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "BLOCK_BYTES", 4 * 5 * block)
        loss, gradient = computed(case, temperature, positives, dtype)
    expected, wanted = by_loops(case, temperature, positives)
    assert loss == pytest.approx(expected, rel=1e-4, abs=1e-5)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("positives", CHOICES)
@pytest.mark.parametrize("temperature", [1e-6, 1e-4])
def test_finite_at_tiny_temperatures(positives, temperature, monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 4 * 5 * 3)
    case = example(3)
    loss, gradient = computed(case, temperature, positives, torch.float16)
    expected, _ = computed(case, temperature, positives, torch.float32)
    assert loss == pytest.approx(expected, rel=1e-3)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("positives", CHOICES)
def test_no_block_outlives_its_turn(positives, monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 4 * 64 * 20)  # 20 slots of 64 channels
    case = example(1, slots=50, dim=64)
    case["embeddings"].requires_grad_()
    case["memory"] = case["memory"].half()
    kept: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.untyped_storage().nbytes())
        return tensor

    with NewStorage() as watched, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        region_contrast_loss(**case, positives=positives).backward()
    assert case["embeddings"].grad.any()
    assert watched.made[0][0] <= 64 * 20
    assert 0 < sum(kept) < 4 * case["memory"].numel() / 2


def test_autocast_does_not_reach_the_products():
    case = example()
    case["memory"] = case["memory"].half()
    expected = region_contrast_loss(**case, temperature=0.02)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(region_contrast_loss(**case, temperature=0.02), expected)


def test_hardest_slot_of_an_empty_class_is_zero():
    case = example()
    case["valid"][0] = False
    case["valid"][1:, 0] = True
    labels = torch.tensor([1, 0, 2])
    found = streaming.hardest_slots(case["embeddings"][:3], labels, case["memory"], case["valid"])
    assert not found[1].any()
    assert found[[0, 2]].any(dim=1).all()


@pytest.mark.parametrize(("device", "regions", "blocks"), [("cpu", 1, True), ("meta", 32, False), ("meta", 33, True)])
def test_memory_is_read_at_once_on_a_gpu_while_the_products_have_room(device, regions, blocks, monkeypatch):
    monkeypatch.setattr(contrast, "_AT_ONCE", 32 * 6 * 5 * 4)
    queries, memory = torch.empty(regions, 3, device=device), torch.empty(6, 5, 3, device=device)
    assert contrast._reads_by_blocks(queries, memory) is blocks
    assert contrast._reads_by_blocks(queries, memory.half())
    assert contrast._reads_by_blocks(queries, torch.empty(6, 5, 3, device="cpu" if device == "meta" else "meta"))
