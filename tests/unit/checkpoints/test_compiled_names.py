"""Networks compiled by assignment are saved under plain names, and those of others are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from tests.unit.modules.test_resumed_arguments import StopAfterFirst, fit, segmenter

from rca_lightning import SegmentationModule
from rca_lightning.backbones.build import build_backbone
from rca_lightning.checkpoints.reading import check_checkpoint


def compiled(part: str = "network") -> SegmentationModule:
    module = segmenter()
    owner = module.get_submodule(part.rpartition(".")[0])
    setattr(owner, part.rpartition(".")[2], torch.compile(module.get_submodule(part), backend="eager"))
    return module


@pytest.mark.parametrize("part", ["network", "network.backbone"])
def test_compiled_by_assignment_is_saved_loaded_and_resumed_as_the_plain_one(tmp_path: Path, part: str):
    plain, module = segmenter(), compiled(part)
    path, last = tmp_path / "first.ckpt", tmp_path / "last.ckpt"
    fit(tmp_path, module, StopAfterFirst()).save_checkpoint(path)
    names = list(torch.load(path, weights_only=True)["state_dict"])
    assert names == list(plain.state_dict()) == list(module.state_dict())
    check_checkpoint(str(path), "segment")
    loaded = SegmentationModule.load_from_checkpoint(path)
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in loaded.state_dict().items())
    for resumed in (segmenter(), compiled(part)):
        fit(tmp_path, resumed, ckpt_path=path).save_checkpoint(last)
        assert not torch.equal(resumed.state_dict()[names[0]], loaded.state_dict()[names[0]])
    build_backbone("resnet14", output_stride=16, weights=str(last), frozen_batchnorm=False)


def test_files_with_the_names_of_a_compiled_network_are_read(tmp_path: Path):
    module = segmenter()
    fit(tmp_path, module, StopAfterFirst()).save_checkpoint(tmp_path / "plain.ckpt")
    content = torch.load(tmp_path / "plain.ckpt", weights_only=True)
    rename = {name: name.replace("network.", "network._orig_mod.") for name in content["state_dict"]}
    content["state_dict"] = {rename[name]: value for name, value in content["state_dict"].items()}
    path = tmp_path / "compiled.ckpt"
    torch.save(content, path)
    check_checkpoint(str(path), "segment")
    loaded = SegmentationModule.load_from_checkpoint(path)
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in loaded.state_dict().items())
    backbone = build_backbone("resnet14", output_stride=16, weights=str(path), frozen_batchnorm=False)
    assert torch.equal(next(backbone.parameters()), next(module.network.backbone.parameters()))
    state = {f"_orig_mod.{name}": value for name, value in backbone.state_dict().items()}
    torch.save(state, tmp_path / "weights.pth")
    build_backbone("resnet14", output_stride=16, weights=str(tmp_path / "weights.pth"), frozen_batchnorm=False)


def test_averaged_weights_of_a_compiled_network(tmp_path: Path):
    module = compiled()
    fit(tmp_path, module, StopAfterFirst(), EMAWeightAveraging()).save_checkpoint(tmp_path / "a.ckpt")
    loaded = SegmentationModule.load_from_checkpoint(tmp_path / "a.ckpt")
    assert list(loaded.state_dict()) == list(segmenter().state_dict())
    fit(tmp_path, compiled(), EMAWeightAveraging(), ckpt_path=tmp_path / "a.ckpt")
