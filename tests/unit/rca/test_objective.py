"""The whole objective: weights of its parts, where regions are cut, what is remembered."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rca_lightning.rca.contrast import region_contrast_loss
from rca_lightning.rca.loss import RCALoss, classification_loss
from rca_lightning.rca.memory_bank import RegionMemory
from rca_lightning.rca.network import ActivationMaps
from rca_lightning.rca.regions import extract_regions, select_for_memory

L, D = 3, 5


def batch(*, refined: bool = True, attention: bool = True) -> tuple[ActivationMaps, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    maps = ActivationMaps(
        embeddings=draw(2, D, 4, 4).requires_grad_(),
        coarse=draw(2, L, 4, 4).requires_grad_(),
        refined=draw(2, L, 4, 4).requires_grad_() if refined else None,
        attention=draw(2, L, 4, 4).abs() if attention else None,
    )
    return maps, torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])


def memory() -> RegionMemory:
    filled = RegionMemory(L + 1, 4, D)
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(L + 1).repeat_interleave(3)
    filled.enqueue(torch.randn(len(labels), D, generator=generator), labels, ["x"] * len(labels), step=0)
    return filled


def mean_embeddings(maps: ActivationMaps, tags: torch.Tensor, by: torch.Tensor, threshold: float):
    """Regions by loops: class, image, mean of the embeddings where the min-max normalised map is above."""
    for image in range(len(tags)):
        for label in range(L):
            if tags[image, label] == 0:
                continue
            one = by[image, label]
            mask = (one - one.min()) / (one.max() - one.min()) > threshold
            yield label, image, maps.embeddings[image][:, mask].mean(dim=1)


@pytest.mark.parametrize("region_map", ["coarse", "attention"])
def test_total_is_the_weighted_sum(region_map):
    maps, tags = batch()
    loss = RCALoss(alpha=0.3, beta=2.0, temperature=0.2)
    stored = memory()
    pooled = extract_regions(maps.embeddings, maps.region_cam(region_map), tags, threshold=0.6)
    found = loss(maps, tags, pooled, memory=stored)
    by = maps.coarse if region_map == "coarse" else maps.attention
    regions = list(mean_embeddings(maps, tags, by.detach(), 0.6))
    absent = torch.stack([F.pad(tags[image] == 0, (0, 1)) for _, image, _ in regions])
    contrast = region_contrast_loss(
        torch.stack([vector for _, _, vector in regions]),
        torch.tensor([label for label, _, _ in regions]),
        absent,
        stored.embeddings,
        stored.valid,
        0.2,
    )
    expected = classification_loss(maps.coarse, tags) + 2 * classification_loss(maps.refined, tags) + 0.3 * contrast
    torch.testing.assert_close(found.total, expected)
    torch.testing.assert_close(found.parts["contrast"], contrast.detach())
    assert not any(part.requires_grad for part in found.parts.values())


def test_class_without_prototype_is_located_and_drawn_by_its_coarse_map():
    maps, _ = batch()
    maps.attention[:, 1] = 0
    maps.has_prototype = torch.tensor([True, False, True])
    located = maps.region_cam("attention")
    torch.testing.assert_close(maps.final_cam("attention"), located.clamp_min(0).float())
    torch.testing.assert_close(located[:, [0, 2]], maps.attention[:, [0, 2]])
    torch.testing.assert_close(located[:, 1], maps.coarse.detach()[:, 1])
    assert not located.requires_grad
    torch.testing.assert_close(maps.region_cam("coarse"), maps.coarse.detach())


def test_background_comes_from_where_the_attention_is_low():
    maps, tags = batch()
    cam = maps.region_cam("attention")
    regions = extract_regions(maps.embeddings, cam, tags)
    # No class is that certain: background only.
    options = {"confidence": 1.0, "background_threshold": 0.3}
    found = select_for_memory(regions, maps.embeddings, cam, tags, torch.full((2, L), 0.9), **options)
    assert not found.embeddings.requires_grad
    assert set(found.labels.tolist()) == {L}
    first = []
    low = (maps.attention / maps.attention.amax(dim=(2, 3), keepdim=True) * tags[:, :, None, None]).amax(dim=1) <= 0.3
    for image in range(2):
        for rows in (slice(0, 2), slice(2, 4)):
            for columns in (slice(0, 2), slice(2, 4)):
                cells = maps.embeddings[image][:, rows, columns][:, low[image, rows, columns]]
                if cells.shape[1] >= 2:
                    first.append(cells.mean(dim=1))
    torch.testing.assert_close(found.embeddings, torch.stack(first).detach())


def test_only_regions_of_confident_tags_are_remembered():
    maps, tags = batch()
    cam = maps.region_cam("coarse")
    regions = extract_regions(maps.embeddings, cam, tags)
    probabilities = torch.tensor([[0.5, 0.9, 0.49], [0.9, 0.2, 0.9]])
    found = select_for_memory(regions, maps.embeddings, cam, tags, probabilities, background_threshold=None)
    assert list(zip(found.images.tolist(), found.labels.tolist(), strict=True)) == [(0, 0)]


def test_idle_contrast_is_zero_but_reaches_the_embeddings():
    maps, tags = batch()
    regions = extract_regions(maps.embeddings, maps.region_cam("attention"), tags)
    found = RCALoss(alpha=0.5)(maps, tags, regions)
    assert found.parts["contrast"] == 0
    found.total.backward()
    assert maps.embeddings.grad is not None


def test_plain_cam_has_one_loss():
    maps, tags = batch(refined=False, attention=False)
    found = RCALoss()(maps, tags)
    torch.testing.assert_close(found.total, classification_loss(maps.coarse, tags))
    assert set(found.parts) == {"coarse"}
