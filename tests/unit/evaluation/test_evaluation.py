"""Evaluation: classification mAP against scikit-learn, what is counted, and the JSON it becomes."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score

from rca_lightning.errors import ArgumentError
from rca_lightning.evaluation.breakdown import background_confusion, scores_by_size, trimap_miou
from rca_lightning.evaluation.intervals import miou_interval
from rca_lightning.evaluation.report import Scores
from rca_lightning.evaluation.seed_iou import (
    Evaluation,
    SeedIoU,
    mean_average_precision,
    tag_calibration_error,
    tag_f1_scores,
)
from rca_lightning.rca.inference import ClassMaps

KEYS = [
    "split",
    "images",
    "tags",
    "threshold",
    "miou",
    "oracle_threshold",
    "oracle_miou",
    "curve",
    "per_class_iou",
    "per_class_precision",
    "per_class_recall",
    "classification_map",
    "tag_f1",
    "tag_f1_macro",
    "tag_calibration_error",
]


def random_batch(size: int, seed: int, classes: int = 3) -> tuple[list[ClassMaps], torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tags = (torch.rand(size, classes, generator=generator) < 0.5).float()
    tags[:, 0] = 1
    seeds = []
    for row in tags:
        kept = torch.nonzero(row)[:, 0]
        maps = torch.rand(len(kept), 4, 5, generator=generator)
        seeds.append(ClassMaps(maps, kept, torch.rand(classes, generator=generator)))
    return seeds, tags, torch.randint(0, classes + 1, (size, 4, 5), generator=generator)


@pytest.mark.parametrize("seed", range(5))
def test_mean_average_precision_equals_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    tags = rng.integers(0, 2, (30, 4))
    tags[:, 2] = 0  # never occurs: no average precision
    probabilities = np.round(rng.random((30, 4)), 1)  # with ties
    expected = np.mean([average_precision_score(tags[:, c], probabilities[:, c]) for c in (0, 1, 3)])
    found = mean_average_precision(torch.tensor(probabilities), torch.tensor(tags))
    assert found == pytest.approx(expected, abs=1e-6)


def test_no_tag_at_all_has_no_average_precision():
    assert math.isnan(mean_average_precision(torch.rand(3, 2), torch.zeros(3, 2, dtype=torch.long)))


@pytest.mark.parametrize("seed", range(3))
def test_f1_of_tags_equals_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    tags, predicted = rng.integers(0, 2, (30, 4)), rng.integers(0, 2, (30, 4))
    tags[:, 2] = 0  # never occurs: its false positives count among all pairs, and it has no F1 of its own
    micro, macro = tag_f1_scores(torch.tensor(predicted, dtype=torch.bool), torch.tensor(tags))
    assert micro == pytest.approx(f1_score(tags.ravel(), predicted.ravel()))
    assert macro == pytest.approx(np.mean([f1_score(tags[:, c], predicted[:, c]) for c in (0, 1, 3)]))


def test_no_tag_at_all_has_no_f1():
    assert all(math.isnan(value) for value in tag_f1_scores(torch.ones(3, 2) > 0, torch.zeros(3, 2, dtype=torch.long)))


def test_calibration_error_is_the_difference_of_probability_and_share_bin_by_bin():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(40, 5, generator=generator, dtype=torch.float64)
    tags = (torch.rand(40, 5, generator=generator) < probabilities**2).long()
    bins = [[] for _ in range(15)]
    for probability, tag in zip(probabilities.flatten().tolist(), tags.flatten().tolist(), strict=True):
        bins[int(probability * 15)].append((probability, tag))
    expected = sum(abs(sum(p for p, _ in rows) - sum(t for _, t in rows)) for rows in bins) / 200
    assert tag_calibration_error(probabilities, tags) == pytest.approx(expected, abs=1e-6)
    assert math.isnan(tag_calibration_error(torch.zeros(0, 2), torch.zeros(0, 2, dtype=torch.long)))


def test_tags_are_predicted_with_the_threshold_of_each_class_and_unknown_ones_do_not_count():
    maps = torch.ones(1, 2, 2)
    rows = [[0.3, 0.6], [0.1, 0.2], [0.9, 0.9]]
    seeds = [ClassMaps(maps, torch.tensor([0]), torch.tensor(row)) for row in rows]
    tags = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    evaluation = Evaluation(2)
    for threshold, predicted in ((torch.tensor([0.25, 0.7]), [[1, 0], [0, 1]]), (0.5, [[0, 1], [0, 1]])):
        evaluation.update(seeds, tags, torch.ones(3, 2, 2, dtype=torch.long))
        result = evaluation.finish(threshold)
        assert result.tag_f1 == pytest.approx(f1_score(tags[:2].int().numpy().ravel(), np.ravel(predicted)))
        assert result.tag_f1_macro == pytest.approx(f1_score(tags[:2].int().numpy(), predicted, average="macro"))


def test_all_images_of_all_batches_count():
    evaluation, alone = Evaluation(3), SeedIoU(3)
    probabilities, present = [], []
    for seed, size in enumerate((2, 3)):
        seeds, tags, masks = random_batch(size, seed)
        evaluation.update(seeds, tags, masks)
        for image, mask in zip(seeds, masks, strict=True):
            alone.update(image.maps, mask, image.classes)
            probabilities.append(image.probabilities)
        present.append(tags)
    result = evaluation.finish()
    assert result is evaluation.last_result
    assert result.images == 5
    assert result.miou == alone.compute().miou
    expected = average_precision_score(torch.cat(present).numpy(), torch.stack(probabilities).numpy(), average="macro")
    assert result.classification_map == pytest.approx(expected, abs=1e-6)


def test_finish_starts_anew():
    evaluation = Evaluation(3)
    evaluation.update(*random_batch(4, seed=1))
    evaluation.finish()
    assert evaluation.finish() is None
    assert evaluation.last_result is None
    evaluation.update(*random_batch(2, seed=2))
    second = evaluation.finish()
    fresh = Evaluation(3)
    fresh.update(*random_batch(2, seed=2))
    assert second.images == 2
    assert second.curve == fresh.finish().curve


def test_batches_without_masks_are_passed_over():
    evaluation = Evaluation(3)
    seeds, tags, masks = random_batch(2, seed=3)
    evaluation.update(seeds, tags, None)
    assert evaluation.finish() is None
    evaluation.update(seeds, tags, None)
    evaluation.update(seeds, tags, masks)
    assert evaluation.finish().images == 2


def test_score_is_at_the_threshold_that_is_handed_on_and_the_best_is_told_beside():
    evaluation = Evaluation(3, [0.42])
    batch = random_batch(2, seed=4)
    evaluation.update(*batch)
    found = evaluation.finish(threshold=0.42, threshold_source="given")
    assert (found.threshold, found.threshold_source) == (0.42, "given")
    assert found.miou == found.curve[0.42]
    assert found.oracle_miou == max(found.curve.values()) == found.curve[found.oracle_threshold]
    assert found.oracle_miou > found.miou
    evaluation.update(*batch)
    best = evaluation.finish()  # without one it rests on the masks, and says so
    assert (best.threshold, best.miou, best.threshold_source) == (found.oracle_threshold, found.oracle_miou, "masks")


def test_a_threshold_that_was_not_counted_is_refused():
    evaluation = Evaluation(3)
    evaluation.update(*random_batch(1, seed=4))
    with pytest.raises(ArgumentError, match=r"threshold=0\.42: it was not counted"):
        evaluation.finish(threshold=0.42)


def test_scores_are_kept_with_the_counts_of_each_image():
    evaluation, ids = Evaluation(3), ["b", "a"]
    evaluation.update(*random_batch(2, seed=4), ids)
    evaluation.update(*random_batch(2, seed=4), ids)  # as a sampler that repeats images
    found = evaluation.finish(threshold=0.5)
    assert found.images == 2
    assert found.image_counts.ids == ("a", "b")
    alone = Evaluation(3)
    alone.update(*random_batch(2, seed=4))
    assert found.curve == alone.finish(threshold=0.5).curve


def test_json_has_what_single_images_tell():
    evaluation = Evaluation(3)
    evaluation.update(*random_batch(4, seed=4))
    scores = evaluation.finish(threshold=0.5, threshold_source="default")
    found = scores.as_dict(split="val", tags="image", class_names=["cat", "dog", "cow"], protocol={"commit": None})
    counts = scores.image_counts
    interval = miou_interval(counts, 0.5)
    assert found["miou"] == pytest.approx(interval.value)
    assert found["miou_interval"] == {
        "low": interval.low, "high": interval.high, "level": 0.95, "draws": 1000, "seed": 0,
    }  # fmt: skip
    assert found["trimap_miou"] == trimap_miou(counts, 0.5)
    assert found["miou_by_size"]["large"] == scores_by_size(counts, 0.5)["large"]
    confusion = background_confusion(counts, 0.5)
    for name, key in zip(("as_background", "on_background", "on_others"), confusion, strict=True):
        values = found[f"per_class_drawn_{name}"]
        assert [value for value in values.values() if value is not None] == [v for v in confusion[key] if v == v]
        assert list(values) == ["background", "cat", "dog", "cow"]
    assert found["protocol"] == {"commit": None}
    json.dumps(found, allow_nan=False)


def result_with_nan() -> Scores:
    return Scores(
        images=7,
        miou=0.25,
        threshold=0.1,
        oracle_threshold=0.05,
        oracle_miou=0.375,
        curve={0.05: 0.125, 0.1: 0.25, 0.5: math.nan},
        iou=torch.tensor([0.5, 0.0, math.nan]),
        precision=torch.tensor([0.75, math.nan, math.nan]),
        recall=torch.tensor([1.0, 0.0, math.nan]),
        classification_map=math.nan,
        tag_f1=0.75,
        tag_f1_macro=math.nan,
        tag_calibration_error=0.0625,
    )


def test_as_dict_is_the_documented_json_with_null_for_nan():
    found = result_with_nan().as_dict(split="val", tags="predicted", class_names=["cat", "dog"])
    assert list(found) == KEYS
    assert json.loads(json.dumps(found, allow_nan=False)) == {
        "split": "val",
        "images": 7,
        "tags": "predicted",
        "threshold": 0.1,
        "miou": 0.25,
        "oracle_threshold": 0.05,
        "oracle_miou": 0.375,
        "curve": {"0.05": 0.125, "0.1": 0.25, "0.5": None},
        "per_class_iou": {"background": 0.5, "cat": 0.0, "dog": None},
        "per_class_precision": {"background": 0.75, "cat": None, "dog": None},
        "per_class_recall": {"background": 1.0, "cat": 0.0, "dog": None},
        "classification_map": None,
        "tag_f1": 0.75,
        "tag_f1_macro": None,
        "tag_calibration_error": 0.0625,
    }


def test_too_few_names_do_not_pass_silently():
    with pytest.raises(ValueError, match="zip"):
        result_with_nan().as_dict(split="val", tags="image", class_names=["cat"])


def test_logged_names_say_whose_tags():
    logged = result_with_nan().logged("predicted", prefix="test")
    assert logged["test/miou_predicted_tags"] == 0.25
    assert logged["test/threshold_predicted_tags"] == 0.1
    assert logged["test/miou_predicted_tags_oracle"] == 0.375
    assert math.isnan(logged["test/classification_map"])
    assert (logged["test/tag_f1"], logged["test/tag_calibration_error"]) == (0.75, 0.0625)
    assert "val/miou_true_tags" in result_with_nan().logged("image", prefix="val")
