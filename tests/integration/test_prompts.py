"""A first head of text embeddings, from `rca fit` to masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from rca_lightning import RCAModule
from rca_lightning.backbones.prompts import read_text_embeddings
from rca_lightning.callbacks import tag_calibration
from rca_lightning.data.synthetic.dataset import CLASS_NAMES
from rca_lightning.errors import ArgumentError, DataError
from rca_lightning.rca.cam import PromptHead
from rca_lightning.rca.tag_calibration import TagCalibration
from tests.integration.running import run

pytest.importorskip("timm", reason="timm, of the extra timm, is not installed")
BACKBONE = "clip:vit_xsmall_patch16_clip_224"


@pytest.fixture
def prompted(config: Path, tmp_path: Path) -> Path:
    """The configuration of a frozen fit whose head reads prompts; weights and prompts are random."""
    weights = tmp_path / "weights.pth"
    torch.manual_seed(0)
    module = RCAModule(1, backbone=BACKBONE, weights="none")
    torch.save(module.network.backbone.model.state_dict(), weights)
    content = yaml.safe_load(config.read_text())
    trained_only = ("frozen_batchnorm", "lr", "new_layer_lr_ratio", "warmup_epochs", "confidence", "embedding_dim")
    content["model"] = {key: value for key, value in content["model"].items() if key not in trained_only}
    prompts = tmp_path / "prompts.npz"
    content["model"] |= {"backbone": BACKBONE, "output_stride": 16, "weights": str(weights), "prompts": str(prompts)}
    content["model"].pop("embedding_stages", None)
    content["memory"] = {"backend": "torch"}
    content["features"] = {"folder": str(tmp_path / "features")}
    config.write_text(yaml.safe_dump(content))
    return config


def write_prompts(path: Path, names: list[str], width: int) -> None:
    rows = np.random.default_rng(0).normal(size=(len(names), width)).astype(np.float32)
    np.savez(path, embeddings=rows, names=np.array(names))


@pytest.mark.parametrize("affinity", ["cosine", "attention", "keys"])
def test_head_of_prompts_from_fit_to_masks(
    prompted: Path, tmp_path: Path, affinity: str, monkeypatch: pytest.MonkeyPatch
):
    scored = []
    monkeypatch.setattr(tag_calibration, "LEAST_IMAGES", 1)
    monkeypatch.setattr(TagCalibration, "fit", lambda self, logits, evidence, tags: scored.append(logits))
    content = yaml.safe_load(prompted.read_text())
    content["model"]["propagation_affinity"] = affinity
    prompted.write_text(yaml.safe_dump(content))
    names = list(CLASS_NAMES)
    width = RCAModule(1, backbone=BACKBONE, weights="none").network.backbone.num_features
    write_prompts(tmp_path / "prompts.npz", [*names, "sky", "grass"], width)
    cli = run("fit", prompted)
    fitted = cli.model
    assert isinstance(fitted.network.coarse_head, PromptHead)
    assert fitted.hparams["num_prompts"] == len(names) + 2
    assert "prompts" not in fitted.hparams
    # Tags are calibrated on what the prompts say of the cells, each photograph at the scale of training.
    for logits, sample in zip(scored[0], cli.datamodule.cached_features(), strict=True):
        cells = max(sample["features"], key=lambda of_scale: of_scale[0, 0].numel())
        assert cells.shape[1] > fitted.embedding_dim or affinity == "cosine"
        with torch.no_grad():
            maps = fitted.network.coarse_head(cells[:, : fitted.embedding_dim].float())
        torch.testing.assert_close(logits, maps.mean(dim=(0, 2, 3)), atol=1e-4, rtol=1e-4)
    # Cells of a photograph, against the prompts themselves, without projection and cache.
    plain = PromptHead(len(names), len(names) + 2, width)
    given = read_text_embeddings(tmp_path / "prompts.npz", names)
    plain.start(given.classes, given.background)
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    fitted.eval()
    with torch.no_grad():
        expected = plain(fitted.network.backbone(images)[-1])
        torch.testing.assert_close(fitted(images).coarse, expected, atol=0.02, rtol=0)
    # A checkpoint is all that later steps need.
    for name in ("prompts.npz", "weights.pth"):
        (tmp_path / name).unlink()
    content = yaml.safe_load(prompted.read_text())
    del content["model"]["weights"], content["model"]["prompts"]
    prompted.write_text(yaml.safe_dump(content))
    checkpoint = tmp_path / "run" / "last.ckpt"
    run("predict", prompted, "--ckpt_path", checkpoint)
    assert list((tmp_path / "run" / "predictions" / "pseudo_labels").glob("*.png"))
    loaded = RCAModule.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    with torch.no_grad():
        assert torch.equal(loaded(images).coarse, fitted(images).coarse)


def test_prompts_that_do_not_fit_are_refused_before_any_feature(prompted: Path, tmp_path: Path):
    names = list(CLASS_NAMES)
    write_prompts(tmp_path / "prompts.npz", [*names, "sky"], 7)
    with pytest.raises(ArgumentError, match="embeddings have 7 channels"):
        run("fit", prompted)
    write_prompts(tmp_path / "prompts.npz", [*names[1:], "sky"], 7)
    with pytest.raises(DataError, match="no embedding of the class"):
        run("fit", prompted)
    assert not list((tmp_path / "features").rglob("*.npy"))


def test_prompts_are_read_behind_a_frozen_backbone_alone():
    with pytest.raises(ArgumentError, match=r"prompts='p\.npz'"):
        RCAModule(2, backbone=BACKBONE, weights="none", prompts="p.npz")
