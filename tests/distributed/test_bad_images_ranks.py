"""Bad images on one of two ranks: the other does not wait for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rca_lightning.cli.main import main
from tests.integration.conftest import config, synthetic_root  # noqa: F401  (fixtures)
from tests.integration.test_bad_images import SKIP, bad_config, listed  # noqa: F401

TWO = [
    "--trainer.strategy",
    "ddp_fork",
    "--trainer.devices",
    "2",
    "--trainer.max_epochs",
    "1",
    "--data.batch_size",
    "6",
]


def test_both_ranks_go_on_and_list_each_image_once(bad_config: Path, tmp_path: Path):  # noqa: F811
    # Rank 0 validates 0, 2 and 4, of which two are bad; rank 1 the others.
    words = ["--config", str(bad_config), *SKIP]
    two = main(["fit", *words, *TWO])
    assert len(listed(tmp_path / "run")) == 4
    last = ["--ckpt_path", str(tmp_path / "run" / "last.ckpt")]
    one = main(["validate", *words, *last])
    assert one.model.evaluation.last_result.images == 4
    name = "val/miou_true_tags"
    assert float(two.trainer.callback_metrics[name]) == pytest.approx(float(one.trainer.callback_metrics[name]))


def test_too_many_end_both(bad_config: Path):  # noqa: F811
    words = ["--config", str(bad_config), "--data.on_bad_image", "skip", "--trainer.limit_val_batches", "0"]
    with pytest.raises(Exception, match=r"max_bad_images=0\.01 allows 1"):
        main(["fit", *words, *TWO])
