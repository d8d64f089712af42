"""The second stage on two gloo processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from rca_lightning.cli.main import main
from tests.distributed.launching import rca, rca_started
from tests.integration.conftest import segment, synthetic_root  # noqa: F401  (fixtures)


@pytest.fixture
def five_images(segment: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A validation split that two processes cannot share evenly."""
    content = yaml.safe_load(segment.read_text())
    splits = content["data"]["split_files"]
    (tmp_path / "five.txt").write_text("\n".join(Path(splits["val"]).read_text().split()[:5]) + "\n")
    splits["val"] = str(tmp_path / "five.txt")
    content["data"]["batch_size"] = 4
    content["model"]["head"] = "deeplabv3plus"
    content["trainer"]["max_epochs"] = 1
    segment.write_text(yaml.safe_dump(content))
    return segment


def test_score_on_two_ranks_is_that_of_one(five_images: Path, tmp_path: Path):
    rca("fit", five_images)  # plain DDP, which refuses parameters that get no gradient
    checkpoint, report = tmp_path / "run" / "last.ckpt", tmp_path / "run" / "validate.json"
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 3  # 24 images, 4 on each rank
    rca_started("validate", five_images, "--ckpt_path", checkpoint)
    together, counts = json.loads(report.read_text()), report.with_name("validate_images.npz").read_bytes()
    report.unlink()
    main(["validate", "--config", str(five_images), "--ckpt_path", str(checkpoint)])
    assert together == json.loads(report.read_text())
    assert together["images"] == 5
    assert together["miou_interval"]["low"] <= together["miou_interval"]["high"]
    assert report.with_name("validate_images.npz").read_bytes() == counts
