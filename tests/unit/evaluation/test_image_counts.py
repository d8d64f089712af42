"""Counts of single images against loops over their pixels, and the file that they are kept in."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.evaluation.counted_images import (
    CLASSES,
    band,
    blocks,
    confusion,
    count_labels,
    count_seeds,
    drawn,
    label_pairs,
    miou,
    seed_images,
)

from rca_lightning.errors import ArgumentError, DataError, DatasetNotFoundError
from rca_lightning.evaluation.counting import ImageCounter, near_outlines
from rca_lightning.evaluation.image_counts import ImageCounts, ids_digest, mean_iou
from rca_lightning.evaluation.label_iou import LabelEvaluation
from rca_lightning.evaluation.seed_iou import DEFAULT_THRESHOLDS, SeedIoU


@pytest.mark.parametrize("threshold", [0.05, 0.35, 0.5, 0.95])
def test_seeds_of_each_image_equal_a_loop_at_any_threshold(threshold):
    images = seed_images(6)
    counts = count_seeds(images)
    assert counts.thresholds == DEFAULT_THRESHOLDS
    expected = [confusion(drawn(maps, threshold), mask.numpy()) for maps, mask in images]
    np.testing.assert_array_equal(counts.confusion(threshold), sum(expected))
    ((rows, parts),) = counts.by_image(threshold)
    assert rows == slice(0, 6)
    for index, matrix in enumerate(expected):
        square = matrix[:, :-1]
        np.testing.assert_array_equal(parts[index], [np.diag(square), matrix.sum(1), square.sum(0)])


def test_labels_of_each_image_equal_a_loop():
    pairs = label_pairs(5)
    counts = count_labels(pairs)
    assert counts.thresholds == ()
    np.testing.assert_array_equal(counts.confusion(None), sum(confusion(*pair) for pair in pairs))
    ((_, parts),) = counts.by_image(None)
    found = mean_iou(parts[:, 0], parts[:, 1], parts[:, 2])
    np.testing.assert_allclose(found, [miou(confusion(*pair)) for pair in pairs], atol=1e-12)


def test_pixels_near_outlines_are_counted_apart():
    pairs = label_pairs(4, seed=1)
    counts = count_labels(pairs)
    expected = [confusion(labels, np.where(band(mask), mask, 255)) for labels, mask in pairs]
    np.testing.assert_array_equal(counts.confusion(None, near=True), sum(expected))


@pytest.mark.parametrize("size", [(5, 9), (150, 3), (120, 160)])
def test_band_along_outlines_equals_a_look_at_every_pixel(size):
    mask = blocks(3, height=size[0], width=max(size[1], 4))[:, : size[1]]
    if size == (120, 160):  # 200 pixels across: two on each side
        mask = np.zeros(size, dtype=np.int64)
        mask[50:52, 30:90] = 255
        found = near_outlines(torch.from_numpy(mask)).numpy()
        expected = np.zeros(size, dtype=bool)
        expected[48:54, 28:92] = True
        expected[np.ix_([48, 53], [28, 91])] = False  # beside the corners nothing differs in row or column
    else:
        found, expected = near_outlines(torch.from_numpy(mask)).numpy(), band(mask)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mask", [torch.zeros(4, 4), torch.zeros(1, 1), torch.zeros(0, 3)])
def test_a_mask_of_one_label_has_no_outline(mask):
    assert not near_outlines(mask.long()).any()


def test_hundreds_of_classes_are_counted_as_few_are():
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 200, (9, 8), generator=generator)
    mask[0] = 255
    labels = torch.where(torch.rand(9, 8, generator=generator) < 0.5, mask, 7)
    counter = ImageCounter(200)
    scored = mask != 255
    counter.add("a", mask, mask[scored], torch.where(labels == 255, 201, labels)[scored])
    counts = counter.gather(torch.device("cpu"))
    np.testing.assert_array_equal(counts.confusion(None), confusion(labels.numpy(), mask.numpy(), 200))
    near = np.where(band(mask.numpy()), mask.numpy(), 255)
    np.testing.assert_array_equal(counts.confusion(None, near=True), confusion(labels.numpy(), near, 200))


def test_an_image_takes_a_few_dozen_numbers():
    counts = count_seeds(seed_images(6))
    assert len(counts.pixels) <= 6 * (CLASSES + 1) * CLASSES * (len(DEFAULT_THRESHOLDS) + 1)
    assert (counts.pixels > 0).all()
    labels = count_labels([(mask, mask) for _, mask in label_pairs(6)])
    assert len(labels.pixels) <= 6 * (CLASSES + 1)


def test_images_are_sorted_by_name_and_one_that_comes_again_counts_once():
    evaluation = LabelEvaluation(CLASSES)
    pairs = label_pairs(3)
    for index in (2, 0, 1, 0, 2):
        labels, mask = (torch.from_numpy(part) for part in pairs[index])
        evaluation.update([labels], mask[None], torch.zeros(1, CLASSES), [f"photo {index:03d}"])
    found, expected = evaluation.finish(), count_labels(pairs)
    assert found.images == 3
    assert found.image_counts.ids == expected.ids
    for name in ("image", "true", "drawn", "pixels", "near"):
        np.testing.assert_array_equal(getattr(found.image_counts, name), getattr(expected, name))
    assert found.miou == pytest.approx(miou(sum(confusion(*pair) for pair in pairs)))


def test_images_without_a_name_are_all_different():
    evaluation = LabelEvaluation(1)
    for _ in range(2):
        mask = torch.ones(2, 2, 2, dtype=torch.long)
        evaluation.update([*mask], mask, torch.ones(2, 1))
    assert evaluation.finish().images == 4


def test_an_image_that_is_void_alone_is_an_image_without_cells():
    counts = count_labels([(np.ones((2, 2), dtype=np.int64), np.full((2, 2), 255)), *label_pairs(1)])
    assert len(counts.ids) == 2
    ((_, parts),) = counts.by_image(None)
    assert parts[0].sum() == 0 < parts[1].sum()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(DEFAULT_THRESHOLDS))
def test_every_threshold_is_the_metric_at_that_threshold(seed, threshold):
    images = seed_images(3, seed)
    metric = SeedIoU(CLASSES, fixed_threshold=threshold)
    for maps, mask in images:
        metric.update(maps.maps, mask, maps.classes)
    matrix = count_seeds(images).confusion(threshold).astype(np.float64)
    found = mean_iou(np.diagonal(matrix), matrix.sum(1), matrix[:, :-1].sum(0))
    assert float(found) == pytest.approx(metric.compute().miou, abs=1e-12)


@pytest.mark.parametrize("threshold", [None, 0.33, 1.5])
def test_a_threshold_that_was_not_counted_is_refused(threshold):
    with pytest.raises(ArgumentError, match=r"threshold=.*0\.05, .*give one of them"):
        count_seeds(seed_images(1)).confusion(threshold)


def test_label_images_have_no_threshold():
    with pytest.raises(ArgumentError, match=r"threshold=0\.5: counted were None"):
        count_labels(label_pairs(1)).confusion(0.5)


@pytest.mark.parametrize("make", [lambda: count_seeds(seed_images(3)), lambda: count_labels(label_pairs(3))])
def test_the_file_holds_what_was_counted_and_no_pickle(make, tmp_path):
    counts, path = make(), tmp_path / "new" / "validate_images.npz"
    counts.save(path)
    found = ImageCounts.load(path)
    assert (found.ids, found.num_classes, found.thresholds) == (counts.ids, counts.num_classes, counts.thresholds)
    for name in ("image", "true", "drawn", "interval", "pixels", "near"):
        np.testing.assert_array_equal(getattr(found, name), getattr(counts, name))
    arrays = np.load(path, allow_pickle=False)
    assert arrays["ids"].tolist() == list(counts.ids)


@pytest.mark.parametrize(
    "change",
    [
        {"image": np.array([0, 9], dtype=np.int32)},
        {"image": np.array([1, 0], dtype=np.int32)},
        {"true": np.array([0, 4], dtype=np.int32)},
        {"drawn": np.array([-1, 0], dtype=np.int32)},
        {"drawn": np.array([5, 0], dtype=np.int32)},
        {"interval": np.array([0, 1], dtype=np.int16)},
        {"pixels": np.array([1, 2, 3], dtype=np.int32)},
        {"pixels": np.array([1.0, 2.0])},
        {"near": np.array([2, 0], dtype=np.int32)},
        {"near": np.array([[0, 0]], dtype=np.int32)},
        {"ids": np.array([], dtype="U1")},
        {"ids": np.array([["a", "b"]])},
        {"num_classes": np.array(0)},
        {"num_classes": np.array(10**9)},
        {"thresholds": np.array([np.nan])},
        {"thresholds": np.array([-1.0, 2.0])},
        {"thresholds": np.array([0.5, 0.2])},
    ],
    ids=lambda change: f"{next(iter(change))} {next(iter(change.values())).tolist()}",
)
def test_a_file_of_other_numbers_is_refused(change, tmp_path):
    sound = {
        "ids": np.array(["a", "b"]),
        "num_classes": np.array(CLASSES),
        "thresholds": np.array([]),
        "image": np.array([0, 1], dtype=np.int32),
        "true": np.array([0, 3], dtype=np.int32),
        "drawn": np.array([4, 0], dtype=np.int32),
        "interval": np.array([0, 0], dtype=np.int16),
        "pixels": np.array([1, 2], dtype=np.int32),
        "near": np.array([1, 0], dtype=np.int32),
    }
    path = tmp_path / "validate_images.npz"
    np.savez_compressed(path, **sound)
    ImageCounts.load(path)
    np.savez_compressed(path, **(sound | change))
    with pytest.raises(DataError, match=r"validate_images\.npz: .*score again"):
        ImageCounts.load(path)


def test_missing_pickled_and_swollen_files_are_refused(tmp_path):
    path = tmp_path / "validate_images.npz"
    with pytest.raises(DatasetNotFoundError, match=r"validate_images\.npz"):
        ImageCounts.load(path)
    np.savez(path, ids=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="score again"):
        ImageCounts.load(path)
    count_labels(label_pairs(1)).save(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    swollen = io.BytesIO()
    np.save(swollen, np.zeros(4_000_000, dtype=np.int32))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (parts | {"pixels.npy": swollen.getvalue()}).items():
            archive.writestr(name, content)
    with pytest.raises(DataError, match="more than"):
        ImageCounts.load(path)


def test_names_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "validate_images.npz"
    count_labels(label_pairs(1)).save(path)
    arrays = dict(np.load(path, allow_pickle=False))
    arrays["ids"].view(np.uint32)[0] = 0x110000  # beyond the last character
    np.savez_compressed(path, **arrays)
    with pytest.raises(DataError, match=r"ids\.npy holds what is no character.*score again"):
        ImageCounts.load(path)


def test_digest_of_names_does_not_depend_on_their_order():
    assert ids_digest(["b", "a"]) == ids_digest(["a", "b"]) != ids_digest(["a", "c"])
    assert len(ids_digest([])) == 64


def test_counts_cannot_be_changed():
    counts = count_labels(label_pairs(1))
    with pytest.raises(AttributeError):
        counts.ids = ()
    assert replace(counts, ids=("other",)).ids == ("other",)
