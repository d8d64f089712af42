"""Double attention against loops in float64."""

from __future__ import annotations

import math

import pytest
import torch

from rca_lightning.rca.double_attention import DoubleAttention

C, M, N, H, W = 5, 3, 4, 2, 3


def built() -> DoubleAttention:
    torch.manual_seed(0)
    module = DoubleAttention(C, channels=M, descriptors=N)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


def images() -> torch.Tensor:
    return torch.randn(2, C, H, W, generator=torch.Generator().manual_seed(1))


def softmax(logits: list[float]) -> list[float]:
    weights = [math.exp(value - max(logits)) for value in logits]
    return [weight / sum(weights) for weight in weights]


def project(convolution: torch.nn.Conv2d, cell: list[float]) -> list[float]:
    return [sum(a * b for a, b in zip(row, cell, strict=True)) for row in convolution.weight.flatten(1).tolist()]


def expected(module: DoubleAttention, image: torch.Tensor) -> list[list[float]]:
    """Context of each cell, with plain numbers."""
    cells = [image[:, row, column].tolist() for row in range(H) for column in range(W)]
    content = [project(module.content, cell) for cell in cells]
    gathering = [project(module.gathering, cell) for cell in cells]
    descriptors = []
    for n in range(N):
        weights = softmax([logits[n] for logits in gathering])
        descriptors.append([sum(w * a[m] for w, a in zip(weights, content, strict=True)) for m in range(M)])
    context = []
    for cell in cells:
        shares = softmax(project(module.distribution, cell))
        context.append([sum(s * g[m] for s, g in zip(shares, descriptors, strict=True)) for m in range(M)])
    return context


def test_context_by_loops():
    module, batch = built(), images()
    found = module(batch)
    assert found.shape == (2, M, H, W)
    for image in range(2):
        for index, context in enumerate(expected(module, batch[image])):
            assert found[image, :, index // W, index % W].tolist() == pytest.approx(context, abs=1e-5)


def test_maps_and_tags_change_nothing():
    module, batch = built(), images()
    assert torch.equal(module(batch, torch.randn(2, 3, H, W), torch.ones(2, 3)), module(batch))


def test_context_stays_within_the_image():
    module, batch = built(), images()
    other = batch.clone()
    other[1] = 0
    assert torch.equal(module(batch)[0], module(other)[0])
    assert not torch.allclose(module(batch)[1], module(other)[1])


def test_every_cell_reaches_every_other():
    module, batch = built(), images()
    batch.requires_grad_()
    module(batch)[0, :, 0, 0].sum().backward()
    assert (batch.grad[0].abs().amax(dim=0) > 0).all()
