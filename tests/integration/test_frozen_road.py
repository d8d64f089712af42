"""`rca fit` behind a frozen backbone, and all that is made of its checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from rca_lightning import RCAModule
from rca_lightning.cli.main import main
from rca_lightning.errors import ArgumentError
from tests.integration.running import fit, run

PREDICTED = 6


@pytest.fixture
def frozen(config: Path, tmp_path: Path) -> Path:
    """The configuration of a frozen fit with weights from a file, which make it the default."""
    weights = tmp_path / "weights.pth"
    torch.manual_seed(0)
    torch.save(RCAModule(1, backbone="resnet14", weights="none").network.backbone.state_dict(), weights)
    content = yaml.safe_load(config.read_text())
    trained_only = ("frozen_batchnorm", "lr", "new_layer_lr_ratio", "warmup_epochs", "confidence")
    content["model"] = {key: value for key, value in content["model"].items() if key not in trained_only}
    content["model"] |= {"backbone": "resnet14", "output_stride": 8, "weights": str(weights), "embedding_dim": 24}
    content["memory"] = {"backend": "torch"}
    content["features"] = {"folder": str(tmp_path / "features")}
    content["trainer"]["enable_model_summary"] = True
    config.write_text(yaml.safe_dump(content))
    return config


def test_fit_validate_predict_labels(frozen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog):
    fitted = run("fit", frozen)
    assert fitted.model.is_frozen
    told = caplog.text + "".join(capsys.readouterr())
    assert "the first head is fitted to 24 photographs" in told
    assert ", 0 trained" in told
    assert "configure_optimizers" not in told
    checkpoint = tmp_path / "run" / "last.ckpt"
    features = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").rglob("*.npy")}
    assert len(features) == 24 + 6
    # Nothing below needs weights or cache: a checkpoint is all.
    weights = tmp_path / "weights.pth"
    weights.rename(tmp_path / "elsewhere.pth")
    (tmp_path / "features").rename(tmp_path / "no features")
    content = yaml.safe_load(frozen.read_text())
    del content["model"]["weights"]
    frozen.write_text(yaml.safe_dump(content))

    run("validate", frozen, "--ckpt_path", checkpoint)
    result = json.loads((tmp_path / "run" / "validate.json").read_text())
    assert result["images"] == 6
    logged = float(fitted.trainer.callback_metrics["val/miou_true_tags"])
    assert result["miou"] == pytest.approx(logged, abs=0.02)  # features there are kept in half precision

    run("predict", frozen, "--ckpt_path", checkpoint)
    folder = tmp_path / "run" / "predictions"
    assert len(list((folder / "pseudo_labels").glob("*.png"))) == PREDICTED
    stored = sorted((folder / "cams").glob("*.npz"))
    assert len(stored) == PREDICTED
    words = ["--maps", str(folder / "cams"), "--output_dir", str(tmp_path / "labels")]
    main(["labels", "--config", str(frozen), *words, "--background_threshold", "0.4"])
    labels = list((tmp_path / "labels" / "pseudo_labels").glob("*.png"))
    assert {path.stem for path in labels} >= {path.stem for path in stored}
    assert Image.open(labels[0]).mode == "P"

    module = RCAModule.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    assert module.is_frozen
    batch = next(iter(fitted.datamodule.evaluation_dataloader()))
    seeds = module.seeds(batch["image"], batch["tags"])[0]
    maps = np.load(folder / "cams" / f"{batch['image_id'][0]}.npz", allow_pickle=False)["maps"]
    np.testing.assert_allclose(seeds.maps.numpy(), maps, atol=2e-3)
    assert not (tmp_path / "features").exists()

    run("atlas", frozen, "--ckpt_path", checkpoint, "--atlas.folder", tmp_path / "atlas")
    assert (tmp_path / "atlas" / "index.html").is_file()


def test_next_fit_reads_the_cache_and_resumes(frozen: Path, tmp_path: Path, caplog):
    run("fit", frozen, "--trainer.limit_val_batches", 0)
    run("fit", frozen, "--trainer.limit_val_batches", 0, "--model.num_prototypes", 5)
    assert "features: all are in" in caplog.text
    more = ("--trainer.limit_val_batches", 0, "--trainer.max_epochs", 3, "--model.num_prototypes", 5)
    last = run("fit", frozen, *more, "--ckpt_path", "last")
    assert last.trainer.current_epoch == 3


def test_backbone_is_trained_from_it(frozen: Path, tmp_path: Path, caplog):
    start = fit(frozen, "start").model.network
    weights = tmp_path / "start" / "last.ckpt"
    words = ("--model.weights", weights, "--model.backbone_mode", "trained", "--model.frozen_stages", 3)
    tuned = fit(frozen, "tuned", *words, "--memory.slots", 16, "--model.lr", 1e-3, "--trainer.max_epochs", 3)
    assert f"taken from {weights}: backbone, projection, CAM head, prototypes" in caplog.text
    network = tuned.model.network
    assert not tuned.model.is_frozen
    before = start.backbone.state_dict()
    moved = {name for name, weight in network.backbone.state_dict().items() if not torch.equal(weight, before[name])}
    assert {name.split(".")[0] for name in moved} == {"layer3"}, "the last of four stages"
    assert torch.equal(network.pca.weight, start.pca.weight)
    assert not torch.equal(network.coarse_head.conv.weight, start.coarse_head.conv.weight)
    assert not torch.equal(network.aggregation.prototypes, start.aggregation.prototypes)
    # Nothing below needs the start: a checkpoint is all.
    weights.unlink()
    (tmp_path / "weights.pth").unlink()
    content = yaml.safe_load(frozen.read_text())
    del content["model"]["weights"]
    frozen.write_text(yaml.safe_dump(content))
    run("validate", frozen, "--ckpt_path", tmp_path / "tuned" / "last.ckpt")
    assert json.loads((tmp_path / "run" / "validate.json").read_text())["images"] == 6
    run("atlas", frozen, "--ckpt_path", tmp_path / "tuned" / "last.ckpt", "--atlas.folder", tmp_path / "atlas")
    assert (tmp_path / "atlas" / "index.html").is_file()


STOP = """
class_path: lightning.pytorch.callbacks.EarlyStopping
init_args:
  monitor: train/label_change
  stopping_threshold: 0.3
  patience: 20
  check_on_train_epoch_end: true
