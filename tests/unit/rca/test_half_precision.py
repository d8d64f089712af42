"""Sums over the cells of a photograph in float16, whose largest number is 65504."""

from __future__ import annotations

import pytest
import torch

from rca_lightning.rca.cam import image_logits
from rca_lightning.rca.network import RCANetwork
from rca_lightning.rca.regions import pool_regions
from rca_lightning.rca.standardization import Standardization
from rca_lightning.segmentation.heads import DeepLabV3PlusHead
from rca_lightning.segmentation.network import pixel_cross_entropy


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cells", [1, 3, 1000, 128 * 128])
def test_mean_of_a_region_does_not_overflow(dtype: torch.dtype, cells: int):
    generator = torch.Generator().manual_seed(cells)
    features = (200 + 8 * torch.rand(1, 4, 128, 128, generator=generator)).to(dtype)
    masks = (torch.arange(128 * 128) < cells).reshape(1, 1, 128, 128)
    found = pool_regions(features, masks).embeddings
    expected = features[0].double()[:, masks[0, 0]].mean(dim=1)
    torch.testing.assert_close(found[0].double(), expected, rtol=0.01, atol=0)


def test_mean_of_a_region_is_as_exact_as_its_sum():
    """The mask is divided by a power of two, which changes no digit of float32."""
    features, masks = torch.randn(2, 8, 9, 7), torch.rand(2, 3, 9, 7) > 0.4
    found = pool_regions(features, masks)
    for embedding, image, label in zip(found.embeddings, found.images, found.labels, strict=True):
        own = masks[image, label]
        torch.testing.assert_close(
            embedding.double(), features[image].double()[:, own].mean(dim=1), rtol=1e-5, atol=1e-6
        )


def test_gradient_of_a_region_is_one_over_its_cells():
    features = torch.randn(1, 2, 4, 5, requires_grad=True)
    masks = (torch.arange(20) < 7).reshape(1, 1, 4, 5)
    pool_regions(features, masks).embeddings.sum().backward()
    torch.testing.assert_close(features.grad, masks.expand(-1, 2, -1, -1) / 7)


def test_other_means_over_cells_do_not_overflow():
    features = torch.full((1, 4, 128, 128), 200.0, dtype=torch.float16)
    assert image_logits(features).tolist() == [[200.0] * 4]
    standardization = Standardization(4)
    wide = (torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(0)) * 300).half()
    assert bool(torch.isfinite(standardization(wide)).all())
    torch.testing.assert_close(
        standardization.running_var, 0.9 + 0.1 * wide.float().var(dim=(0, 2, 3)), rtol=1e-2, atol=0
    )
    assert bool(torch.isfinite(features.mean(dim=(2, 3))).all())  # as the image pooling of DeepLab v3+ computes it
    head = DeepLabV3PlusHead(4, 4, 3).half().eval()
    assert bool(torch.isfinite(head.pooled(features.mean(dim=(2, 3), keepdim=True))).all())
    logits = torch.full((1, 3, 128, 128), 60.0, dtype=torch.float16)
    logits[:, 0] = 0
    assert float(pixel_cross_entropy(logits, torch.zeros(1, 128, 128, dtype=torch.long))) == pytest.approx(
        60.69, abs=0.01
    )


def test_stages_of_two_sizes_are_averaged_without_overflow():
    class Stages(torch.nn.Module):
        stage_channels = (4, 4)
        num_features = 4

    network = RCANetwork(Stages(), 2, embedding_stages=2, standardize=False)  # type: ignore[arg-type]
    stages = [torch.full((1, 4, 256, 256), 6e4).half(), torch.full((1, 4, 2, 2), 6e4).half()]
    assert bool(torch.isfinite(network.embed(stages)).all())
