"""Weights by name."""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from tests.quiet_trainer import quiet_trainer

from rca_lightning import AffinityModule, RCAModule, SegmentationModule
from rca_lightning.backbones import registry
from rca_lightning.backbones.build import BackboneName, build_backbone
from rca_lightning.backbones.weights import pca_arguments, trained_padding, trained_stride
from rca_lightning.data import transforms
from rca_lightning.errors import ArgumentError, OutputError, WeightsError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RCA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def put_into(cache: Path, monkeypatch: pytest.MonkeyPatch, backbone: str, **changes: str) -> dict[str, torch.Tensor]:
    """A file of random weights that the registry knows, in the cache; no server has it."""
    torch.manual_seed(0)
    state = build_backbone(backbone).weights_target().state_dict()
    torch.save(state, cache / "r.pth")
    digest = hashlib.sha256((cache / "r.pth").read_bytes()).hexdigest()
    entry = registry.PublishedWeights(backbone, "http://127.0.0.1:9/r.pth", digest)
    monkeypatch.setattr(registry, "REGISTRY", (replace(entry, **changes),))
    return state


def test_every_backbone_is_listed_once() -> None:
    listed = [entry.backbone for entry in registry.REGISTRY] + list(registry.UNPUBLISHED)
    assert sorted(listed) == sorted(get_args(BackboneName))


@pytest.mark.parametrize("entry", registry.REGISTRY, ids=lambda entry: entry.backbone)
def test_checksum_begins_with_the_digits_of_the_file_name(entry: registry.PublishedWeights) -> None:
    assert re.fullmatch("[0-9a-f]{64}", entry.sha256)
    assert entry.sha256.startswith(entry.url.rsplit("-", 1)[1].removesuffix(".pth"))


@pytest.mark.parametrize("entry", registry.REGISTRY, ids=lambda entry: entry.backbone)
def test_images_come_as_published_weights_expect_them(entry: registry.PublishedWeights) -> None:
    assert entry.name in registry.WEIGHTS_NAMES
    assert entry.channels == "RGB"
    assert [255 * value for value in entry.mean] == pytest.approx(transforms._MEAN.flatten().tolist())
    assert [255 * value for value in entry.std] == pytest.approx(transforms._STD.flatten().tolist())


@pytest.mark.parametrize("name", registry.UNPUBLISHED)
def test_backbone_without_published_weights_names_the_ways_out(name: str) -> None:
    with pytest.raises(ArgumentError, match=r"a local file as weights.*resnet50"):
        build_backbone(name, weights="imagenet")


def test_file_in_the_cache_needs_no_network_and_is_only_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = put_into(cache, monkeypatch, "resnet18")
    monkeypatch.setattr("rca_lightning.backbones.registry.fetch", None)
    loaded = build_backbone("resnet18", weights="imagenet").weights_target().state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_another_file_in_the_cache_is_named_and_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_into(cache, monkeypatch, "resnet18", sha256="0" * 64)
    before = (cache / "r.pth").read_bytes()
    with pytest.raises(WeightsError, match=r"SHA-256.*or remove this one") as caught:
        build_backbone("resnet18", weights="imagenet")
    assert "\n" not in str(caught.value)
    assert (cache / "r.pth").read_bytes() == before


def test_refused_connection_is_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "REGISTRY", (replace(registry.REGISTRY[0], url="http://127.0.0.1:9/r.pth"),))
    with pytest.raises(WeightsError, match=r"Put the file at .*r\.pth, or give a local file") as caught:
        build_backbone("resnet18", weights="imagenet")
    assert "\n" not in str(caught.value)


def test_cache_that_takes_no_files_names_both_ways_out(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.rmdir()
    cache.touch()
    with pytest.raises(OutputError, match=r"set RCA_CACHE to a folder.*, or give a local file"):
        build_backbone("resnet18", weights="imagenet")


def test_name_is_no_checkpoint() -> None:
    assert pca_arguments("imagenet") is None
    assert trained_padding("imagenet") == "zeros"


@pytest.mark.parametrize("stride_in", ["1x1", "3x3"])
@pytest.mark.parametrize("kind", [RCAModule, SegmentationModule, AffinityModule])
def test_stride_is_that_of_the_registry(
    kind: type, stride_in: str, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put_into(cache, monkeypatch, "resnet50", stride_in=stride_in)
    with caplog.at_level(logging.WARNING):
        module = kind(2, weights="imagenet")
    assert module.hparams["stride_in"] == stride_in
    block = module.network.get_submodule("backbone" if kind is not AffinityModule else "pyramid.backbone").layer2[0]
    strides = {"1x1": block.conv1.stride, "3x3": block.conv2.stride}
    assert strides.pop(stride_in) == (2, 2)
    assert set(strides.values()) == {(1, 1)}
    assert "features will be poor" not in caplog.text


def test_stride_that_is_typed_wins_and_is_warned_of(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put_into(cache, monkeypatch, "resnet50")
    backbone = build_backbone("resnet50", weights="imagenet", stride_in="1x1")
    assert backbone.get_submodule("layer2")[0].conv1.stride == (2, 2)  # type: ignore[index]
    assert "stride_in='1x1', but weights 'imagenet' of resnet50 were trained with '3x3'" in caplog.text


def test_stride_comes_with_a_checkpoint(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path)
    trainer.strategy.connect(SegmentationModule(2, weights="none", stride_in="1x1"))
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    source = str(tmp_path / "first.ckpt")
    assert trained_stride(source, backbone="resnet50") == "1x1"
    assert trained_stride(source, backbone="resnet18") == "3x3"  # has no bottleneck
    assert AffinityModule(2, weights=source).hparams["stride_in"] == "1x1"
    assert AffinityModule(2, weights=source, stride_in="3x3").hparams["stride_in"] == "3x3"
    assert {trained_stride(source, backbone="resnet50") for source in (None, "none")} == {"3x3"}
