"""Outlines from cached features, and a drawn atlas in a file."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from tests import frozen_fits

from rca_lightning.atlas.atlas import AtlasClass, draw_atlas
from rca_lightning.atlas.crops import Photographs
from rca_lightning.atlas.outlines import ImageRegions
from rca_lightning.atlas.page import IndexEntry, Row, Tile
from rca_lightning.atlas.stored import load_atlas, save_atlas
from rca_lightning.callbacks import feature_cache
from rca_lightning.callbacks.region_memory import RegionMemoryCallback


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A frozen module after two rounds, with its memory, its photographs and the cache of their features."""
    folder = tmp_path_factory.mktemp("cached_outlines")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_cache, "compute_dtype", lambda device, weights: weights)  # as without a cache
        module = frozen_fits.frozen()
        _, trainer = frozen_fits.fit(frozen_fits.generated(folder), folder, module)
    memory = next(part for part in trainer.callbacks if isinstance(part, RegionMemoryCallback)).memory
    data = trainer.datamodule
    return module.eval(), memory, data.cached_features().images, data.features


def test_outlines_from_the_cache_are_those_of_the_network(fitted):
    module, memory, images, cache = fitted
    photographs = Photographs(images.whole(), cache=cache)
    compared = different = 0
    for record in images.records:
        sample = photographs.read(record.image_id)
        features = photographs.features(record.image_id)
        assert features.dtype == torch.float16
        options = {"region_map": "attention", "propagation_steps": 1, "background_threshold": 0.5}
        computed = ImageRegions(module.network, sample["image"], sample["tags"], **options)
        cached = ImageRegions(module.network, sample["image"], sample["tags"], features=features, **options)
        pairs = [(computed.of_class(label), cached.of_class(label)) for label in record.tags]
        embedding = memory.embeddings[6, 0]
        pairs.append((computed.of_background(embedding), cached.of_background(embedding)))
        for first, second in pairs:
            assert (first is None) == (second is None)
            if first is not None:
                assert first.shape == second.shape == tuple(sample["image"].shape[1:])
                compared += first.size
                different += int((first != second).sum())
    assert compared > 0
    assert different <= 0.005 * compared  # half precision moves a line by less than a pixel


def test_no_backbone_runs_for_photographs_in_the_cache(fitted, tmp_path):
    module, memory, images, cache = fitted
    seen, done = [], []
    hook = module.network.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    with_cache = draw_atlas(module, memory, images, regions=2, cache=cache, each=lambda *counts: done.append(counts))
    assert seen == []
    assert done == [(number, len(done)) for number in range(1, len(done) + 1)]
    without = draw_atlas(module, memory, images, regions=2)
    assert len(seen) == len(done)
    shown = {tile.left for drawn in with_cache for row in drawn.rows for tile in row.tiles}
    path = cache.path(next(record for record in images.records if record.image_id in shown), cache.scales[0])
    path.rename(tmp_path / "away")
    seen.clear()
    draw_atlas(module, memory, images, regions=2, cache=cache)
    hook.remove()
    (tmp_path / "away").rename(path)
    assert seen == [1]  # the one that the cache does not hold
    for first, second in zip(with_cache, without, strict=True):
        assert (first.value, first.subtitle) == (second.value, second.subtitle)
        for one, other in zip(first.rows, second.rows, strict=True):
            assert [tile.left for tile in one.tiles] == [tile.left for tile in other.tiles]


def test_fewer_prototypes_are_those_of_most_regions_and_the_counts_are_of_all(fitted):
    module, memory, images, cache = fitted
    every = draw_atlas(module, memory, images, regions=1, cache=cache)
    fewer = draw_atlas(module, memory, images, regions=1, prototypes=1, cache=cache)
    assert max(len(drawn.rows) for drawn in every) > 1
    for all_drawn, drawn in zip(every, fewer, strict=True):
        assert drawn.subtitle == all_drawn.subtitle
        assert drawn.entry.prototypes == all_drawn.entry.prototypes
        assert [row.title for row in drawn.rows] == [row.title for row in all_drawn.rows[:1]]


def test_stored_atlas_is_read_again_and_not_that_of_another_model(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (144, 144, 3), dtype=np.uint8)
    rows = (
        Row("prototype 2", ("3 regions",), 1.0, (Tile(None, "gone", "0.90"), Tile(picture, "a/é", "0.80"))),
        Row("prototype 1", ("1 region",), 0.25, (Tile(255 - picture, "b", "0.70"),)),
    )
    cat = AtlasClass(1, IndexEntry("cat", "001_cat.png", 4, 3, 2, 0.5, 0.25), "two", rows)
    nothing = AtlasClass(2, IndexEntry("dog", None, 0, 0, 0, math.nan, math.nan), "none", ())
    path = tmp_path / "atlas.npz"
    assert load_atlas(path, key="1") is None
    save_atlas(path, [cat, nothing], key="1")
    first, second = load_atlas(path, key="1")
    assert (first.value, first.entry, first.subtitle) == (cat.value, cat.entry, cat.subtitle)
    assert [dataclasses.replace(row, tiles=()) for row in first.rows] == [
        dataclasses.replace(row, tiles=()) for row in rows
    ]
    for row, expected in zip(first.rows, rows, strict=True):
        assert [(tile.left, tile.right) for tile in row.tiles] == [(tile.left, tile.right) for tile in expected.tiles]
    assert first.rows[0].tiles[0].picture is None
    assert np.array_equal(first.rows[0].tiles[1].picture, picture)
    assert np.array_equal(first.rows[1].tiles[0].picture, 255 - picture)
    assert (second.entry.page, second.rows) == (None, ())
    assert math.isnan(second.entry.between)
    assert load_atlas(path, key="2") is None
    path.write_bytes(path.read_bytes()[:-40])
    assert load_atlas(path, key="1") is None
