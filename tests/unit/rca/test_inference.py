"""Which classes have a map: those of the tags, those that all views decide, none; and a map for each of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rca_lightning.backbones.build import build_backbone
from rca_lightning.pseudo_labels.labels import threshold_background
from rca_lightning.rca.aggregation import SemanticAggregation
from rca_lightning.rca.cam import image_logits, max_normalise
from rca_lightning.rca.inference import ClassMaps, infer_class_maps, multi_scale_flip
from rca_lightning.rca.network import RCANetwork
from rca_lightning.rca.tag_calibration import TagCalibration

L, K = 5, 3
SCALES = (1.0, 0.5)


@pytest.fixture
def network() -> RCANetwork:
    torch.manual_seed(0)
    backbone = build_backbone("resnet14")
    reader = SemanticAggregation(backbone.num_features, L, K, temperature=0.05, background_prototypes=4)
    reader.write(F.normalize(torch.randn_like(reader.prototypes), dim=1), torch.ones_like(reader.valid))
    return RCANetwork(backbone, L, aggregation=reader, second_head=False, fused=True).eval()


def photographs(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 48, 64, generator=torch.Generator().manual_seed(1))


def assert_equal(one: ClassMaps, other: ClassMaps) -> None:
    assert one.classes.tolist() == other.classes.tolist()
    torch.testing.assert_close(one.maps, other.maps, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tag_threshold", [0.49, 0.5, 0.9999])
def test_unknown_tags_are_decided_once_over_all_views(network, tag_threshold):
    images = photographs()
    views = list(multi_scale_flip(images, scales=SCALES))
    with torch.no_grad():
        probabilities = torch.stack([image_logits(network(view).coarse) for view, _ in views]).mean(0).sigmoid()
    above = probabilities > tag_threshold
    expected = [row.nonzero()[:, 0].tolist() or [int(p.argmax())] for row, p in zip(above, probabilities, strict=True)]
    found = infer_class_maps(network, images, scales=SCALES, tag_threshold=tag_threshold)
    assert [image.classes.tolist() for image in found] == expected
    told = torch.zeros(len(images), L)
    for row, classes in enumerate(expected):
        told[row, classes] = 1
    for one, other in zip(found, infer_class_maps(network, images, told, scales=SCALES), strict=True):
        assert_equal(one, other)
        assert (one.maps.amax((1, 2)) == 1).all(), "every class that is kept has a map"


def test_calibration_gives_the_probabilities_and_each_class_its_threshold(network):
    images, generator = photographs(40), torch.Generator().manual_seed(2)
    before = infer_class_maps(network, images, scales=SCALES, tags_by_attention=True)
    views = list(multi_scale_flip(images, scales=SCALES))
    with torch.no_grad():
        logits = torch.stack([image_logits(network(view).coarse) for view, _ in views]).mean(0)
        evidence = torch.stack([network.class_evidence(network.stages(view)) for view, _ in views]).mean(0)
    calibration = TagCalibration(L)
    calibration.fit(logits, evidence, (torch.rand(40, L, generator=generator) < 0.4).float())
    thresholds = torch.linspace(0.2, 0.6, L)
    found = infer_class_maps(
        network, images, scales=SCALES, tags_by_attention=True, calibration=calibration, tag_threshold=thresholds
    )
    for one, other, expected in zip(found, before, calibration(logits, evidence), strict=True):
        torch.testing.assert_close(one.probabilities, expected, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(one.probabilities, other.probabilities, atol=1e-3)
        above = [c for c in range(L) if one.probabilities[c] > thresholds[c]]
        assert one.classes.tolist() == (above or [int(one.probabilities.argmax())])


def test_known_none_and_unknown_tags_in_one_batch(network):
    images = photographs()
    tags = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0], [0.0] * L, [-1.0] * L])
    told, none, unknown = infer_class_maps(network, images, tags, scales=SCALES)
    assert told.classes.tolist() == [1, 3]
    assert_equal(told, infer_class_maps(network, images[:1], tags[:1], scales=SCALES)[0])
    assert_equal(unknown, infer_class_maps(network, images[2:], None, scales=SCALES)[0])
    assert len(unknown.classes)
    assert none.maps.shape == (0, 48, 64)
    assert not threshold_background(none.maps, 0.5).any()


@pytest.mark.parametrize("steps", [0, 1])
def test_photographs_none_of_which_has_a_class_have_no_map_at_any_scale(network, steps):
    found = infer_class_maps(network, photographs(2), torch.zeros(2, L), scales=SCALES, propagation_steps=steps)
    assert [tuple(image.maps.shape) for image in found] == [(0, 48, 64)] * 2


def test_class_without_prototype_is_drawn_from_its_coarse_map(network):
    reader = network.aggregation
    valid = reader.valid.clone()
    valid[3 * K : 4 * K] = False
    reader.write(reader.prototypes.clone(), valid)
    images, tags = photographs(1), torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0]])
    network.coarse_head.conv.weight.data.abs_()
    (found,) = infer_class_maps(network, images, tags, flip=False)
    coarse = infer_class_maps(network, images, tags, final_map="coarse", flip=False)[0]
    torch.testing.assert_close(found.maps[1], coarse.maps[1])
    assert found.maps[1].max() == 1
    only = infer_class_maps(network, images, torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0]]), flip=False)[0]
    torch.testing.assert_close(found.maps[0], only.maps[0])


def test_one_view_alone_reads_the_most_probable_class_if_none_is_likely(network):
    network.coarse_head.conv.weight.data = -network.coarse_head.conv.weight.data.abs()
    images = photographs()
    with torch.no_grad():
        maps = network(images)
        unknown = network(images, torch.full((3, L), -1.0))
    read = maps.attention.amax((2, 3)) > 0
    assert read.sum(1).tolist() == [1, 1, 1]
    assert torch.equal(read.float().argmax(1), image_logits(maps.coarse).argmax(1))
    torch.testing.assert_close(maps.attention, unknown.attention)
    assert max_normalise(maps.attention).amax() == 1


def probabilities_by_loops(network: RCANetwork, image: torch.Tensor) -> torch.Tensor:
    """Mean of the head's probability and of the attention of the strongest cell of 50, over views, in float64."""
    logits, evidence = [], []
    for view, _ in multi_scale_flip(image, scales=SCALES):
        with torch.no_grad():
            maps = network(view)
        logits.append(maps.coarse.double().mean((2, 3))[0])
        prototypes = network.aggregation.prototypes.double()
        cells = []
        for pixel in maps.embeddings.double().flatten(2)[0].T:
            shares = torch.exp(prototypes @ pixel / pixel.norm() / 0.05) * network.aggregation.valid
            of_class = [float(shares[network.aggregation.labels == label].sum() / shares.sum()) for label in range(L)]
            cells.append(of_class)
        strongest = torch.tensor(cells, dtype=torch.float64).sort(dim=0, descending=True).values
        evidence.append(strongest[: max(1, len(cells) // 50)].mean(0))
    by_head, by_attention = torch.stack(logits).mean(0).sigmoid(), torch.stack(evidence).mean(0)
    prototyped = network.has_prototype
    return torch.where(prototyped, (by_head + by_attention) / 2, by_head)


@pytest.mark.parametrize("known", [True, False])
def test_attention_is_half_of_the_image_probability_where_it_is_asked_for(network, known):
    valid = network.aggregation.valid.clone()
    valid[:K] = False  # class 0 has no prototype: its head speaks alone
    network.aggregation.write(network.aggregation.prototypes.clone(), valid)
    image = torch.randn(1, 3, 200, 160, generator=torch.Generator().manual_seed(2))
    tags = torch.ones(1, L) if known else None
    (found,) = infer_class_maps(network, image, tags, scales=SCALES, tags_by_attention=True)
    wanted = probabilities_by_loops(network, image)
    torch.testing.assert_close(found.probabilities.double(), wanted, atol=1e-5, rtol=1e-4)
    (by_head,) = infer_class_maps(network, image, tags, scales=SCALES)
    assert by_head.probabilities[0] == pytest.approx(float(wanted[0]), abs=1e-6)
    assert (by_head.probabilities[1:] - found.probabilities[1:]).abs().min() > 1e-3
    if not known:
        assert found.classes.tolist() == [label for label in range(L) if wanted[label] > 0.5] or [int(wanted.argmax())]


def test_without_prototypes_the_head_speaks_alone(network):
    network.aggregation.write(network.aggregation.prototypes.clone(), torch.zeros_like(network.aggregation.valid))
    (one,) = infer_class_maps(network, photographs(1), scales=SCALES, tags_by_attention=True)
    (other,) = infer_class_maps(network, photographs(1), scales=SCALES)
    torch.testing.assert_close(one.probabilities, other.probabilities)
