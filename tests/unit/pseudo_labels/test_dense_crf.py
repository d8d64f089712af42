"""The dense CRF: what goes into the package and what comes back, and that it follows edges."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
import torch

from rca_lightning.errors import ArgumentError, MissingExtraError
from rca_lightning.pseudo_labels.dense_crf import dense_crf

installed = pytest.mark.skipif(
    importlib.util.find_spec("pydensecrf") is None, reason="pydensecrf2 (extra 'crf') is not installed"
)


def disc_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where the disc is, its photograph, and a shifted and noisy map of it beside its background."""
    rows, columns = torch.meshgrid(torch.arange(24), torch.arange(30), indexing="ij")
    inside = (rows - 11).square() + (columns - 14).square() < 49
    image = torch.where(inside, 0.9, 0.2).expand(3, 24, 30)
    noise = torch.rand(24, 30, generator=torch.Generator().manual_seed(0))
    seed = inside.roll((2, 2), (0, 1)) * 0.4 + noise * 0.5
    return inside, image[None], torch.stack([1 - seed, seed])[None]


class Recorder:
    """Stands for the package: keeps what it is given, returns the unary as if no pair of pixels were linked."""

    calls: list[tuple]

    def __init__(self, *size: int) -> None:
        type(self).calls = [("size", size)]

    def setUnaryEnergy(self, energy):  # noqa: N802
        self.energy = energy
        self.calls.append(("unary", energy))

    def addPairwiseGaussian(self, **options):  # noqa: N802
        self.calls.append(("gaussian", options))

    def addPairwiseBilateral(self, **options):  # noqa: N802
        self.calls.append(("bilateral", options))

    def inference(self, iterations):
        self.calls.append(("inference", iterations))
        return np.exp(-self.energy)


@pytest.fixture
def recorder(monkeypatch):
    package = type(sys)("pydensecrf.densecrf")
    package.DenseCRF2D = Recorder
    monkeypatch.setitem(sys.modules, "pydensecrf", type(sys)("pydensecrf"))
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", package)
    return Recorder


def test_what_the_package_is_given(recorder):
    maps = torch.tensor([[[0.2, 0.0]], [[0.0, 0.0]], [[0.6, 0.5]]])[None]
    image = torch.tensor([[[0.0, 1.0]], [[0.5, 0.2]], [[1.0, 0.0]]])[None]
    found = dense_crf(
        maps,
        image,
        iterations=4,
        smooth_weight=1.5,
        smooth_reach=2.0,
        colour_weight=7.0,
        colour_reach=50.0,
        colour_tolerance=5.0,
    )
    calls = dict(recorder.calls)
    assert calls["size"] == (2, 1, 2)  # width, height, labels that are present
    assert calls["unary"].dtype == np.float32
    assert calls["unary"].flags["C_CONTIGUOUS"]
    np.testing.assert_allclose(calls["unary"], -np.log([[0.25, 2e-5], [0.75, 1 - 2e-5]]), rtol=1e-4, atol=1e-6)
    assert calls["gaussian"] == {"sxy": 2.0, "compat": 1.5}
    pixels = calls["bilateral"].pop("rgbim")
    assert pixels.dtype == np.uint8
    assert pixels.tolist() == [[[0, 128, 255], [255, 51, 0]]]
    assert calls["bilateral"] == {"sxy": 50.0, "srgb": 5.0, "compat": 7.0}
    assert calls["inference"] == 4
    expected = torch.tensor([[[0.25, 0.0]], [[0.0, 0.0]], [[0.75, 1.0]]])[None]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_without_a_label_all_stays_zero(recorder):
    assert (dense_crf(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, 3)) == 0).all()


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    with pytest.raises(MissingExtraError, match=r"needed for dense_crf .* pip install 'rca-lightning\[crf\]'"):
        dense_crf(torch.zeros(1, 1, 2, 2), torch.zeros(1, 3, 2, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "iterations=0"),
        ({"smooth_weight": 0.0}, "smooth_weight=0.0"),
        ({"colour_tolerance": -1.0}, "colour_tolerance=-1.0"),
        ({"images": torch.zeros(1, 3, 2, 3)}, r"images=\(1, 3, 2, 3\): the maps are 2 x 2"),
        ({"maps": torch.full((1, 1, 2, 2), float("nan"))}, "maps='4 of 4 values NaN"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        dense_crf(**({"maps": torch.zeros(1, 1, 2, 2), "images": torch.zeros(1, 3, 2, 2)} | options))


@installed
def test_a_shifted_noisy_map_snaps_to_the_colour_edge():
    inside, image, maps = disc_case()
    # So noisy a map needs a strong one.
    found = dense_crf(maps, image, colour_weight=10, colour_reach=80, colour_tolerance=13)[0]
    torch.testing.assert_close(found.sum(0), torch.ones(24, 30))
    before, after = maps[0, 1] > maps[0, 0], found[1] > found[0]
    assert (before & inside).sum() / (before | inside).sum() < 0.75
    assert (after & inside).sum() / (after | inside).sum() > 0.95


@installed
def test_absent_labels_change_nothing():
    _, image, maps = disc_case()
    found = dense_crf(torch.stack([maps[:, 0], maps[:, 0] * 0, maps[:, 1]], dim=1), image)
    torch.testing.assert_close(found[:, [0, 2]], dense_crf(maps, image))
    assert (found[:, 1] == 0).all()


@installed
def test_two_images_and_one_label():
    _, image, maps = disc_case()
    both = dense_crf(torch.cat([maps, maps.flip(3)]), torch.cat([image, image.flip(3)]))
    torch.testing.assert_close(both[0], dense_crf(maps, image)[0])
    torch.testing.assert_close(both[1].flip(2), both[0], atol=0.05, rtol=0)  # its lattice is not symmetric
    assert (dense_crf(maps[:, :1], image) == 1).all()
