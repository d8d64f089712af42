"""Guesses that look at no image, against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.data.sources import SourceOptions
from rca_lightning.data.synthetic.scene import render_scene
from rca_lightning.errors import ArgumentError
from rca_lightning.evaluation.baselines import (
    GRID,
    baseline_scores,
    closeness_to_middle,
    generated_baselines,
    mean_masks,
    split_baselines,
)

CLASSES = 3
THRESHOLDS = [0.02 * step for step in range(50)]


def random_images(seed: int, sizes: list[tuple[int, int]]) -> list[tuple[list[int], torch.Tensor]]:
    """Masks of rectangles, void among them; the last image has no tag, and tags are not sorted."""
    generator = np.random.default_rng(seed)
    images = []
    for height, width in sizes:
        mask = np.zeros((height, width), dtype=np.uint8)
        for _ in range(3):
            top, left = generator.integers(height - 4), generator.integers(width - 4)
            mask[top : top + 9, left : left + 9] = generator.integers(1, CLASSES + 1)
        mask[generator.random(mask.shape) < 0.05] = 255
        tags = [int(value) - 1 for value in np.unique(mask) if 0 < value < 255]
        images.append((tags[::-1], torch.from_numpy(mask)))
    return [*images, ([], torch.zeros(8, 8, dtype=torch.uint8))]


def loop_miou(drawn: list[np.ndarray], images: list) -> float:
    ious = []
    for label in range(CLASSES + 1):
        both = either = 0
        for image, (_, mask) in zip(drawn, images, strict=True):
            for guess, true in zip(image.flat, mask.numpy().flat, strict=True):
                if true != 255:
                    both += guess == true == label
                    either += label in (guess, true)
        if either:
            ious.append(both / either)
    return float(np.mean(ious))


def loop_discs(images: list, threshold: float, place: int) -> list[np.ndarray]:
    drawn = []
    for tags, mask in images:
        height, width = mask.shape
        image = np.zeros((height, width), dtype=int)
        for row in range(height):
            for column in range(width):
                away = math.hypot(row - (height - 1) / 2, column - (width - 1) / 2)
                if tags and 1 - away / (math.hypot(height, width) / 2) > threshold:
                    image[row, column] = tags[place] + 1
        drawn.append(image)
    return drawn


def loop_priors(images: list, prior: np.ndarray, threshold: float) -> list[np.ndarray]:
    drawn = []
    for tags, mask in images:
        image = np.zeros(mask.shape, dtype=int)
        if tags:
            maps = F.interpolate(torch.from_numpy(prior[None, tags]), mask.shape, mode="bilinear")[0].numpy()
            for row, column in np.ndindex(mask.shape):
                strongest = max(range(len(tags)), key=lambda index: maps[index, row, column])
                if maps[strongest, row, column] > threshold:
                    image[row, column] = tags[strongest] + 1
        drawn.append(image)
    return drawn


def test_guesses_have_the_scores_of_plain_loops():
    train = random_images(0, [(17, 24), (20, 20), (12, 31)])
    held_out = random_images(1, [(16, 16), (22, 13)])
    found = baseline_scores(train, held_out, num_classes=CLASSES)

    by_disc = {
        (place, threshold): loop_miou(loop_discs(train, threshold, place), train)
        for place in (0, -1)
        for threshold in THRESHOLDS
    }
    place, threshold = max(by_disc, key=lambda key: by_disc[key])
    assert found["disc"]["tag"] == {0: "first", -1: "last"}[place]
    assert found["disc"]["radius"] == pytest.approx(1 - threshold)
    assert found["disc"]["miou"] == pytest.approx(loop_miou(loop_discs(held_out, threshold, place), held_out))

    prior = mean_masks(train, num_classes=CLASSES).numpy()
    by_prior = {threshold: loop_miou(loop_priors(train, prior, threshold), train) for threshold in THRESHOLDS}
    threshold = max(by_prior, key=lambda key: by_prior[key])
    assert found["tag_prior"]["threshold"] == pytest.approx(threshold)
    drawn = loop_priors(held_out, prior, threshold)
    assert found["tag_prior"]["miou"] == pytest.approx(loop_miou(drawn, held_out))


def test_mean_masks_are_means_over_the_images_with_the_tag():
    side = 2 * GRID
    first, second, third = (torch.zeros(side, side, dtype=torch.uint8) for _ in range(3))
    first[:GRID], second[:, :GRID], third[:] = 2, 2, 3
    means = mean_masks([([1], first), ([1], second), ([2], third), ([], third)], num_classes=3)
    assert means.shape == (3, GRID, GRID)
    assert not means[0].any()  # of no image
    half = GRID // 2
    assert means[1, :half, :half].unique().tolist() == [1.0]
    assert means[1, half:, half:].unique().tolist() == [0.0]
    assert means[1, :half, half:].unique().tolist() == means[1, half:, :half].unique().tolist() == [0.5]
    assert means[2].unique().tolist() == [1.0]
    cells = mean_masks([([0], torch.eye(side, dtype=torch.uint8))], num_classes=1)[0]
    assert torch.equal(cells, 0.5 * torch.eye(GRID))


@pytest.mark.parametrize("size", [(5, 5), (4, 7)])
def test_closeness_falls_from_the_middle_to_the_corners(size):
    found = closeness_to_middle(size)
    assert found.shape == size
    assert torch.equal(found, found.flip(0))
    assert torch.equal(found, found.flip(1))
    assert found.max() == found[size[0] // 2, size[1] // 2]
    assert 0 < float(found.min()) == float(found[0, 0])


def test_a_centred_disc_and_a_fixed_place_are_found():
    """Images that flatter guesses: one class is a disc in the middle, the other always above left."""
    disc = (closeness_to_middle((40, 40)) > 0.5).to(torch.uint8)
    corner = torch.zeros(40, 40, dtype=torch.uint8)
    corner[4:14, 4:14] = 2
    only_disc = baseline_scores([([0], disc)], [([0], disc)], num_classes=2)
    assert only_disc["disc"]["miou"] == 1.0
    assert only_disc["disc"]["radius"] == 0.5
    images = [([0], disc), ([1], corner)]
    found = baseline_scores(images, images, num_classes=2)
    assert found["tag_prior"]["miou"] > 0.9
    assert found["disc"]["miou"] < 0.8


@pytest.mark.parametrize(("name", "arguments"), [("chosen_on", ([], [([], torch.zeros(2, 2))])),
                                                 ("scored_on", ([([], torch.zeros(2, 2))], []))])  # fmt: skip
def test_nothing_to_score_is_named(name, arguments):
    with pytest.raises(ArgumentError, match=rf"{name}=\[\]"):
        baseline_scores(*arguments, num_classes=1)


def test_of_a_split_only_the_named_images_are_scored(tmp_path):
    size = {"synthetic_train_images": 6, "synthetic_val_images": 4, "synthetic_image_size": 48}
    source = SourceOptions("synthetic", root=tmp_path, **size).open()
    images = {
        split: [
            (record.tags, torch.from_numpy(render_scene(np.random.default_rng([0, number, row]), 48).mask))
            for row, record in enumerate(source.records(split, with_masks=True))
        ]
        for number, split in enumerate(("train", "val"))
    }
    expected = baseline_scores(images["train"], images["val"], num_classes=6)
    assert split_baselines(source, "val", chosen_on="train", num_classes=6) == expected
    expected = baseline_scores(images["train"], images["val"][1:3], num_classes=6)
    ids = {"val_00001", "val_00002"}
    assert split_baselines(source, "val", chosen_on="train", num_classes=6, ids=ids) == expected


def test_beside_a_score_of_generated_images_and_of_no_others(tmp_path, caplog):
    size = {"synthetic_train_images": 4, "synthetic_val_images": 2, "synthetic_image_size": 48}
    data = WSSSDataModule(dataset="synthetic", root=tmp_path, **size)
    data.prepare_data()
    source = data.open_source()
    ids = ["val_00000", "val_00001"]
    assert generated_baselines(data, "val", ids) == split_baselines(source, "val", chosen_on="train", num_classes=6)
    next(path for path in tmp_path.rglob("*.png") if "train_00000" in path.name).write_bytes(b"no image")
    assert generated_baselines(data, "val", ids) is None
    assert "guesses without a network have no score" in caplog.text
    assert generated_baselines(WSSSDataModule(dataset="voc2012", root=tmp_path), "val", ids) is None


def test_guesses_have_little_on_generated_images():
    images = []
    for number in range(150):
        mask = render_scene(np.random.default_rng([11, number]), 48).mask
        images.append(([int(value) - 1 for value in np.unique(mask) if 0 < value < 255], torch.from_numpy(mask)))
    found = baseline_scores(images[:100], images[100:], num_classes=6)
    # 25 and 26 of 600 and 150 images of 96 pixels, where the plain CAM has 56.
    assert found["disc"]["miou"] < 0.32
    assert found["tag_prior"]["miou"] < 0.32
