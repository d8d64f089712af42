"""A process that raises brings down the whole run within a minute, and its error is there to read."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import yaml

from rca_lightning.cli.main import main
from rca_lightning.errors import NonFiniteError
from rca_lightning.modules.training_guards import NonFiniteGuard
from tests.distributed.launching import FORKED, TWO_PROCESSES, free_port, output, start
from tests.integration.conftest import config, synthetic_root  # noqa: F401  (fixtures)

LIGHTNING = ("-m", "rca_lightning")
TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node=2")


@pytest.fixture
def content(config: Path, tmp_path: Path) -> dict:  # noqa: F811
    """A configuration of six batches of two for each of two processes, which write down what they raise."""
    content = yaml.safe_load(config.read_text())
    content["data"] |= {"batch_size": 2, "crop_size": 32, "shuffle": False}
    content["model"]["backbone"] = "resnet14"
    content["trainer"] |= {"max_epochs": 1, "limit_val_batches": 0}
    record = {"class_path": "tests.distributed.failing.RecordException", "init_args": {"folder": str(tmp_path)}}
    content["trainer"]["callbacks"] = [record]
    return content


@pytest.mark.parametrize(("launcher", "rank"), [(LIGHTNING, 0), (TORCHRUN, 1)])
def test_unreadable_photograph_ends_both(
    launcher: tuple[str, ...],
    rank: int,
    content: dict,
    config: Path,  # noqa: F811
    synthetic_root: Path,  # noqa: F811
    tmp_path: Path,
):
    """The process `rank` raises in its second batch, for which the other waits."""
    folder = tmp_path / "photographs"
    shutil.copytree(synthetic_root / "JPEGImages", folder)
    content["data"]["image_dir"] = str(folder)
    name = Path(content["data"]["split_files"]["train"]).read_text().split()[4 + rank]
    (folder / f"{name}.jpg").write_text("not a photograph")
    words = launcher
    if launcher is TORCHRUN:
        words = (*launcher, f"--master_port={free_port()}", *LIGHTNING)
    else:  # torchrun lets it wait 30 s longer, then kills it
        wait = {"class_path": "tests.distributed.failing.WaitForever", "init_args": {"rank": 1 - rank}}
        content["trainer"]["callbacks"].append(wait)
    config.write_text(yaml.safe_dump(content))
    process = start(*words, "fit", "--config", config, *TWO_PROCESSES)
    text = output(process)
    raised, error = (tmp_path / f"raised-{rank}.txt").read_text().split(maxsplit=1)
    assert time.time() - float(raised) < 60, text[-6000:]
    assert process.returncode != 0
    assert error.startswith("DataError")
    assert f"rca: {folder / name}.jpg" in text, text[-6000:]


def test_non_finite_number_ends_both_with_one_message(
    content: dict,
    config: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    content["trainer"]["callbacks"].append({"class_path": "tests.distributed.observing.Poison"})
    content["data"]["shuffle"] = True
    config.write_text(yaml.safe_dump(content))
    should_skip = NonFiniteGuard.should_skip

    def recorded(module: NonFiniteGuard, *args: Any) -> bool:
        try:
            return should_skip(module, *args)
        except NonFiniteError as error:
            (tmp_path / f"non-finite-{module.global_rank}.txt").write_text(str(error))
            dist.barrier()  # the first process that ends has the other ended
            raise

    monkeypatch.setattr(NonFiniteGuard, "should_skip", recorded)  # the forked processes have it too
    # Standardising the embeddings over both has carried it to the first, which says who began.
    message = "rank 1: pixels of 'train_00006' not finite"
    with pytest.raises(Exception, match=message):
        main(["fit", "--config", str(config), *FORKED])
    for rank in range(2):
        error = (tmp_path / f"non-finite-{rank}.txt").read_text()
        assert error.startswith(message)
        assert "; mend or leave out the photograph, or give on_non_finite='skip'" in error
