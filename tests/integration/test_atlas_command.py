"""`rca atlas` as a user runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from rca_lightning.errors import ArgumentError, DataError, DatasetNotFoundError, WeightsError
from tests.folder_contents import file_names
from tests.html_contents import Contents
from tests.integration.running import run


def test_atlas_of_a_checkpoint(config: Path, checkpoint: Path, tmp_path: Path, synthetic_root: Path):
    written = file_names(tmp_path / "run")
    # A validation split that is not there does not matter.
    cli = run("atlas", config, "--ckpt_path", checkpoint, "--data.eval_split", "none")
    folder = tmp_path / "run" / "atlas"
    pages = [name for name in file_names(folder) if name.endswith(".png")]
    assert pages[0] == "000_background.png"
    assert file_names(tmp_path / "run") == sorted([*written, *(f"atlas/{name}" for name in (*pages, "index.html"))])
    saved = torch.load(checkpoint, weights_only=True)
    for name, value in cli.model.state_dict().items():
        assert torch.equal(value, saved["state_dict"][name])
    memory = saved["callbacks"]["RegionMemoryCallback"]["memory"]
    index = Contents((folder / "index.html").read_text())
    assert [link for link in index.links if not link.startswith("data:")] == pages
    for label, name in enumerate([*cli.datamodule.class_names, "background"]):
        assert index.words[index.words.index(name) + 1] == str(int(memory["counts"][label]))

    elsewhere = tmp_path / "elsewhere"
    run("atlas", config, "--ckpt_path", checkpoint, "--atlas.folder", elsewhere, "--atlas.regions", 2)
    assert file_names(elsewhere) == [*pages, "index.html"]
    widths = [Image.open(where / pages[0]).width for where in (folder, elsewhere)]
    assert widths[0] - widths[1] == 4 * 154  # crops

    with pytest.raises(WeightsError, match="num_prototypes 3 in the checkpoint, 4 in this run"):
        run("atlas", config, "--ckpt_path", checkpoint, "--model.num_prototypes", 4)
    fewer = synthetic_root / "ImageSets" / "Segmentation" / "val.txt"
    with pytest.raises(DataError, match="train_split"):
        run("atlas", config, "--ckpt_path", checkpoint, "--data.split_files", f'{{"train": "{fewer}"}}')
    with pytest.raises(DatasetNotFoundError, match="/no/such/folder"):
        run("atlas", config, "--ckpt_path", checkpoint, "--data.root", "/no/such/folder",
            "--data.image_dir", "/no/such/folder")  # fmt: skip


def test_plain_cam_has_no_atlas(config: Path, tmp_path: Path):
    plain = ("--model.contrast", "false", "--model.aggregation", "false")
    run("fit", config, *plain, "--trainer.limit_val_batches", 0, "--trainer.max_epochs", 1)
    with pytest.raises(ArgumentError, match="contrast or aggregation"):
        run("atlas", config, "--ckpt_path", tmp_path / "run" / "last.ckpt")


def test_a_missing_checkpoint_is_named(config: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ArgumentError, match=r"none\.ckpt"):
        run("atlas", config, "--ckpt_path", "none.ckpt")
    with pytest.raises(SystemExit):
        run("atlas", config)
    assert "ckpt_path" in capsys.readouterr().err
