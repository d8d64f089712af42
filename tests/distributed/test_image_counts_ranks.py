"""Counts of single images over two gloo processes equal those of one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rca_lightning.evaluation.image_counts import ImageCounts
from rca_lightning.evaluation.label_iou import LabelEvaluation
from rca_lightning.evaluation.report import Scores
from rca_lightning.evaluation.seed_iou import Evaluation
from tests.distributed.launching import free_port
from tests.unit.evaluation.counted_images import CLASSES, NAMES, label_pairs, seed_images

IMAGES = 7


def score_labels(indices: list[int]) -> Scores | None:
    evaluation, pairs = LabelEvaluation(CLASSES), label_pairs(IMAGES)
    for index in indices:
        labels, mask = (torch.from_numpy(part) for part in pairs[index])
        evaluation.update([labels], mask[None], torch.zeros(1, CLASSES), [f"photo {index}"])
    return evaluation.finish()


def score_seeds(indices: list[int]) -> Scores | None:
    evaluation, images = Evaluation(CLASSES), seed_images(IMAGES)
    for index in indices:
        maps, mask = images[index]
        evaluation.update([maps], torch.ones(1, CLASSES), mask[None], [f"photo {index}"])
    return evaluation.finish(threshold=0.5)


def score_without_masks(indices: list[int]) -> Scores | None:
    """At the threshold that the maps choose, which depends on all of them."""
    evaluation, images = Evaluation(CLASSES, chooses=True), seed_images(IMAGES)
    for index in indices:
        maps, mask = images[index]
        evaluation.update([maps], torch.ones(1, CLASSES), mask[None], [f"photo {index}"])
    return evaluation.finish(threshold="auto")


# Uneven, one of them repeated on both as a sampler does that gives every rank as many; one rank without any; none.
SHARES = {"uneven": ([0, 2, 4, 6], [1, 3, 5, 0]), "one alone": ([], list(range(IMAGES))), "none": ([], [])}


def _score(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for name, shares in SHARES.items():
        for score in (score_labels, score_seeds):
            found = score(shares[rank])
            if found is not None:
                file = Path(folder) / f"{name} {score.__name__} {rank}"
                found.image_counts.save(file.with_suffix(".npz"))
                content = found.as_dict(split="val", class_names=NAMES)
                content.pop("classification_map")
                content = {key: value for key, value in content.items() if not key.startswith("tag_")}
                file.with_suffix(".json").write_text(json.dumps(content))
    for name, shares in {"halves": ([0, 1, 2, 3], [4, 5, 6]), "one alone": SHARES["one alone"]}.items():
        found = score_without_masks(shares[rank])
        (Path(folder) / f"{name} {rank}.txt").write_text(f"{found.threshold} {found.miou}")
    dist.destroy_process_group()


def test_both_ranks_have_the_counts_of_one_process(tmp_path):
    mp.start_processes(_score, args=(free_port(), str(tmp_path)), nprocs=2, start_method="fork")
    for score in (score_labels, score_seeds):
        expected = score(list(range(IMAGES)))
        content = expected.as_dict(split="val", class_names=NAMES)
        for name in ("uneven", "one alone"):
            for rank in range(2):
                file = tmp_path / f"{name} {score.__name__} {rank}"
                found = ImageCounts.load(file.with_suffix(".npz"))
                assert found.ids == expected.image_counts.ids
                for column in ("image", "true", "drawn", "interval", "pixels", "near"):
                    np.testing.assert_array_equal(
                        getattr(found, column), getattr(expected.image_counts, column), err_msg=f"{name} {column}"
                    )
                stored = json.loads(file.with_suffix(".json").read_text())
                assert stored == {key: content[key] for key in stored}
                assert {"miou", "miou_interval", "curve", "images"} <= stored.keys()
    assert not list(tmp_path.glob("none*"))
    expected = score_without_masks(list(range(IMAGES)))
    for file in ("halves 0", "halves 1", "one alone 0", "one alone 1"):
        assert (tmp_path / f"{file}.txt").read_text() == f"{expected.threshold} {expected.miou}"
