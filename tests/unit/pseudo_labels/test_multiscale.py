"""Seeds averaged over scales and flips, with a network that can be computed by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rca_lightning.rca.inference import ClassMaps, infer_class_maps
from rca_lightning.rca.network import ActivationMaps

L = 4


class Brightness(nn.Module):
    """Stride 4; map of class c is linear in the pixels, with a slope along x, so that mirroring is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[tuple[int, ...], torch.Tensor | None]] = []
        weight = torch.randn(L, 3, generator=torch.Generator().manual_seed(0))
        self.register_buffer("weight", weight)

    def stages(self, images: torch.Tensor) -> list[torch.Tensor]:
        self.calls.append((tuple(images.shape), None))
        self.images = images
        return [F.avg_pool2d(images, 4, ceil_mode=True)]

    def split(self, stages: list[torch.Tensor]) -> tuple[list[torch.Tensor], None]:
        return stages, None

    def coarse_head(self, pooled: torch.Tensor) -> torch.Tensor:
        return torch.einsum("lc,bchw->blhw", self.weight, pooled)

    def forward(self, images: torch.Tensor) -> ActivationMaps:
        return self.read(self.stages(images))

    def read(self, stages: list[torch.Tensor], tags: torch.Tensor | None = None) -> ActivationMaps:
        (pooled,) = stages
        self.calls[-1] = (self.calls[-1][0], tags)
        coarse = self.coarse_head(pooled)
        slope = torch.linspace(0.5, 1.5, pooled.shape[3])
        return ActivationMaps(pooled, coarse, refined=coarse * slope, attention=coarse.abs())


def images(batch: int = 2, height: int = 12, width: int = 16) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def resize(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def by_peak(plane: torch.Tensor) -> torch.Tensor:
    plane = plane.clamp_min(0)
    return plane / plane.max() if plane.max() > 1e-5 else plane * 0


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.5, 1.5), (0.5, 2.0)])
@pytest.mark.parametrize("final_map", ["coarse", "refined"])
def test_average_of_all_views(final_map, scales, flip):
    network, photos = Brightness(), images()
    tags = torch.tensor([[1, 0, 1, 0], [1, 1, 1, 1]])
    found = infer_class_maps(network, photos, tags, final_map=final_map, scales=scales, flip=flip)
    views, logits = [], []
    for scale in scales:
        size = (round(12 * scale), round(16 * scale))
        # Shrinking averages over all pixels, as image libraries do.
        scaled = F.interpolate(photos, size, mode="bilinear", antialias=True) if scale < 1 else resize(photos, size)
        for mirrored in [False, True][: 1 + flip]:
            maps = network(torch.flip(scaled, [3]) if mirrored else scaled)
            read = getattr(maps, final_map).clamp_min(0)
            views.append(torch.flip(read, [3]) if mirrored else read)
            logits.append(maps.coarse.mean(dim=(2, 3)))
    finest = max((view.shape for view in views), key=lambda shape: shape[2] * shape[3])
    common = [view if view.shape == finest else resize(view, finest[2:]) for view in views]
    mean = sum(common) / len(common)
    probabilities = (sum(logits) / len(logits)).sigmoid()
    for image in range(2):
        kept = [label for label in range(L) if tags[image, label]]
        assert found[image].classes.tolist() == kept
        for place, label in enumerate(kept):
            expected = by_peak(resize(mean[image : image + 1, label : label + 1], (12, 16))[0, 0])
            torch.testing.assert_close(found[image].maps[place], expected)
        torch.testing.assert_close(found[image].probabilities, probabilities[image])


def test_each_scale_and_mirror_image_is_looked_at_once_with_the_tags():
    network, tags = Brightness(), torch.ones(2, L)
    infer_class_maps(network, images(), tags, scales=(0.5, 1.0), flip=True)
    assert [shape for shape, _ in network.calls] == [(2, 3, 12, 16)] * 2 + [(2, 3, 6, 8)] * 2
    assert all(torch.equal(given, tags > 0) for _, given in network.calls)


def test_shrunk_photographs_lose_no_detail_to_aliasing():
    network = Brightness()
    stripes = torch.arange(32).remainder(4).eq(0).float().expand(1, 3, 32, 32)  # every fourth column
    infer_class_maps(network, stripes, torch.ones(1, L), scales=(0.25,), flip=False)
    assert (network.images[:, :, :, 2:-2] - 0.25).abs().max() < 0.1  # without averaging: 0 everywhere


def test_seeds_of_a_mirrored_photograph_are_mirrored_with_flip():
    seeds = infer_class_maps(Brightness(), images(), torch.ones(2, L), flip=True)
    mirrored = infer_class_maps(Brightness(), images().flip(3), torch.ones(2, L), flip=True)
    for first, second in zip(seeds, mirrored, strict=True):
        torch.testing.assert_close(first.maps, second.maps.flip(2))


def test_maps_are_in_range_at_the_size_of_the_photograph():
    for seeds in infer_class_maps(Brightness(), images(height=13, width=9), torch.ones(2, L), scales=(1.0, 0.7)):
        assert seeds.maps.shape == (L, 13, 9)
        assert seeds.maps.dtype == torch.float32
        assert seeds.maps.min() >= 0
        peaks = seeds.maps.amax(dim=(1, 2))
        assert ((peaks - 1).abs().lt(1e-6) | (peaks == 0)).all()


def test_unknown_tags_are_the_probable_ones_or_the_most_probable():
    photos = images()
    probabilities = infer_class_maps(Brightness(), photos, flip=False)[0].probabilities
    for threshold in (0.0, float(probabilities.median()), 0.999):
        for seeds in infer_class_maps(Brightness(), photos, flip=False, tag_threshold=threshold):
            values = seeds.probabilities.tolist()
            above = [label for label, value in enumerate(values) if value > threshold]
            assert seeds.classes.tolist() == (above or [values.index(max(values))])
            assert len(seeds.maps) == len(seeds.classes)


def test_image_without_a_tag_keeps_no_map():
    seeds: ClassMaps = infer_class_maps(Brightness(), images(), torch.tensor([[0] * L, [0, 0, 0, 1]]))[0]
    assert seeds.maps.shape == (0, 12, 16)
    assert seeds.classes.tolist() == []
    assert seeds.classes.dtype == torch.int64
    assert seeds.probabilities.shape == (L,)


def test_no_graph_is_built():
    network = Brightness()
    network.weight.requires_grad_()
    seeds = infer_class_maps(network, images(), torch.ones(2, L))[0]
    assert not seeds.maps.requires_grad
    assert not seeds.probabilities.requires_grad
