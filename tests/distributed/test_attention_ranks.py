"""Accumulated maps on two gloo processes."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from tests.distributed.launching import rca
from tests.integration.conftest import config, synthetic_root  # noqa: F401  (fixtures)


def test_every_rank_has_the_maximum_of_all(config: Path, tmp_path: Path):  # noqa: F811
    content = yaml.safe_load(config.read_text())
    content["model"] |= {"contrast": False, "aggregation": False, "backbone": "resnet14"}
    content["data"]["batch_size"] = 4
    content["trainer"]["callbacks"] += [
        {"class_path": "rca_lightning.AttentionAccumulation", "init_args": {"cells": 16, "warmup_epochs": 0}},
        {"class_path": "tests.distributed.observing.WriteAttention", "init_args": {"folder": str(tmp_path)}},
    ]
    within = {"dirpath": str(tmp_path / "within"), "every_n_train_steps": 2, "save_top_k": -1, "filename": "{step}"}
    content["trainer"]["callbacks"].append(
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": within}
    )
    config.write_text(yaml.safe_dump(content))
    # A validation in every epoch: its checkpoint comes before the end of the epoch.
    rca("fit", config, "--trainer.max_epochs=2")
    ranks = [torch.load(tmp_path / f"attention-{rank}.pt", weights_only=True) for rank in range(2)]
    first, second = (rank["store"] for rank in ranks)
    saved = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    kept = saved["callbacks"]["AttentionAccumulation"]["store"]
    for name, value in first.items():
        for found in (second[name], kept[name]):
            assert torch.equal(value, found) if isinstance(value, torch.Tensor) else value == found, name

    seen = [{image_id for epoch, image_id, *_ in rank["given"] if epoch == 1} for rank in ranks]
    assert not seen[0] & seen[1]
    expected: dict[tuple[str, int], torch.Tensor] = {}
    for _, image_id, label, maps in [one for rank in ranks for one in rank["given"]]:
        known = expected.get((image_id, label), torch.zeros_like(maps))
        expected[image_id, label] = torch.maximum(known, maps)
    keys = sorted(expected)
    assert [first["image_ids"][row] for row in first["rows"]] == [image_id for image_id, _ in keys]
    assert first["labels"].tolist() == [label for _, label in keys]
    assert torch.equal(first["values"], torch.cat([expected[key].flatten() for key in keys]))
    assert len(set(first["image_ids"])) == 24

    # After two of the three batches of the first epoch.
    saved = torch.load(tmp_path / "within" / "step=2.ckpt", weights_only=True)
    early = saved["callbacks"]["AttentionAccumulation"]["store"]
    assert len(early["image_ids"]) == 16
    given = {
        (image_id, label): maps
        for rank in ranks
        for epoch, image_id, label, maps in rank["given"]
        if epoch == 0 and image_id in set(early["image_ids"])
    }
    assert [early["image_ids"][row] for row in early["rows"]] == [image_id for image_id, _ in sorted(given)]
    assert torch.equal(early["values"], torch.cat([given[key].flatten() for key in sorted(given)]))
