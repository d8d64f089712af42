"""DeepLab heads: what they compute, on which stages, and that one image is enough to train them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rca_lightning.segmentation.heads import DeepLabV2Head, DeepLabV3PlusHead

LABELS = 5


def test_v2_is_the_sum_of_dilated_classifiers():
    torch.manual_seed(0)
    head = DeepLabV2Head(8, LABELS, rates=(1, 3))
    features = torch.randn(2, 8, 9, 7)
    expected = torch.zeros(2, LABELS, 9, 7)
    for rate, classifier in zip((1, 3), head.classifiers, strict=True):
        # (B, 8 * 9, HW): the nine neighbours that a 3x3 kernel with this dilation reads
        read = F.unfold(features, 3, dilation=rate, padding=rate)
        product = classifier.weight.flatten(1) @ read
        expected += product.view(2, LABELS, 9, 7) + classifier.bias[:, None, None]
    torch.testing.assert_close(head([features]), expected, atol=1e-5, rtol=1e-4)


def test_v2_reads_the_last_stage_at_the_rates_of_the_paper():
    head = DeepLabV2Head(4, LABELS)
    assert [classifier.dilation for classifier in head.classifiers] == [(6, 6), (12, 12), (18, 18), (24, 24)]
    features = torch.randn(1, 4, 3, 3)
    assert torch.equal(head([torch.randn(1, 9, 12, 12), features]), head([features]))


def v3plus() -> DeepLabV3PlusHead:
    torch.manual_seed(1)
    return DeepLabV3PlusHead(16, 12, LABELS, rates=(1, 2))


def test_v3plus_draws_at_the_early_stage():
    assert v3plus()([torch.randn(2, 12, 13, 10), torch.randn(2, 16, 4, 3)]).shape == (2, LABELS, 13, 10)


@pytest.mark.parametrize("part", [0, 1])
def test_v3plus_reads_both_stages(part):
    head = v3plus().eval()
    stages = [torch.randn(1, 12, 8, 8, requires_grad=True), torch.randn(1, 16, 2, 2, requires_grad=True)]
    head(stages).square().sum().backward()
    assert stages[part].grad.abs().sum() > 0


def test_image_pooling_tells_every_cell_of_all_others():
    head = v3plus().eval()
    low, features = torch.randn(1, 12, 16, 16), torch.randn(1, 16, 16, 16)
    changed = features.clone()
    changed[:, :, -1, -1] += 50
    difference = (head([low, features]) - head([low, changed])).abs().sum(1)[0]
    assert difference[0, 0] > 1e-4  # out of the reach of kernels with dilation 2


@pytest.mark.parametrize("make", [lambda: DeepLabV2Head(16, LABELS, rates=(1, 2)), v3plus], ids=["v2", "v3plus"])
def test_one_image_of_one_cell_trains(make):
    head = make().train()
    stages = [torch.randn(1, 12, 4, 4), torch.randn(1, 16, 1, 1)]
    F.cross_entropy(head(stages), torch.zeros_like(head(stages)[:, 0], dtype=torch.long)).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in head.parameters())


@pytest.mark.parametrize("make", [lambda: DeepLabV2Head(16, LABELS), v3plus], ids=["v2", "v3plus"])
def test_training_starts_undecided(make):
    logits = make().eval()([torch.randn(2, 12, 8, 8), torch.randn(2, 16, 4, 4)])
    loss = F.cross_entropy(logits, torch.randint(0, LABELS, logits[:, 0].shape))
    assert loss.item() == pytest.approx(torch.tensor(LABELS).log().item(), rel=0.15)


@pytest.mark.parametrize("make", [lambda: DeepLabV2Head(16, LABELS), v3plus], ids=["v2", "v3plus"])
def test_images_of_a_batch_do_not_touch(make):
    head = make().train()
    for module in head.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.p = 0.0
    low, features = torch.randn(2, 12, 8, 8), torch.randn(2, 16, 4, 4)
    torch.testing.assert_close(head([low, features])[:1], head([low[:1], features[:1]]), atol=1e-5, rtol=1e-4)
