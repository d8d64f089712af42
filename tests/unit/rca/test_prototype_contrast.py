"""Cells and the contrast of prototypes with them, against loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from rca_lightning.errors import ArgumentError
from rca_lightning.rca.prototype_contrast import contrast_prototypes, select_cells


def loop_of_cells(embeddings, cam, tags, threshold, background_threshold, count):
    rows = []
    for image in range(len(cam)):
        tagged = [label for label in range(cam.shape[1]) if tags[image, label] > 0]
        owned = {label: [] for label in [*tagged, cam.shape[1]]}
        for row in range(cam.shape[2]):
            for column in range(cam.shape[3]):
                best, strongest = None, -1.0
                empty = bool(tagged)
                for label in tagged:
                    of_class = cam[image, label].double()
                    value = float(of_class[row, column])
                    low, high = float(of_class.min()), float(of_class.max())
                    by_peak = max(value, 0) / high
                    if (value - low) / (high - low) > threshold and by_peak > strongest:
                        best, strongest = label, by_peak
                    empty = empty and by_peak <= background_threshold
                if best is not None:
                    owned[best].append((row, column))
                elif empty:
                    owned[cam.shape[1]].append((row, column))
        for label, cells in owned.items():
            number = min(count, len(cells))
            for index in range(number):
                step = (len(cells) - 1) / (number - 1) if number > 1 else 0
                row, column = cells[int(index * step + 1e-9)]
                rows.append((image, label, embeddings[image, :, row, column]))
    return rows


@pytest.mark.parametrize("count", [1, 3, 100])
def test_cells_equal_a_loop(count):
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(3, 5, 6, 7, generator=generator)
    cam = torch.rand(3, 4, 6, 7, generator=generator)
    tags = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1]])
    found = select_cells(embeddings, cam, tags, threshold=0.6, background_threshold=0.4, count=count)
    wanted = loop_of_cells(embeddings, cam, tags, 0.6, 0.4, count)
    assert list(zip(found.images.tolist(), found.labels.tolist(), strict=True)) == [row[:2] for row in wanted]
    if count != 3:  # where a step between cells is no whole number, rounding may pick the neighbour
        torch.testing.assert_close(found.embeddings, torch.stack([row[2] for row in wanted]))
    assert {0, 2, 3, 4} <= set(found.labels.tolist())


def test_an_image_without_a_tag_and_a_constant_map_give_no_cell():
    embeddings = torch.randn(2, 3, 4, 4)
    cam = torch.cat([torch.rand(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)])
    found = select_cells(embeddings, cam, torch.tensor([[0, 0], [1, 0]]))
    assert len(found) == 0
    assert found.embeddings.shape == (0, 3)
    with pytest.raises(ArgumentError, match="count=0: give at least 1"):
        select_cells(embeddings, cam, torch.ones(2, 2), count=0)


def problem(seed=0, cells=40):
    generator = torch.Generator().manual_seed(seed)
    prototypes = F.normalize(torch.randn(7, 6, generator=generator), dim=1)
    owners = torch.tensor([0, 0, 1, 1, 2, 2, 2])
    return prototypes, owners, torch.randn(cells, 6, generator=generator), torch.arange(cells) % 3


def loop_of_loss(prototypes, owners, cells, labels, temperature):
    total = 0.0
    for cell, label in zip(cells.double(), labels.tolist(), strict=True):
        cell = cell / cell.norm()
        shares = [math.exp(float(cell @ (row / row.norm())) / temperature) for row in prototypes.double()]
        own = sum(share for share, owner in zip(shares, owners.tolist(), strict=True) if owner == label)
        total -= math.log(own / sum(shares))
    return total / len(cells)


def test_loss_equals_a_loop():
    prototypes, owners, cells, labels = problem()
    unmoved, loss = contrast_prototypes(
        prototypes, owners, cells, labels, temperature=0.2, epochs=1, learning_rate=1e-12
    )
    torch.testing.assert_close(unmoved, prototypes)
    assert loss == pytest.approx(loop_of_loss(prototypes, owners, cells, labels, 0.2), rel=1e-5)


def test_first_step_goes_against_the_gradient_of_the_loop():
    prototypes, owners, cells, labels = problem()
    rate, small = 1e-3, 1e-5
    moved, _ = contrast_prototypes(prototypes, owners, cells, labels, temperature=0.2, epochs=1, learning_rate=rate)
    signs = torch.zeros_like(prototypes)
    for row in range(prototypes.shape[0]):
        for column in range(prototypes.shape[1]):
            shift = torch.zeros_like(prototypes)
            shift[row, column] = small
            above = loop_of_loss(prototypes.double() + shift, owners, cells, labels, 0.2)
            below = loop_of_loss(prototypes.double() - shift, owners, cells, labels, 0.2)
            signs[row, column] = math.copysign(1, above - below)
    # The first step of Adam has one length in every coordinate.
    torch.testing.assert_close(moved, F.normalize(prototypes - rate * signs, dim=1), atol=2e-5, rtol=0)


def test_cells_are_told_apart_and_the_seed_decides_the_order():
    generator = torch.Generator().manual_seed(1)
    centres = F.normalize(torch.randn(3, 16, generator=generator), dim=1)
    labels = torch.arange(5000) % 3
    cells = centres[labels] + 0.3 * torch.randn(5000, 16, generator=generator)
    start, owners = F.normalize(torch.ones(3, 16) + 0.1 * centres, dim=1), torch.arange(3)
    options = {"temperature": 0.1, "epochs": 5}
    moved, loss = contrast_prototypes(start, owners, cells, labels, **options)
    assert loss < 0.5 * loop_of_loss(start, owners, cells[:300], labels[:300], 0.1)
    read = (F.normalize(cells, dim=1) @ moved.T).argmax(dim=1)
    assert float((read == labels).float().mean()) > 0.95
    assert torch.equal(moved, contrast_prototypes(start, owners, cells, labels, **options)[0])
    assert not torch.equal(moved, contrast_prototypes(start, owners, cells, labels, seed=1, **options)[0])
    torch.testing.assert_close(moved.norm(dim=1), torch.ones(3))
    halved, _ = contrast_prototypes(start, owners, cells.half(), labels, **options)
    torch.testing.assert_close(halved, moved, atol=0.02, rtol=0)


def test_cells_of_a_class_without_a_prototype_are_left_out():
    prototypes, owners, cells, labels = problem()
    kept = owners != 1
    found = contrast_prototypes(prototypes[kept], owners[kept], cells, labels, epochs=1, learning_rate=1e-12)
    own = labels != 1
    assert found[1] == pytest.approx(
        loop_of_loss(prototypes[kept], owners[kept], cells[own], labels[own], 0.05), rel=1e-4
    )
    nothing, loss = contrast_prototypes(prototypes, owners, cells[:0], labels[:0])
    assert loss == 0
    torch.testing.assert_close(nothing, prototypes)


@pytest.mark.parametrize("name", ["temperature", "learning_rate"])
def test_wrong_numbers_are_refused(name):
    with pytest.raises(ArgumentError, match=f"{name}=0: give a number above 0"):
        contrast_prototypes(*problem(), **{name: 0})
