"""Labels of cells, and the share of them that a round changes, against plain loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rca_lightning.rca.label_change import LabelChange
from rca_lightning.rca.regions import cell_labels

B, L, H, W = 3, 4, 5, 6


def by_loop(maps: Tensor, tags: Tensor, threshold: float) -> list[list[list[int]]]:
    labels = []
    for of_image, of_tags in zip(maps.double(), tags, strict=True):
        tagged = [of_image[index] for index in range(L) if of_tags[index] > 0]
        rows = []
        for row in range(H):
            cells = []
            for column in range(W):
                best, label = threshold, 0
                for number, of_class in enumerate(tagged, start=1):
                    value = max(0.0, float(of_class[row, column])) / float(of_class.max())
                    if value > best:
                        best, label = value, number
                cells.append(label)
            rows.append(cells)
        labels.append(rows)
    return labels


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
def test_labels_are_those_of_a_plain_loop(threshold):
    torch.manual_seed(0)
    maps = torch.randn(B, L, H, W, dtype=torch.float64)
    tags = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]])
    labels = cell_labels(maps, tags, threshold)
    assert labels.dtype == torch.uint8
    assert labels.tolist() == by_loop(maps, tags, threshold)
    assert len(set(labels[0].flatten().tolist())) == (1 if threshold == 1 else 4)


def test_map_without_activation_and_tags_without_image_are_background():
    assert not cell_labels(-torch.rand(2, L, H, W), torch.ones(2, L), 0.1).any()
    assert cell_labels(torch.rand(2, L, H, W), torch.zeros(2, L)).shape == (2, H, W)


def test_share_is_that_of_a_plain_loop():
    rounds = [
        {name: torch.randint(0, 3, (cells,), dtype=torch.uint8) for name, cells in (("a", 7), ("b", 12), ("c", 1))}
        for _ in range(3)
    ]
    change, before = LabelChange(), {}
    for labels in rounds:
        change.begin_round()
        for name in sorted(labels, reverse=len(before) > 0):
            change.add(name, labels[name])
        pairs = [(name, cell) for name in labels for cell in range(len(labels[name]))]
        differ = [name not in before or int(before[name][cell]) != int(labels[name][cell]) for name, cell in pairs]
        assert change.share == pytest.approx(sum(differ) / len(pairs))
        before = labels


def test_new_photographs_and_other_sizes_have_changed():
    change = LabelChange()
    assert change.share == 0
    change.add("a", torch.zeros(4, dtype=torch.uint8))
    change.begin_round()
    change.add("a", torch.zeros(4, dtype=torch.uint8))
    assert change.share == 0
    change.add("b", torch.zeros(2, dtype=torch.uint8))
    change.add("c", torch.zeros(2, dtype=torch.uint8))
    assert change.share == 0.5
    change.begin_round()
    change.add("a", torch.zeros(3, dtype=torch.uint8))
    assert change.share == 1


def test_goes_on_within_a_round():
    change, other = LabelChange(), LabelChange()
    for name in ("a", "b"):
        change.add(name, torch.tensor([0, 1, 2], dtype=torch.uint8))
    change.begin_round()
    change.add("a", torch.tensor([0, 1, 1], dtype=torch.uint8))
    other.load_state_dict(change.state_dict())
    for one in (change, other):
        one.add("b", torch.tensor([1, 0, 0], dtype=torch.uint8))
    assert other.share == change.share == pytest.approx(4 / 6)
    assert all(torch.equal(other.labels[name], labels) for name, labels in change.labels.items())
    other.load_state_dict(LabelChange().state_dict())
    assert other.labels == {}
    assert other.share == 0
