"""Views of photographs: sizes, mirror images, and a side that none exceeds."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F

from rca_lightning.errors import ArgumentError
from rca_lightning.rca.inference import multi_scale_flip, view_sizes


def photographs(height: int = 24, width: int = 36) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_each_scale_as_it_is_and_mirrored():
    images = photographs()
    found = list(multi_scale_flip(images, scales=(0.5, 1.0, 2.0), flip=True))
    assert [mirrored for _, mirrored in found] == [False, True] * 3
    assert [tuple(view.shape[2:]) for view, _ in found[::2]] == [(12, 18), (24, 36), (48, 72)]
    for (plain, _), (mirrored, _) in zip(found[::2], found[1::2], strict=True):
        assert torch.equal(plain.flip(3), mirrored)
    assert torch.equal(found[2][0], images)
    torch.testing.assert_close(found[0][0], F.interpolate(images, (12, 18), mode="bilinear", antialias=True))
    torch.testing.assert_close(found[4][0], F.interpolate(images, (48, 72), mode="bilinear"))


def test_without_mirror_images():
    assert [mirrored for _, mirrored in multi_scale_flip(photographs(), flip=False)] == [False]


@pytest.mark.parametrize(("height", "width"), [(4000, 3000), (300, 4000), (4000, 4000)])
def test_no_view_of_a_large_photograph_exceeds_the_side(height, width, caplog):
    with caplog.at_level(logging.WARNING, logger="rca_lightning.rca.inference"):
        sizes = view_sizes((height, width), scales=(0.1, 0.5, 1.0, 2.0), max_side=1000)
        again = view_sizes((height, width), scales=(0.1, 0.5, 1.0, 2.0), max_side=1000)
    assert sizes == again
    assert len(sizes) == 2  # what would exceed it is one view
    assert sizes[0] == (height // 10, width // 10)
    assert max(sizes[1]) == 1000
    assert sizes[1][0] / sizes[1][1] == pytest.approx(height / width, rel=0.02)
    assert len(caplog.records) == 1, "once for a size"
    assert "max_side=1000" in caplog.text


def test_a_photograph_that_fits_is_not_mentioned(caplog):
    with caplog.at_level(logging.WARNING, logger="rca_lightning.rca.inference"):
        assert view_sizes((500, 375), scales=(1.0, 2.0), max_side=1000) == [(500, 375), (1000, 750)]
    assert not caplog.records


def test_a_strip_keeps_a_pixel():
    assert view_sizes((2, 300), scales=(0.1,)) == [(1, 30)]


@pytest.mark.parametrize("scales", [(), (1.0, 0.0), (float("inf"),), (float("nan"),)])
def test_scales_of_no_view_are_refused(scales):
    with pytest.raises(ArgumentError, match=r"^scales="):
        list(multi_scale_flip(photographs(), scales=scales))


def test_a_side_too_short_is_refused():
    with pytest.raises(ArgumentError, match=r"^max_side=15"):
        list(multi_scale_flip(photographs(), max_side=15))
