"""Cache of features: what is found again, what is not, and how much room it takes."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from rca_lightning.data import features as module
from rca_lightning.data.dataset import CachedFeatures, TaggedImages
from rca_lightning.data.features import FeatureCache
from rca_lightning.data.records import Record
from rca_lightning.data.sample import collate_features
from rca_lightning.errors import ArgumentError, DatasetNotFoundError, OutputError


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for path in paths:
        Image.new("RGB", (8, 6)).save(path)
    return [Record(path.stem, path, tags=(0,)) for path in paths]


def values(seed: int = 0, *, channels: int = 4) -> torch.Tensor:
    return torch.randn(channels, 3, 4, generator=torch.Generator().manual_seed(seed))


def cache(tmp_path: Path, weights: str = "one", *, scales: tuple[float, ...] = (1.0,), **options) -> FeatureCache:
    made = FeatureCache(tmp_path / "cache", **options)
    made.use({"weights": weights}, scales=scales)
    return made


def test_what_was_written_is_read_by_the_next_run(tmp_path, records):
    first = cache(tmp_path, scales=(0.5, 1.0))
    assert first.missing(records[0], scored=True) == [(0.5, False), (1.0, False)]
    first.write(records[0], 1.0, [values(1)])
    assert first.missing(records[0], scored=True) == first.missing(records[0]) == [(0.5, False)]
    assert first.read(records[0], scored=True) is None, "all scales or none"
    first.write(records[0], 0.5, [values(2)])
    found = cache(tmp_path, scales=(1.0, 0.5)).read(records[0], scored=True)
    for seed, of_scale in zip((1, 2), found, strict=True):
        assert of_scale.dtype == torch.float16
        torch.testing.assert_close(of_scale, values(seed).half()[None])


def test_mirror_images_are_files_of_their_own(tmp_path, records):
    kept = cache(tmp_path)
    kept.use({"weights": "a"}, scales=(1.0,), flip=True)
    kept.write(records[0], 1.0, [values(1)])
    assert kept.read(records[0], scored=True) is None
    assert kept.missing(records[0], scored=True) == [(1.0, True)]
    kept.write(records[0], 1.0, [values(2)], mirrored=True)
    (both,) = kept.read(records[0], scored=True)
    torch.testing.assert_close(both, torch.stack([values(1), values(2)]).half())
    (plain,) = kept.read(records[0])
    torch.testing.assert_close(plain, values(1).half()[None])


def test_training_reads_the_first_scale_as_it_is(tmp_path, records):
    kept = cache(tmp_path)
    kept.use({"weights": "a"}, scales=(1.0, 1.5), flip=True)
    assert kept.views(scored=False) == kept.missing(records[0]) == [(1.0, False)]
    assert kept.views(scored=True) == [(1.0, False), (1.0, True), (1.5, False), (1.5, True)]
    kept.write(records[0], 1.0, [values(1)])
    (found,) = kept.read(records[0])
    torch.testing.assert_close(found, values(1).half()[None])


def test_other_weights_and_changed_photographs_have_other_features(tmp_path, records):
    cache(tmp_path).write(records[0], 1.0, [values()])
    assert cache(tmp_path, "other").read(records[0]) is None
    assert cache(tmp_path).read(records[1]) is None
    os.utime(records[0].image, ns=(1, 1))
    assert cache(tmp_path).read(records[0]) is None


@pytest.mark.parametrize("damage", [b"", b"no array", b"\x93NUMPY\x01\x00\x10"])
def test_a_damaged_file_counts_as_absent(tmp_path, records, damage):
    kept = cache(tmp_path)
    kept.write(records[0], 1.0, [values()])
    kept.path(records[0], 1.0).write_bytes(damage)
    assert kept.read(records[0]) is None
    assert kept.missing(records[0]) == [(1.0, False)]


def test_objects_are_not_unpickled(tmp_path, records):
    kept = cache(tmp_path)
    path = kept.path(records[0], 1.0)
    path.parent.mkdir(parents=True)
    np.save(path, np.array([[[object()]]]), allow_pickle=True)
    assert kept.read(records[0]) is None


def test_a_write_that_fails_leaves_nothing(tmp_path, records, monkeypatch):
    kept = cache(tmp_path)
    monkeypatch.setattr(module.np, "save", lambda file, *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OutputError, match=r"features\.folder=.*disk full.*give a folder with room"):
        kept.write(records[0], 1.0, [values()])
    assert not list(kept.folder.rglob("*.npy"))


def test_features_that_do_not_fit_are_refused_before_the_first(tmp_path, records):
    kept = cache(tmp_path, max_gib=1e-6)
    kept.begin(1000)
    with pytest.raises(OutputError, match=r"features\.max_gib=1e-06: the features need .*; give that, or a smaller"):
        kept.begin(2000)


def test_a_full_disk_is_named_before_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(OutputError, match=r"features\.folder=.* the disk has 0\.0 MiB; give a folder with room"):
        cache(tmp_path).begin(1000)


def test_features_of_other_weights_make_room_the_longest_unused_first(tmp_path, records):
    for age, weights in enumerate(("new", "old", "older"), start=1):
        one = cache(tmp_path, weights)
        one.begin(0)
        one.write(records[0], 1.0, [values()])
        one.release()
        os.utime(one.folder / "key.json", (1000 - age, 1000 - age))
    size = cache(tmp_path, "old").path(records[0], 1.0).stat().st_size
    room = 3 * size + 150  # three photographs and the key files
    cache(tmp_path, "now", max_gib=room / module.GIB).begin(size)
    assert cache(tmp_path, "older").read(records[0]) is None
    assert cache(tmp_path, "new").read(records[0]) is not None


def test_features_that_another_run_reads_are_not_taken_away(tmp_path, records):
    other = cache(tmp_path, "other")
    other.hold()
    other.write(records[0], 1.0, [values()])
    size = other.path(records[0], 1.0).stat().st_size
    mine = cache(tmp_path, max_gib=(1.5 * size + 100) / module.GIB)
    with pytest.raises(OutputError, match=r"features\.max_gib=.*: other runs use .* GiB of it, and this one needs"):
        mine.begin(size)
    assert other.read(records[0]) is not None
    other.release()
    mine.begin(size)
    assert other.read(records[0]) is None
    other.hold()  # made anew
    assert (other.folder / "key.json").is_file()


def test_a_cache_is_used_by_loading_processes(tmp_path, records):
    kept = cache(tmp_path)
    kept.hold()
    kept.write(records[0], 1.0, [values()])
    copied = pickle.loads(pickle.dumps(kept))
    assert copied.read(records[0]) is not None
    copied.release()
    assert not module._remove_unused(kept.folder)


def test_two_processes_write_the_same_features(tmp_path, records):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_often, args=(tmp_path, records[0], seed)) for seed in (1, 2)]
    for writer in writers:
        writer.start()
    kept, seen = cache(tmp_path), set()
    while any(writer.is_alive() for writer in writers):
        found = kept.read(records[0])
        if found is not None:
            seen.add(float(found[0].flatten()[0]))
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert seen <= {float(values(seed).half().flatten()[0]) for seed in (1, 2)}
    assert [path.suffix for path in kept.folder.rglob("*") if path.is_file()] == [".npy"]


def _write_often(folder: Path, record: Record, seed: int) -> None:
    kept = cache(folder)
    for _ in range(50):
        kept.write(record, 1.0, [values(seed)])


def test_tensors_beside_the_features(tmp_path, records):
    kept = cache(tmp_path)
    assert kept.read_tensors("some.pt") is None
    kept.write_tensors("some.pt", {"a": torch.ones(2)})
    found = cache(tmp_path).read_tensors("some.pt")
    assert found is not None
    assert found["a"].tolist() == [1.0, 1.0]
    assert cache(tmp_path, "other").read_tensors("some.pt") is None
    (kept.folder / "some.pt").write_bytes(b"damaged")
    assert kept.read_tensors("some.pt") is None


def test_a_photograph_that_is_gone_has_no_features(tmp_path, records):
    kept = cache(tmp_path)
    kept.write(records[0], 1.0, [values()])
    assert kept.stamp(records[0])[1:] != []
    records[0].image.unlink()
    assert kept.read(records[0]) is None
    assert kept.missing(records[0]) == [(1.0, False)]
    assert kept.stamp(records[0]) == ["a"]


@pytest.mark.parametrize("size", [0.0, -1.0, float("inf")])
def test_no_room_is_refused(tmp_path, size):
    with pytest.raises(ArgumentError, match="max_gib="):
        FeatureCache(tmp_path, max_gib=size)


def test_a_data_set_of_features(tmp_path, records):
    kept = cache(tmp_path)
    images = TaggedImages([*records, Record("d", records[0].image, tags=())], num_classes=2)
    for seed, record in enumerate(records):
        kept.write(record, 1.0, [values(seed)])
    features = CachedFeatures(images, kept)
    batch = collate_features([features[(3, 0)], features[2]])
    assert batch["image_id"] == ["a", "c"]
    assert batch["tags"].tolist() == [[1.0, 0.0], [1.0, 0.0]]
    torch.testing.assert_close(batch["features"][1][0], values(2).half()[None])
    with pytest.raises(DatasetNotFoundError, match="features of d are gone"):
        features[3]


def test_features_stand_beside_a_photograph_that_has_them(tmp_path, records):
    images = TaggedImages(records, num_classes=2)
    images.features = cache(tmp_path)
    images.features.write(records[1], 1.0, [values()])
    assert "features" not in images[0]
    assert images[1]["image"].shape == (3, 6, 8)
    torch.testing.assert_close(images[1]["features"][0], values().half()[None])


def levels(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 6, 8, generator=generator), torch.randn(4, 3, 4, generator=generator)]


def two_levels(tmp_path: Path, **options) -> FeatureCache:
    made = FeatureCache(tmp_path / "cache", **options)
    made.use({"weights": "one"}, scales=(1.0, 1.5), flip=True, levels=2)
    return made


def test_levels_are_files_of_their_own(tmp_path, records):
    kept, record = two_levels(tmp_path), records[0]
    views = kept.views(scored=True)
    for seed, (scale, mirrored) in enumerate(views):
        assert kept.read_levels(record, scored=True) is None
        kept.write(record, scale, levels(seed), mirrored=mirrored)
    assert kept.missing(record, scored=True) == []
    found = kept.read_levels(record, scored=True)
    assert [[tuple(level.shape) for level in of_scale] for of_scale in found] == [[(2, 2, 6, 8), (2, 4, 3, 4)]] * 2
    for scale, of_scale in enumerate(found):
        for level, both in enumerate(of_scale):
            expected = torch.stack([levels(2 * scale + mirrored)[level] for mirrored in (0, 1)])
            torch.testing.assert_close(both, expected.half(), atol=0, rtol=0)
    ((fine, coarse),) = kept.read_levels(record)
    torch.testing.assert_close([fine[0], coarse[0]], [level.half() for level in levels(0)])
    for scale, mirrored in views:  # one is gone
        path = kept.path(record, scale, mirrored=mirrored, level=1)
        content = path.read_bytes()
        path.unlink()
        assert kept.missing(record, scored=True) == [(scale, mirrored)]
        assert kept.read_levels(record, scored=True) is None
        path.write_bytes(content)
    with pytest.raises(ArgumentError, match="levels=2: read several with read_levels"):
        kept.read(record)
    with pytest.raises(ArgumentError, match="features=1: give the maps of 2 levels"):
        kept.write(record, 1.0, levels()[:1])


def test_the_first_level_has_the_name_of_the_only_one(tmp_path, records):
    one, two = cache(tmp_path), two_levels(tmp_path)
    status = records[0].image.stat()
    known = ["a", status.st_size, status.st_mtime_ns, 1.0, False]
    name = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]
    assert one.path(records[0], 1.0).name == two.path(records[0], 1.0).name == f"{name}.npy"
    paths = {
        two.path(records[0], 1.0, mirrored=mirrored, level=level) for mirrored in (False, True) for level in (0, 1)
    }
    assert len(paths) == 4
    one.write(records[0], 1.0, levels()[:1])
    assert one.folder == two.folder
    assert two.missing(records[0])[0] == (1.0, False), "not all levels are there"


def test_all_levels_count_where_room_is_made(tmp_path, records):
    other = cache(tmp_path, "other")
    other.use({"weights": "other"}, scales=(1.0,), levels=2)
    other.begin(0)
    other.write(records[0], 1.0, levels())
    other.release()
    sizes = [other.path(records[0], 1.0, level=level).stat().st_size for level in (0, 1)]
    cache(tmp_path, "now", max_gib=(sum(sizes) + 100) / module.GIB).begin(0)
    assert other.read_levels(records[0]) is not None
    cache(tmp_path, "now", max_gib=(sum(sizes) + 100) / module.GIB).begin(60)
    assert other.read_levels(records[0]) is None
    assert not other.folder.exists()


def test_levels_stand_beside_a_photograph_and_in_a_data_set(tmp_path, records):
    kept = two_levels(tmp_path)
    images = TaggedImages(records, num_classes=2)
    images.features = kept
    kept.write(records[1], 1.0, levels())
    for sample in (images[1], CachedFeatures(images, kept)[1]):
        ((fine, coarse),) = sample["features"]
        torch.testing.assert_close([fine[0], coarse[0]], [level.half() for level in levels()])
