"""Attention prototype by prototype, against plain loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from tests.prediction_runs import with_prototypes

from rca_lightning import RCAModule
from rca_lightning.errors import ArgumentError
from rca_lightning.rca.network import RCANetwork
from rca_lightning.rca.prototype_attention import PrototypeAttention, infer_prototype_attention

CLASSES, K, BACKGROUND = 4, 3, 2


def built(**options) -> RCANetwork:
    torch.manual_seed(0)
    given = {
        "backbone": "resnet14",
        "weights": "none",
        "num_prototypes": K,
        "background_prototypes": BACKGROUND,
        **options,
    }
    module = RCAModule(CLASSES, backbone_mode="trained", output_stride=8, **given)
    return with_prototypes(module).network.eval()


def image(height: int = 40, width: int = 56) -> torch.Tensor:
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("classes", ["tags", "all"])
@pytest.mark.parametrize("normalize", [True, False])
def test_attention_is_the_softmax_over_readable_prototypes(classes: str, normalize: bool):
    network = built(attention_classes=classes, normalize_attention=normalize, attention_temperature=0.3)
    aggregation = network.aggregation
    valid = aggregation.valid.clone()
    valid[[1, K]] = False  # the second of the first class, the first of the second
    aggregation.write(aggregation.prototypes.clone(), valid)
    found = infer_prototype_attention(network, image(), torch.tensor([1.0, 1.0, 0.0, 0.0]))
    with torch.no_grad():
        pixels = network.embed(network.stages(image()[None]))[0].double()
    expected = {}
    for row in range(CLASSES * K + BACKGROUND):
        of_class, number = (row // K, row % K) if row < CLASSES * K else (CLASSES, row - CLASSES * K)
        if valid[row] and (classes == "all" or of_class in (0, 1, CLASSES)):
            label = 0 if of_class == CLASSES else of_class + 1
            expected[label, number] = aggregation.prototypes[row].double()
    assert list(zip(found.labels.tolist(), found.numbers.tolist(), strict=True)) == list(expected)
    for y in range(pixels.shape[1]):
        for x in range(pixels.shape[2]):
            pixel = pixels[:, y, x]
            length = float(pixel.norm()) if normalize else 1.0
            scores = [math.exp(float(pixel @ one) / length / 0.3) for one in expected.values()]
            shares = torch.tensor([score / sum(scores) for score in scores], dtype=torch.float64)
            assert torch.allclose(found.attention[:, y, x].double(), shares, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"attention_classes": "all"}, {"projection": "learned", "embedding_dim": 8}])
@pytest.mark.parametrize("tags", [None, [0.0, 1.0, 0.0, 1.0]])
def test_summed_by_class_it_is_what_the_network_reads(options: dict, tags: list | None):
    compare_with_the_network(built(**options), tags)


@pytest.mark.parametrize("affinity", ["attention", "keys"])
def test_relations_of_cells_are_no_channels_of_the_embeddings(affinity: str):
    pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)
    compare_with_the_network(built(backbone="timm:test_vit", propagation_affinity=affinity), [0.0, 1.0, 0.0, 1.0])


def compare_with_the_network(network: RCANetwork, tags: list | None):
    tags = None if tags is None else torch.tensor(tags)
    found = infer_prototype_attention(network, image(), tags)
    with torch.no_grad():
        read = network(image()[None], None if tags is None else tags[None])
    for index in range(CLASSES):
        of_class = found.attention[found.labels == index + 1].sum(dim=0)
        assert torch.allclose(of_class, read.attention[0, index], atol=1e-5)
    assert torch.allclose(found.attention.sum(dim=0), torch.ones(found.attention.shape[1:]), atol=1e-5)


def test_scale_and_longest_side():
    network = built()
    sizes = [
        tuple(infer_prototype_attention(network, image(64, 96), scale=scale, max_side=side).attention.shape[1:])
        for scale, side in ((1.0, 1000), (0.5, 1000), (2.0, 48))
    ]
    assert sizes == [(8, 12), (4, 6), (4, 6)]


def test_nothing_is_read_without_prototypes():
    torch.manual_seed(0)
    options = {"backbone": "resnet14", "weights": "none", "backbone_mode": "trained"}
    assert infer_prototype_attention(RCAModule(CLASSES, aggregation=False, **options).network.eval(), image()) is None
    assert infer_prototype_attention(RCAModule(CLASSES, **options).network.eval(), image()) is None


@pytest.mark.parametrize(("height", "width"), [(17, 23), (3, 4), (2, 3), (12, 8)])
def test_shares_are_those_of_a_loop_over_pixels(height: int, width: int):
    generator = torch.Generator().manual_seed(2)
    attention = torch.rand(5, 3, 4, generator=generator).softmax(dim=0)
    labels, numbers = torch.tensor([1, 1, 3, 0, 0]), torch.tensor([0, 2, 1, 0, 1])
    mask = torch.randint(0, 3, (height, width), generator=generator)
    mask[0, 0] = 255
    found = PrototypeAttention(attention, labels, numbers).shares(mask)
    total, strongest = [0.0] * 5, [0.0] * 5
    drawn, counts = [0.0] * 5, [0] * 5
    for y in range(height):
        for x in range(width):
            cell = attention[:, math.floor((y + 0.5) * 3 / height), math.floor((x + 0.5) * 4 / width)].double().tolist()
            strongest[cell.index(max(cell))] += 1 / (height * width)
            for m in range(5):
                total[m] += cell[m] / (height * width)
                if int(mask[y, x]) == int(labels[m]):
                    drawn[m] += cell[m]
                    counts[m] += 1
    assert found.everywhere.tolist() == pytest.approx(total)
    assert found.strongest.tolist() == pytest.approx(strongest)
    for m in range(5):
        expected = drawn[m] / counts[m] if counts[m] else math.nan
        assert float(found.drawn[m]) == pytest.approx(expected, nan_ok=True)
    assert math.isnan(found.drawn[2])  # class 3 is drawn nowhere


@pytest.mark.parametrize("shape", [(3,), (1, 3, 4), (0, 4)])
def test_shares_want_one_mask(shape: tuple[int, ...]):
    attention = PrototypeAttention(torch.ones(1, 2, 2), torch.tensor([1]), torch.tensor([0]))
    with pytest.raises(ArgumentError, match="mask"):
        attention.shares(torch.zeros(shape, dtype=torch.uint8))
