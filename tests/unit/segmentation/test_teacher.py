"""The teacher of one stage against plain loops: its average, its ramp, its labels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rca_lightning.errors import ArgumentError
from rca_lightning.pseudo_labels.propagation import pamr
from rca_lightning.segmentation.teacher import ramp, teacher_labels, update_teacher, warm_decay

IGNORED = 255


class Small(nn.Module):
    """Weights, one of them frozen, statistics, and a flag."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(3, 2)
        self.frozen = nn.Parameter(torch.full((2,), 7.0), requires_grad=False)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("valid", torch.tensor([seed == 1, True]))


def test_average_of_weights_and_copy_of_buffers():
    teacher, student = Small(0), Small(1)
    averages = {name: weight.double().tolist() for name, weight in teacher.named_parameters()}
    for step, decay in enumerate((0.1, 0.5, 0.9)):
        with torch.no_grad():
            student.layer.weight += 0.3 * (step + 1)
            student.norm.running_mean += step + 1
            student.norm.num_batches_tracked += 1
        update_teacher(teacher, student, decay)
        weights = dict(student.named_parameters())
        for name, before in averages.items():
            old, new = torch.tensor(before, dtype=torch.float64), weights[name].double()
            averages[name] = (decay * old + (1 - decay) * new).tolist()
    for name, weight in teacher.named_parameters():
        expected = torch.tensor(averages[name], dtype=torch.float64)
        torch.testing.assert_close(weight.double(), expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(teacher.frozen, torch.full((2,), 7.0))
    for copied, own in zip(teacher.buffers(), student.buffers(), strict=True):
        assert torch.equal(copied, own)
    assert not torch.equal(teacher.layer.weight, student.layer.weight)


def test_without_decay_the_student_is_its_own_teacher():
    teacher, student = Small(0), Small(1)
    update_teacher(teacher, student, warm_decay(0.0, 0))
    for name, value in student.state_dict().items():
        assert torch.equal(teacher.state_dict()[name], value), name


@pytest.mark.parametrize(("step", "expected"), [(0, 1 / 10), (1, 2 / 11), (8, 0.5), (889, 890 / 899), (10**6, 0.99)])
def test_decay_warms_up(step, expected):
    assert warm_decay(0.99, step) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("elapsed", "length", "expected"),
    [
        (-0.01, 2, 0.0),
        (0, 2, 0.0),
        (1.5, 2, 0.75),
        (2, 2, 1.0),
        (9, 2, 1.0),
        (-1, 0, 0.0),
        (0, 0, 1.0),
        (0.1, 0.4, 0.25),
    ],
)
def test_ramp(elapsed, length, expected):
    assert ramp(elapsed, length) == pytest.approx(expected)


def case(batch: int = 3, classes: int = 4, cells: tuple[int, int] = (5, 6)):
    draw = torch.Generator().manual_seed(3)
    maps = torch.rand(batch, classes, *cells, generator=draw).square() * 3
    images = torch.randn(batch, 3, cells[0] * 4, cells[1] * 4, generator=draw)
    tags = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 1]])
    return maps, images, tags


def by_loops(maps, tags, padded, low, high, trusted):
    """Labels of maps that have the size of the labels already."""
    batch, classes, height, width = maps.shape
    found = [[[IGNORED] * width for _ in range(height)] for _ in range(batch)]
    values = maps.double().tolist()
    for image in range(batch):
        own = [c for c in range(classes) if tags[image][c] > 0 and trusted[c]]
        doubtful = any(tags[image][c] > 0 and not trusted[c] for c in range(classes))
        cells = [(y, x) for y in range(height) for x in range(width) if not padded[image][y][x]]
        peaks = {c: max((values[image][c][y][x] for y, x in cells), default=0.0) for c in own}
        for y, x in cells:
            shares = {c: values[image][c][y][x] / peaks[c] if peaks[c] > 1e-5 else 0.0 for c in own}
            best = max(shares, key=lambda c: shares[c]) if shares else None
            strength = 0.0 if best is None else shares[best]
            if strength > high:
                found[image][y][x] = best + 1
            elif strength < low and not doubtful:
                found[image][y][x] = 0
    return torch.tensor(found)


@pytest.mark.parametrize("trusted", [None, (True, True, False, True), (False,) * 4])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.6), (0.5, 0.5), (0.0, 1.0)])
def test_labels_against_loops(trusted, low, high):
    maps, images, tags = case()
    images[0, :, :9] = 0  # padding, of the third row of cells in part
    images[1, 0, :] = 0  # a channel of 0 is no padding
    believed = None if trusted is None else torch.tensor(trusted)
    found = teacher_labels(maps, images, tags, low=low, high=high, pamr_iterations=0, trusted=believed)
    padded = torch.zeros(3, 5, 6, dtype=torch.bool)
    padded[0, :3] = True
    expected = by_loops(maps, tags.tolist(), padded.tolist(), low, high, trusted or (True,) * 4)
    assert found.dtype == torch.int64
    assert torch.equal(found, expected)
    if trusted is None and (low, high) == (0.2, 0.6):
        assert set(found.flatten().tolist()) == {0, 1, 2, 3, 4, IGNORED}


def test_maps_are_refined_along_the_colours_of_the_photograph():
    maps, images, tags = case(batch=1)
    images = torch.full_like(images[:1], -1.0)
    images[..., 12:] = 1.0  # an edge between two cells
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    colours = (images[:, :, ::4, ::4] * std[:, None, None] + mean[:, None, None]).clamp(0, 1)
    peaks = maps.amax((2, 3), keepdim=True)
    refined = pamr((maps / peaks)[:, [0, 2]], colours, iterations=3, dilations=(1, 2, 3, 6))
    found = teacher_labels(maps, images, tags[:1], low=0.3, high=0.4, pamr_iterations=3)
    strength, strongest = refined.max(1)
    decided = ((strength > 0.41) | (strength < 0.29))[0] & (torch.arange(6) < 2)  # reduced images blur at the edge
    expected = torch.where(strength > 0.4, torch.tensor([1, 3])[strongest], 0)
    assert decided.any()
    assert torch.equal(found[0][decided], expected[0][decided])
    plain = teacher_labels(maps, images, tags[:1], low=0.3, high=0.4, pamr_iterations=0)
    assert not torch.equal(found, plain)


def test_no_tag_is_background_and_unknown_tags_are_no_label():
    maps, images, tags = case()
    tags[0], tags[1] = 0.0, -1.0
    for iterations in (0, 2):
        found = teacher_labels(maps, images, tags, low=0.2, high=0.6, pamr_iterations=iterations)
        assert (found[0] == 0).all()
        assert (found[1] == IGNORED).all()
    assert (teacher_labels(maps, images, tags * 0, low=0.2, high=0.6) == 0).all()


def test_sizes_that_four_does_not_divide_and_numbers_that_are_not_finite():
    maps, _, tags = case()
    images = torch.randn(3, 3, 21, 30, generator=torch.Generator().manual_seed(0))
    images[1, 0, 3, 3], maps[1, 1, 0, 0] = torch.nan, torch.inf
    assert teacher_labels(maps, images, tags, low=0.2, high=0.6).shape == (3, 6, 8)


@pytest.mark.parametrize(("low", "high", "name"), [(-0.1, 0.5, "low"), (0.2, 1.1, "high"), (0.6, 0.5, "low")])
def test_thresholds_out_of_order_are_refused(low, high, name):
    with pytest.raises(ArgumentError, match=f"^{name}="):
        teacher_labels(*case(), low=low, high=high)
