"""The loss of pixels against its definition, and pixels without a label."""

from __future__ import annotations

import math

import pytest
import torch

from rca_lightning.segmentation.network import pixel_cross_entropy

LABELS = 4


def random_case(seed: int, size: tuple[int, int] = (5, 6)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, LABELS, *size, generator=generator)
    mask = torch.randint(0, LABELS, (2, *size), generator=generator)
    mask[torch.rand(mask.shape, generator=generator) < 0.4] = 255
    return logits.requires_grad_(), mask


def test_loss_and_gradient_equal_the_definition():
    logits, mask = random_case(0)
    loss = pixel_cross_entropy(logits, mask)
    loss.backward()
    labelled = [tuple(place) for place in torch.nonzero(mask != 255).tolist()]
    expected, gradient = 0.0, torch.zeros_like(logits)
    for image, row, column in labelled:
        values = [float(value) for value in logits.detach()[image, :, row, column]]
        total = sum(math.exp(value) for value in values)
        true = int(mask[image, row, column])
        expected -= math.log(math.exp(values[true]) / total) / len(labelled)
        for label, value in enumerate(values):
            share = math.exp(value) / total - (label == true)
            gradient[image, label, row, column] = share / len(labelled)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(logits.grad, gradient, atol=1e-6, rtol=1e-4)
    assert (logits.grad.abs().sum(1)[mask == 255] == 0).all()


def test_batch_without_any_label_has_loss_0_and_gradients_0():
    logits, mask = random_case(1)
    loss = pixel_cross_entropy(logits, torch.full_like(mask, 255))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_logits_are_enlarged_to_the_mask():
    logits, _ = random_case(2, size=(3, 4))
    mask = torch.randint(0, LABELS, (2, 7, 9))
    enlarged = torch.nn.functional.interpolate(logits, (7, 9), mode="bilinear")
    torch.testing.assert_close(pixel_cross_entropy(logits, mask), pixel_cross_entropy(enlarged, mask))


def test_half_precision_is_summed_in_float32():
    logits, mask = random_case(3)
    found = pixel_cross_entropy(logits.detach().to(torch.bfloat16), mask)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, pixel_cross_entropy(logits.detach().to(torch.bfloat16).float(), mask))
