"""Labels of whole photographs: views, sizes, memory, and the CRF."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rca_lightning.data.visualization import colours
from rca_lightning.errors import MissingExtraError
from rca_lightning.pseudo_labels.dense_crf import dense_crf
from rca_lightning.segmentation.inference import draw_labels, label_images, label_probabilities, strongest_label

needs_crf = pytest.mark.skipif(importlib.util.find_spec("pydensecrf") is None, reason="needs the extra crf")


class Colours(nn.Module):
    """Label c where the image is strong in channel c; at half the image's size, and not the same at the left."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.shift = shift
        self.seen: list[tuple[int, int]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(images.shape[2:]))
        logits = 2 * F.avg_pool2d(images, 2, ceil_mode=True)
        logits[:, 0] += self.shift * torch.linspace(1, 0, logits.shape[3])
        return logits


def images(*size: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(0))


def test_probabilities_are_the_mean_over_scales_and_flips():
    network, batch = Colours(shift=1.0), images(12, 16)
    found = label_probabilities(network, batch, scales=(0.5, 1.0), flip=True)
    expected = []
    for size in ((6, 8), (12, 16)):
        scaled = F.interpolate(batch, size, mode="bilinear", antialias=True) if size != (12, 16) else batch
        for view, back in ((scaled, False), (torch.flip(scaled, [3]), True)):
            enlarged = F.interpolate(Colours(shift=1.0)(view), (12, 16), mode="bilinear").softmax(1)
            expected.append(torch.flip(enlarged, [3]) if back else enlarged)
    torch.testing.assert_close(found, torch.stack(expected).mean(0), atol=1e-5, rtol=1e-4)
    assert network.seen == [(6, 8), (6, 8), (12, 16), (12, 16)]


def test_one_view_without_flip():
    batch = images(12, 16)
    found = label_probabilities(Colours(), batch, flip=False)
    torch.testing.assert_close(found, F.interpolate(Colours()(batch), (12, 16), mode="bilinear").softmax(1))


def test_labels_and_confidence_of_each_image():
    batch = images(9, 7)
    probabilities = label_probabilities(Colours(), batch)
    for index, found in enumerate(label_images(Colours(), batch)):
        assert found.labels.dtype == torch.uint8
        assert torch.equal(found.labels.long(), probabilities[index].argmax(0))
        assert found.confidence == pytest.approx(probabilities[index].max(0).values.mean().item())


def test_large_photograph_is_computed_small_and_drawn_large():
    network, batch = Colours(), images(40, 64, count=1)
    (found,) = label_images(network, batch, scales=(1.0, 2.0), max_side=16)
    assert set(network.seen) == {(10, 16)}
    assert found.labels.shape == (40, 64)
    probabilities = label_probabilities(Colours(), batch, scales=(1.0, 2.0), max_side=16)
    assert probabilities.shape == (1, 3, 10, 16)
    enlarged = F.interpolate(probabilities, (40, 64), mode="bilinear")
    assert torch.equal(found.labels.long(), enlarged[0].argmax(0))


def test_of_two_equal_scores_the_lower_label_wins():
    scores = torch.tensor([0.4, 0.4, 0.2])[:, None, None].expand(3, 2, 2)
    assert strongest_label(scores, (2, 2)).tolist() == [[0, 0], [0, 0]]
    assert (strongest_label(scores, (5, 6)) == 0).all()


def test_tags_choose_what_may_be_drawn():
    batch = images(12, 16, count=4)
    tags = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [0.0, 0.0]])
    probabilities = label_probabilities(Colours(), batch)
    found = label_images(Colours(), batch, tags=tags)
    for index, forbidden in enumerate((2, 1, None)):
        scores = probabilities[index].clone()
        if forbidden is not None:
            assert (scores.argmax(0) == forbidden).any()  # else nothing is shown
            scores[forbidden] = 0
        assert torch.equal(found[index].labels.long(), scores.argmax(0))
        assert found[index].confidence == pytest.approx((scores / scores.sum(0)).max(0).values.mean().item())
    assert not found[3].labels.any()  # tagged with nothing: background only


def test_half_precision_gives_float32():
    with torch.autocast("cpu", torch.bfloat16):
        found = label_probabilities(nn.Conv2d(3, 4, 3, padding=1), images(8, 8))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(1), torch.ones(2, 8, 8))


def test_missing_crf_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(MissingExtraError, match=r"rca-lightning\[crf\]"):
        label_images(Colours(), images(8, 8), crf=True)


@needs_crf
def test_crf_follows_the_edge_that_the_network_misses():
    photograph = torch.full((1, 3, 16, 32), -1.0)
    photograph[..., 16:] = 1.0

    class Off(nn.Module):
        """Draws the edge four pixels too far to the right, and knows a third label that is nowhere likely."""

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            left = (torch.arange(batch.shape[3]) < 20).float()[None, None, None].expand(len(batch), 1, *batch.shape[2:])
            return torch.cat([left, 1 - left, torch.full_like(left, -9.0)], dim=1)

    (plain,) = label_images(Off(), photograph, flip=False)
    (refined,) = label_images(Off(), photograph, flip=False, crf=True)
    assert plain.labels[8].tolist() == [0] * 20 + [1] * 12
    assert refined.labels[8].tolist() == [0] * 16 + [1] * 16
    assert refined.confidence == plain.confidence  # what the network gives
    (small,) = label_images(Off(), photograph, flip=False, crf=True, max_side=16)
    assert small.labels.shape == (16, 32)


@needs_crf
def test_crf_sees_the_photograph_and_not_the_cells():
    photograph = torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    photograph[..., 17:] += 2
    cells = torch.rand(1, 3, 3, 5, generator=torch.Generator().manual_seed(1)).softmax(1)
    enlarged = F.interpolate(cells, (24, 40), mode="bilinear", align_corners=False)
    marginals = dense_crf(enlarged, colours(photograph[0])[None])[0]
    (found,) = draw_labels(cells, photograph, crf=True)
    torch.testing.assert_close(found.labels, marginals.argmax(0).to(torch.uint8))
    (smaller,) = draw_labels(cells, photograph, crf=True, max_side=20)
    assert smaller.labels.shape == (24, 40)
    assert not torch.equal(smaller.labels, found.labels)
