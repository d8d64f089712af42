"""Maps lie on the photograph also where the output stride does not divide its sides."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rca_lightning.backbones.base import Backbone, enlarge_to_whole_cells
from rca_lightning.backbones.vgg import VGG16
from rca_lightning.export.program import Segmenter, export_program
from rca_lightning.rca.inference import infer_class_maps
from rca_lightning.rca.network import RCANetwork
from rca_lightning.segmentation.inference import label_probabilities
from rca_lightning.segmentation.network import SegmentationNetwork

STRIDE = 16


class Bright(Backbone):
    """Each cell has the brightest pixel of its square: where a map shows a spot, a photograph has it."""

    def __init__(self) -> None:
        super().__init__()
        self.stage_channels, self.stage_strides, self.output_stride = [2], [STRIDE], STRIDE

    def forward(self, images: Tensor) -> list[Tensor]:
        spots = F.max_pool2d(enlarge_to_whole_cells(images, STRIDE), STRIDE)[:, :1]
        return [torch.cat([spots, 1 - spots], dim=1)]

    def stages(self) -> list[list[nn.Module]]:
        return []


def bright_vgg() -> VGG16:
    """The same of a VGG16: every convolution hands its first channel on."""
    backbone = VGG16(output_stride=STRIDE)
    for layer in backbone.features:
        if isinstance(layer, nn.Conv2d):
            layer.weight.data.zero_()[0, 0, 1, 1] = 1
    return backbone


def with_spot(size: tuple[int, int], place: tuple[int, int]) -> Tensor:
    image = torch.zeros(1, 3, *size)
    rows, columns = (slice(max(0, at - 1), at + 2) for at in place)
    image[:, :, rows, columns] = 1
    return image


def centre(found: Tensor) -> tuple[float, float]:
    """Middle of where a map `(H, W)` is near its maximum."""
    rows, columns = torch.nonzero(found >= 0.999 * found.max(), as_tuple=True)
    return float(rows.float().mean()), float(columns.float().mean())


PLACES = [(4, 4), (60, 120), (124, 200), (126, 203)]


def distance(found: tuple[float, float], place: tuple[int, int]) -> float:
    return max(abs(a - b) for a, b in zip(found, place, strict=True))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("size", [(128, 208), (129, 209), (135, 205)])
@pytest.mark.parametrize("backbone", [Bright, bright_vgg], ids=["stand-in", "vgg16"])
def test_class_maps_show_a_spot_where_the_photograph_has_it(backbone, size, place):
    network = RCANetwork(backbone(), 1, standardize=False).eval()
    network.coarse_head.conv.weight.data.zero_()[:, 0] = 1
    [seeds] = infer_class_maps(network, with_spot(size, place), torch.ones(1, 1), final_map="coarse", flip=False)
    # A cell shows its middle, and the enlarged spot may touch the next one.
    assert distance(centre(seeds.maps[0]), place) <= STRIDE / 2 + 2


@pytest.mark.parametrize("place", PLACES)
@torch.no_grad()
def test_label_images_and_exported_ones_do_too(place):
    network = SegmentationNetwork(Bright(), "linear", 2).eval()
    classifier = network.head.classifier
    classifier.weight.copy_(torch.tensor([[-9.0, 9.0], [9.0, -9.0]])[:, :, None, None])
    image = with_spot((129, 209), place)
    inferred = label_probabilities(network, image, flip=False)[0, 1]
    assert distance(centre(inferred), place) <= STRIDE / 2 + 2
    exported = Segmenter(network)
    exported.mean.zero_()
    exported.std.fill_(1)
    assert distance(centre(exported(image)[0, 1]), place) <= STRIDE / 2 + 2


@pytest.mark.parametrize("size", [(32, 48), (33, 48), (1, 7)])
def test_sizes(size):
    images = torch.randn(2, 3, *size)
    enlarged = enlarge_to_whole_cells(images, STRIDE)
    assert enlarged.shape[2:] == tuple(-(-side // STRIDE) * STRIDE for side in size)
    if size == (32, 48):
        assert enlarged is images


def test_exported_program_serves_every_size():
    export_program(SegmentationNetwork(Bright(), "linear", 2).eval())  # it is compared at another size