"""


def test_rounds_stop_when_labels_no_longer_change(frozen: Path, tmp_path: Path, caplog):
    content = yaml.safe_load(frozen.read_text())
    content["trainer"] |= {"max_epochs": 20, "check_val_every_n_epoch": 20}
    content["trainer"]["callbacks"].append(yaml.safe_load(STOP))
    frozen.write_text(yaml.safe_dump(content))
    trainer = run("fit", frozen).trainer
    shares = [float(share) for share in re.findall(r"epoch \d+: (\S+) % of the cells changed their label", caplog.text)]
    assert len(shares) == trainer.current_epoch - 1 < 19
    assert shares[-1] <= 30
    assert all(share > 30 for share in shares[:-1])
    assert float(trainer.callback_metrics["train/label_change"]) == pytest.approx(shares[-1] / 100, abs=1e-3)
    assert (tmp_path / "run" / "last.ckpt").is_file()


def test_segmenter_starts_from_it(frozen: Path, segment: Path, tmp_path: Path, caplog):
    run("fit", frozen, "--trainer.limit_val_batches", 0)
    words = ("--model.weights", tmp_path / "run" / "last.ckpt", "--model.tag_weight", 0.1)
    run("fit", segment, *words, "--trainer.max_epochs", 1, "--trainer.limit_val_batches", 0)
    assert "the tag head begins anew" in caplog.text


def test_what_needs_training_is_refused(frozen: Path):
    with pytest.raises(ArgumentError, match="behind a frozen backbone maps do not change"):
        run("fit", frozen, "--trainer.callbacks+=rca_lightning.AttentionAccumulation")
