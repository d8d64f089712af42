"""The linear head: what it computes, and that a step of ordinary length is stable."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rca_lightning.segmentation.heads import LinearHead

LABELS = 5


def features(count: int = 4) -> torch.Tensor:
    """Like those of a trained network: after a ReLU, with a mean of their own in every channel."""
    generator = torch.Generator().manual_seed(0)
    centre = 10 * torch.rand(1, 64, 1, 1, generator=generator)
    return F.relu(centre + torch.randn(count, 64, 6, 5, generator=generator))


def test_is_one_linear_map_of_standardised_features():
    torch.manual_seed(0)
    head, batch = LinearHead(64, LABELS).train(), features()
    found = head([torch.zeros(1), batch])
    mean, deviation = batch.mean((0, 2, 3)), batch.var((0, 2, 3), correction=0).add(1e-5).sqrt()
    cells = (batch.permute(0, 2, 3, 1) - mean) / deviation  # (B, h, w, C)
    expected = cells @ head.classifier.weight.flatten(1).T + head.classifier.bias
    torch.testing.assert_close(found, expected.permute(0, 3, 1, 2), atol=1e-5, rtol=1e-4)


def test_a_cell_does_not_depend_on_its_surroundings():
    head, batch = LinearHead(64, LABELS).eval(), features(1)
    changed = batch.clone()
    changed[:, :, 2:, 2:] += 5
    assert torch.equal(head([batch])[..., :2, :2], head([changed])[..., :2, :2])


def test_training_starts_undecided():
    logits = LinearHead(64, LABELS).train()([features()])
    loss = F.cross_entropy(logits, torch.randint(0, LABELS, logits[:, 0].shape))
    assert loss.item() == pytest.approx(torch.tensor(LABELS).log().item(), rel=0.1)


def test_converges_at_a_rate_at_which_features_with_a_mean_diverge():
    torch.manual_seed(0)
    batch = features(2)
    target = (batch[:, :LABELS] - batch[:, :LABELS].mean((0, 2, 3), keepdim=True)).argmax(1)
    plain = torch.nn.Conv2d(64, LABELS, 1)
    losses = {}
    for name, head, read in (("plain", plain, lambda: plain(batch)), ("linear", LinearHead(64, LABELS), None)):
        read = read or (lambda head=head: head([batch]))
        optimizer = torch.optim.SGD(head.parameters(), lr=0.5)
        for _ in range(30):
            loss = F.cross_entropy(read(), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[name] = F.cross_entropy(read(), target).item()
    assert losses["linear"] < 0.7
    assert losses["plain"] > 2 * losses["linear"]
