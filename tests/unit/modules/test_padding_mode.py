"""What the backbone of a module sees beyond the border of an image, by where its weights come from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rca_lightning import RCAModule, SegmentationModule


@pytest.mark.parametrize("module", [RCAModule, SegmentationModule])
def test_padding_is_what_the_weights_were_trained_with(tmp_path: Path, module: type):
    def padding(**options) -> str:
        made = module(num_classes=1, backbone="resnet14", **options)
        assert made.network.backbone.layer1[0].conv1.padding_mode == made.hparams["padding_mode"]
        return made.hparams["padding_mode"]

    scratch = RCAModule(num_classes=1, backbone="resnet14", padding_mode="replicate")
    torch.save(scratch.network.backbone.state_dict(), tmp_path / "weights.pth")
    torch.save({"state_dict": scratch.state_dict(), "hyper_parameters": dict(scratch.hparams)}, tmp_path / "rca.ckpt")
    assert padding(padding_mode="replicate") == padding(weights=str(tmp_path / "rca.ckpt")) == "replicate"
    assert padding() == padding(weights="none") == padding(weights=str(tmp_path / "weights.pth")) == "zeros"
    assert padding(weights=str(tmp_path / "rca.ckpt"), padding_mode="zeros") == "zeros"
