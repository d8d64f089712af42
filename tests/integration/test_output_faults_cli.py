"""`rca fit` into a folder that takes no files, and the checkpoints of one that does."""

from __future__ import annotations

import pytest

from rca_lightning.checkpoints.writing import AtomicCheckpointIO
from rca_lightning.errors import OutputError
from tests.integration.running import run


def test_fit_is_refused_before_the_first_epoch(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"^trainer\.default_root_dir='.*file/run' cannot be written to \("):
        run("fit", config, f"--trainer.default_root_dir={tmp_path / 'file' / 'run'}")


def test_checkpoints_are_written_whole(config, tmp_path):
    cli = run(
        "fit", config, "--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=0"
    )
    assert isinstance(cli.trainer.strategy.checkpoint_io, AtomicCheckpointIO)
    assert [path.name for path in sorted((tmp_path / "run").glob("last*"))] == ["last.ckpt"]
