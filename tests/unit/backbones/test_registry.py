"""Weights by name."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from rca_lightning.backbones import registry
from rca_lightning.backbones.build import BackboneName, build_backbone
from rca_lightning.backbones.weights import pca_arguments, trained_padding
from rca_lightning.errors import ArgumentError, WeightsError


def test_every_backbone_is_listed_once() -> None:
    listed = [entry.backbone for entry in registry.REGISTRY] + list(registry.UNPUBLISHED)
    assert sorted(listed) == sorted(get_args(BackboneName))


@pytest.mark.parametrize("entry", registry.REGISTRY, ids=lambda entry: entry.backbone)
def test_checksum_begins_with_the_digits_of_the_file_name(entry: registry.PublishedWeights) -> None:
    assert re.fullmatch("[0-9a-f]{64}", entry.sha256)
    assert entry.sha256.startswith(entry.url.rsplit("-", 1)[1].removesuffix(".pth"))


@pytest.mark.parametrize("name", registry.UNPUBLISHED)
def test_backbone_without_published_weights_names_the_ways_out(name: str) -> None:
    with pytest.raises(ArgumentError, match=r"--model.weights FILE.*resnet50"):
        build_backbone(name, weights="imagenet")


def test_strides_elsewhere_are_refused() -> None:
    with pytest.raises(ArgumentError, match="stride_in"):
        build_backbone("resnet50", weights="imagenet", stride_in="1x1")


def test_file_in_the_cache_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCA_CACHE", str(tmp_path))
    state = build_backbone("resnet18").weights_target().state_dict()
    torch.save(state, tmp_path / "r.pth")
    digest = hashlib.sha256((tmp_path / "r.pth").read_bytes()).hexdigest()
    entry = replace(registry.REGISTRY[0], url="http://127.0.0.1:9/r.pth", sha256=digest)
    monkeypatch.setattr(registry, "REGISTRY", (entry,))
    loaded = build_backbone("resnet18", weights="imagenet").weights_target().state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    monkeypatch.setattr(registry, "REGISTRY", (replace(entry, sha256="0" * 64),))
    with pytest.raises(WeightsError, match="SHA-256"):
        build_backbone("resnet18", weights="imagenet")


def test_refused_connection_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCA_CACHE", str(tmp_path))
    monkeypatch.setattr(registry, "REGISTRY", (replace(registry.REGISTRY[0], url="http://127.0.0.1:9/r.pth"),))
    with pytest.raises(WeightsError, match=r"Put the file at .*r\.pth, or give a local file") as caught:
        build_backbone("resnet18", weights="imagenet")
    assert "\n" not in str(caught.value)


def test_name_is_no_checkpoint() -> None:
    assert pca_arguments("imagenet") is None
    assert trained_padding("imagenet") == "zeros"
