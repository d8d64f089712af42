"""Which remembered regions a prototype stands for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rca_lightning.atlas.nearest import nearest_regions
from rca_lightning.errors import ArgumentError
from rca_lightning.rca.memory_bank import RegionMemory


def filled_memory(classes: int = 3, slots: int = 12, dim: int = 4, *, regions: int = 40, seed: int = 0) -> RegionMemory:
    """Some queues have gone around, others are not full; the last class has nothing."""
    generator = torch.Generator().manual_seed(seed)
    memory = RegionMemory(classes, slots, dim)
    labels = torch.randint(0, classes - 1, (regions,), generator=generator)
    labels[labels == 1] *= torch.randint(0, 2, (int((labels == 1).sum()),), generator=generator)
    for step, label in enumerate(labels):
        image = f"photo{int(torch.randint(0, 9, (1,), generator=generator))}"
        memory.enqueue(torch.randn(1, dim, generator=generator), label[None], [image], step)
    return memory


@pytest.mark.parametrize("seed", range(6))
def test_nearest_regions_equal_a_plain_loop(seed):
    memory = filled_memory(seed=seed)
    generator = torch.Generator().manual_seed(100 + seed)
    prototypes = torch.randn(9, 4, generator=generator) * 3
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    valid = torch.tensor([True, True, True, True, False, True, True, False, False])
    known = {f"photo{number}" for number in range(7)}
    found = nearest_regions(memory, prototypes, valid, labels, regions=3, known=known)
    assert [(row.label, row.number) for row in found] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0)]
    for row in found:
        rivals = [q for q in range(9) if labels[q] == row.label and valid[q]]
        own = 3 * row.label + row.number
        members = []
        for slot in range(int(memory.counts[row.label])):
            cosines = {
                q: float(F.cosine_similarity(memory.embeddings[row.label, slot], prototypes[q], dim=0)) for q in rivals
            }
            if max(cosines, key=cosines.__getitem__) == own:
                image = memory.image_id(row.label, slot)
                members.append((-cosines[own], slot, image, int(memory.steps[row.label, slot])))
        assert row.regions == len(members)
        assert row.images == len({image for _, _, image, _ in members})
        if members:
            assert row.mean_cosine == pytest.approx(-np.mean([member[0] for member in members]), abs=1e-6)
        else:
            assert math.isnan(row.mean_cosine)
        expected, seen = [], set()
        for cosine, slot, image, step in sorted(members):
            if image in known and image not in seen and len(expected) < 3:
                seen.add(image)
                expected.append((slot, image, step, pytest.approx(-cosine, abs=1e-6)))
        assert [(r.slot, r.image_id, r.step, r.cosine) for r in row.nearest] == expected
    assert sum(row.regions for row in found) == int(memory.counts.sum())


def test_nearest_regions_refuses_what_does_not_fit():
    memory = filled_memory()
    one = (torch.tensor([True]), torch.tensor([0]))
    with pytest.raises(ArgumentError, match="regions=0"):
        nearest_regions(memory, torch.ones(1, 4), *one, regions=0)
    with pytest.raises(ArgumentError, match=r"\(1, 5\)"):
        nearest_regions(memory, torch.ones(1, 5), *one)


def test_a_memory_in_half_precision_is_compared_in_single_precision():
    single = filled_memory()
    half = RegionMemory(3, 12, 4, dtype="float16")
    half.load_state_dict(single.state_dict())
    single.load_state_dict(half.state_dict())
    asked = torch.eye(4), torch.ones(4, dtype=torch.bool), torch.tensor([0, 0, 1, 1])
    assert nearest_regions(half, *asked) == nearest_regions(single, *asked)
