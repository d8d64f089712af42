"""RCA behind a transformer of timm: maps against plain loops, fits with and without a cache of features."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tests.frozen_fits import TRAIN, data, fit, generated
from tests.unit.backbones.plain_transformer import (
    plain_attention_affinity,
    plain_key_affinity,
    random_transformer,
    run_plainly,
)

from rca_lightning.backbones.base import enlarge_to_whole_cells
from rca_lightning.callbacks import feature_cache
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.modules.seed_prediction import _views
from rca_lightning.pseudo_labels.generator import PseudoLabelGenerator
from rca_lightning.pseudo_labels.propagation import random_walk
from rca_lightning.rca.inference import read_class_maps
from rca_lightning.segmentation.frozen_segmenter import FrozenSegmenter

timm = pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)

KINDS = ("cosine", "attention", "keys")
SMALL = "timm:vit_tiny_patch16_224"


def module_of(backbone: str, **options) -> RCAModule:
    torch.manual_seed(0)
    options = {"num_prototypes": 2, "background_prototypes": 3, "embedding_dim": 8, **options}
    return RCAModule(6, backbone=backbone, weights="none", backbone_mode="frozen", **options)


def ready(name: str, **options) -> RCAModule:
    """A module with random components and prototypes behind a random transformer that tells its tokens apart."""
    module = module_of(f"timm:{name}", **options)
    network = module.network
    network.backbone.load_state_dict(random_transformer(name).state_dict())
    network.pca.weight.normal_()
    network.pca.bias.normal_()
    network.pca.learned.fill_(True)
    prototypes = F.normalize(torch.randn_like(network.aggregation.prototypes), dim=1)
    network.aggregation.write(prototypes, torch.ones(15, dtype=torch.bool))
    return module.double().eval()


def plain_map(module: RCAModule, image: torch.Tensor, label: int, kind: str) -> torch.Tensor:
    """The final map `(H, W)` of one class, tagged alone, over the photograph and its mirror image."""
    network = module.network
    backbone, aggregation = network.backbone, network.aggregation
    own = [row for row, of in enumerate(aggregation.labels.tolist()) if of in (label, 6)]
    total = 0
    for mirrored in (False, True):
        view = enlarge_to_whole_cells((image.flip(2) if mirrored else image)[None], backbone.output_stride)[0]
        run = run_plainly(backbone.model, view * backbone._scale + backbone._shift, patch=backbone.output_stride)
        features = torch.cat(run.maps[-network.embedding_stages :])
        height, width = features.shape[1:]
        cells = [network.pca.weight @ cell + network.pca.bias for cell in features.flatten(1).T]
        attended = []
        for cell in cells:
            cosines = [float(cell @ q / (cell.norm() * q.norm())) for q in aggregation.prototypes[own]]
            weights = [math.exp(cosine / aggregation.temperature) for cosine in cosines]
            attended.append(sum(weights[:2]) / sum(weights))
        if kind == "cosine":
            affinity = [[max(0.0, float(a @ b / (a.norm() * b.norm()))) ** 2 for b in cells] for a in cells]
        elif kind == "keys":
            affinity = (plain_key_affinity(run) ** 2).tolist()
        else:
            affinity = plain_attention_affinity(run, layers=8).tolist()
        moved = [sum(a * m for a, m in zip(row, attended, strict=True)) / sum(row) for row in affinity]
        of_view = torch.tensor(moved, dtype=torch.float64).reshape(1, 1, height, width)
        total = total + (of_view.flip(3) if mirrored else of_view) / 2
    enlarged = F.interpolate(total, image.shape[1:], mode="bilinear", align_corners=False)[0, 0]
    return enlarged / enlarged.max()


@pytest.mark.parametrize(
    ("name", "kind", "size", "stages"),
    [
        ("vit_small_patch14_dinov2", "attention", (45, 59), 1),
        ("vit_small_patch14_reg4_dinov2", "attention", (42, 56), 2),
        ("vit_small_patch14_reg4_dinov2", "keys", (17, 99), 1),
        ("vit_base_patch16_224", "cosine", (33, 47), 2),
    ],
)
@torch.no_grad()
def test_masks_of_padded_and_odd_sizes_equal_plain_loops(name, kind, size, stages):
    module = ready(name, propagation_affinity=kind, embedding_stages=stages)
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    tags = torch.zeros(2, 6)
    tags[0, 1] = tags[1, 4] = 1
    found = module.seeds(images, tags)
    for image, label, maps in zip(images, (1, 4), found, strict=True):
        expected = plain_map(module, image, label, kind)
        torch.testing.assert_close(maps.maps[0].double(), expected, rtol=1e-5, atol=1e-5)
        assert expected.std() > 0.003
        threshold = float(expected.mean())
        undecided = (expected - threshold).abs() < 1e-5
        assert torch.equal((maps.maps[0] > threshold) | undecided, (expected > threshold) | undecided)


@pytest.mark.parametrize("kind", ["attention", "keys"])
@torch.no_grad()
def test_walk_goes_by_the_relations_of_a_transformer(kind):
    """Behind a photograph and its mirror image; of attention a mirrored cell has another place in every row."""
    module = ready("vit_small_patch14_dinov2", propagation_affinity=kind, flip=False)
    module.keeps_features = True
    image, tags = torch.randn(1, 3, 42, 70, dtype=torch.float64), torch.eye(6)[:1]
    relation = module.network.split(module.network.stages(image))[1].float()
    [alone] = module.seeds(image, tags)
    kept = alone.rows if kind == "attention" else alone.features
    assert (alone.features is None) == (kind == "attention")
    torch.testing.assert_close(kept, relation[0])
    module.hparams["flip"] = True
    [both] = module.seeds(image, tags)
    mirrored = module.network.split(module.network.stages(image.flip(3)))[1].float()[0]
    if kind == "attention":
        place = torch.arange(15).reshape(3, 5).flip(1).flatten()
        rows = mirrored.flatten(1)[place][:, place].reshape(15, 3, 5)
        torch.testing.assert_close(both.rows, (relation[0] + rows) / 2)
        # The relations of the mirror image are not those of the photograph: positions have embeddings.
        assert not torch.allclose(rows, relation[0], rtol=1e-2)
    else:
        torch.testing.assert_close(both.features, (relation[0] + mirrored.flip(2)) / 2)
    generator = PseudoLabelGenerator(refine=("random_walk",), background_threshold=0.5)
    drawn = generator.draw(generator.score(both, torch.zeros(3, 42, 70)))
    scores = torch.cat([torch.full((1, 42, 70), 0.5), both.maps])[None]
    coarse = F.interpolate(scores, (3, 5), mode="area")
    features = (both.rows if kind == "attention" else both.features)[None]
    walked = F.interpolate(random_walk(coarse, features, by_rows=kind == "attention"), (42, 70), mode="bilinear")
    assert torch.equal(drawn > 0, walked[0, 1] > walked[0, 0])


@torch.no_grad()
def test_segmenter_propagates_by_the_attention_of_its_first_stage():
    first = ready("vit_small_patch14_dinov2", propagation_affinity="attention")
    segmenter = FrozenSegmenter(first.network, first.tag_calibration, tags_by_attention=False).double().eval()
    for projection in segmenter.projections:
        projection.weight.normal_(std=projection.weight.shape[1] ** -0.5)
        projection.learned.fill_(True)
    segmenter.classifier.weight.normal_()
    segmenter.classifier.fitted.fill_(True)
    images, tags = torch.randn(1, 3, 40, 70, dtype=torch.float64), torch.ones(1, 6)
    views = segmenter.views(images)
    before, _ = segmenter.unwalked(views, tags, propagation_steps=0, propagation_power=2.0)
    found, _ = segmenter.unwalked(views, tags, propagation_steps=1, propagation_power=2.0)
    backbone = first.network.backbone
    view = enlarge_to_whole_cells(images, 14)[0] * backbone._scale + backbone._shift
    affinity = plain_attention_affinity(run_plainly(backbone.model, view, patch=14), layers=8)
    expected = before.double().flatten(2)[0] @ (affinity / affinity.sum(dim=1, keepdim=True)).T
    torch.testing.assert_close(found.double().flatten(2)[0], expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found, before, rtol=0.01)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return generated(tmp_path_factory.mktemp("images"))


@pytest.mark.parametrize("kind", KINDS)
def test_fit_from_a_full_cache_equals_the_first(root, tmp_path, kind):
    states, seen = [], []
    for _ in range(2):
        module = module_of(SMALL, propagation_affinity=kind, embedding_stages=2)
        module.network.backbone.model.patch_embed.register_forward_hook(lambda *_: seen.append(len(states)))
        fit(root, tmp_path, module, epochs=3)
        states.append(module.state_dict())
    assert len(seen) >= TRAIN
    assert set(seen) == {0}
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_maps_of_cached_features_are_those_of_the_photographs(root, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(feature_cache, "compute_dtype", lambda device, weights=torch.float32: torch.float32)
    module = module_of(SMALL, propagation_affinity=kind, flip=True)
    fit(root, tmp_path, module, epochs=2)
    module.eval()
    photographs = data(root)
    photographs.setup("validate")
    cache = feature_cache.FeatureCacheCallback(str(tmp_path / "features")).open(module)
    for row in range(3):
        sample = photographs._eval[row]
        [views] = cache.read(photographs._eval.records[row], scored=True)
        cells = 16
        assert views.shape[1] == 8 + {"cosine": 0, "attention": cells, "keys": 192}[kind]
        weight = module.network.coarse_head.conv.weight
        [cached] = read_class_maps(module.network, _views([views], weight), sample["tags"][None], size=(64, 64),
                                   **module._reading())  # fmt: skip
        [direct] = module.seeds(sample["image"][None], sample["tags"][None])
        torch.testing.assert_close(cached.maps, direct.maps, rtol=0, atol=5e-3)
