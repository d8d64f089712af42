"""Images counted for the tests of scores, and the same counts by plain loops."""

from __future__ import annotations

import math

import numpy as np
import torch

from rca_lightning.evaluation.image_counts import ImageCounts
from rca_lightning.evaluation.label_iou import LabelEvaluation
from rca_lightning.evaluation.seed_iou import Evaluation
from rca_lightning.rca.inference import ClassMaps

CLASSES = 3
NAMES = ["cat", "dog", "cow"]


def blocks(seed: int, *, height: int = 13, width: int = 17, classes: int = CLASSES) -> np.ndarray:
    """A mask with some rectangles, one of them void."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), dtype=np.int64)
    for value in [*rng.integers(1, classes + 1, 3), 255]:
        top, left = rng.integers(height), rng.integers(width)
        mask[top : top + rng.integers(1, height), left : left + rng.integers(1, width // 2)] = value
    return mask


def label_pairs(count: int, seed: int = 0, *, agreement: float = 0.7) -> list[tuple[np.ndarray, np.ndarray]]:
    """Masks, and labels that agree with them in about that share of the pixels."""
    pairs = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        mask = blocks(index, height=11 + index % 3)
        other = np.array([0, 1, 2, 3, 255])[rng.integers(0, 5, mask.shape)]
        pairs.append((np.where((rng.random(mask.shape) < agreement) & (mask != 255), mask, other), mask))
    return pairs


def count_labels(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int = CLASSES) -> ImageCounts:
    evaluation = LabelEvaluation(classes)
    for index, (labels, mask) in enumerate(pairs):
        batch = torch.from_numpy(mask)[None]
        evaluation.update([torch.from_numpy(labels)], batch, torch.zeros(1, classes), [f"photo {index:03d}"])
    return evaluation.finish().image_counts


def seed_images(count: int, seed: int = 0) -> list[tuple[ClassMaps, torch.Tensor]]:
    """Class maps on a grid that hits thresholds exactly, and masks."""
    images = []
    for index in range(count):
        generator = torch.Generator().manual_seed(100 * seed + index)
        mask = torch.from_numpy(blocks(index))
        kept = torch.randperm(CLASSES, generator=generator)[: index % (CLASSES + 1)].sort().values
        maps = torch.randint(0, 21, (len(kept), *mask.shape), generator=generator) * 0.05
        images.append((ClassMaps(maps, kept, torch.rand(CLASSES, generator=generator)), mask))
    return images


def count_seeds(images: list[tuple[ClassMaps, torch.Tensor]]) -> ImageCounts:
    evaluation = Evaluation(CLASSES)
    for index, (maps, mask) in enumerate(images):
        evaluation.update([maps], torch.zeros(1, CLASSES), mask[None], [f"photo {index:03d}"])
    return evaluation.finish(threshold=0.5).image_counts


def drawn(maps: ClassMaps, threshold: float) -> np.ndarray:
    """Label image of class maps, pixel by pixel."""
    size = maps.maps.shape[1:]
    labels = np.zeros(tuple(size), dtype=np.int64)
    for row, column in np.ndindex(*labels.shape):
        values = maps.maps[:, row, column].tolist()
        if values and max(values) > np.float32(threshold):
            labels[row, column] = int(maps.classes[values.index(max(values))]) + 1
    return labels


def confusion(labels: np.ndarray, mask: np.ndarray, classes: int = CLASSES) -> np.ndarray:
    """Pixels by true and drawn class, float64; the last column is not drawn."""
    matrix = np.zeros((classes + 1, classes + 2))
    for label, true in zip(labels.ravel(), mask.ravel(), strict=True):
        if true != 255:
            matrix[true, classes + 1 if label == 255 else label] += 1
    return matrix


def miou(matrix: np.ndarray) -> float:
    """Mean IoU of a confusion matrix by a loop over classes."""
    found = []
    for index in range(len(matrix)):
        union = matrix[index].sum() + matrix[:, index].sum() - matrix[index, index]
        if union:
            found.append(matrix[index, index] / union)
    return sum(found) / len(found) if found else math.nan


def band(mask: np.ndarray) -> np.ndarray:
    """Pixels near outlines, each by a look at all others."""
    height, width = mask.shape
    reach = max(1, round(0.01 * math.hypot(height, width)))
    near = np.zeros(mask.shape, dtype=bool)
    for row, column in np.ndindex(height, width):
        for other_row, other_column in np.ndindex(height, width):
            if max(abs(row - other_row), abs(column - other_column)) >= reach:
                continue
            for step in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                beside = other_row + step[0], other_column + step[1]
                if 0 <= beside[0] < height and 0 <= beside[1] < width:
                    near[row, column] |= mask[beside] != mask[other_row, other_column]
    return near
