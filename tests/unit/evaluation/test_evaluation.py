"""Evaluation: classification mAP against scikit-learn, what is counted, and the JSON it becomes."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from rca_lightning.evaluation.report import Scores
from rca_lightning.evaluation.seed_iou import Evaluation, SeedIoU, mean_average_precision
from rca_lightning.rca.inference import ClassMaps

KEYS = [
    "split",
    "images",
    "tags",
    "threshold",
    "miou",
    "curve",
    "per_class_iou",
    "per_class_precision",
    "per_class_recall",
    "classification_map",
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


def test_fixed_threshold_is_handed_on():
    evaluation = Evaluation(3, fixed_threshold=0.42)
    evaluation.update(*random_batch(2, seed=4))
    assert evaluation.finish().threshold == 0.42


def result_with_nan() -> Scores:
    return Scores(
        images=7,
        miou=0.25,
        threshold=0.1,
        curve={0.05: 0.125, 0.1: 0.25, 0.5: math.nan},
        iou=torch.tensor([0.5, 0.0, math.nan]),
        precision=torch.tensor([0.75, math.nan, math.nan]),
        recall=torch.tensor([1.0, 0.0, math.nan]),
        classification_map=math.nan,
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
        "curve": {"0.05": 0.125, "0.1": 0.25, "0.5": None},
        "per_class_iou": {"background": 0.5, "cat": 0.0, "dog": None},
        "per_class_precision": {"background": 0.75, "cat": None, "dog": None},
        "per_class_recall": {"background": 1.0, "cat": 0.0, "dog": None},
        "classification_map": None,
    }


def test_too_few_names_do_not_pass_silently():
    with pytest.raises(ValueError, match="zip"):
        result_with_nan().as_dict(split="val", tags="image", class_names=["cat"])


def test_logged_names_say_whose_tags():
    logged = result_with_nan().logged("predicted", prefix="test")
    assert logged["test/seed_miou/predicted_tags"] == 0.25
    assert logged["test/seed_threshold/predicted_tags"] == 0.1
    assert math.isnan(logged["test/classification_map"])
    assert "val/seed_miou/image_tags" in result_with_nan().logged("image", prefix="val")
