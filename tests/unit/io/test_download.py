"""Weights from the network: checksums, the cache, and what a failed download leaves."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tests.file_server import serve_files
from torch import nn

from rca_lightning.backbones.build import build_backbone
from rca_lightning.backbones.weights import load_weights
from rca_lightning.errors import ArgumentError, OutputError, WeightsError
from rca_lightning.io import download


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A server on this machine with one file of weights: address, state, checksum and the paths it was asked for."""
    monkeypatch.setenv("RCA_CACHE", str(tmp_path / "cache"))
    state, buffer = network().state_dict(), io.BytesIO()
    torch.save(state, buffer)
    with serve_files() as server:
        server.files["/models/net.pth"] = body = buffer.getvalue()
        server.pause = 0.2  # longer than others need to ask for the same
        yield f"{server.url}/models/net.pth", state, hashlib.sha256(body).hexdigest(), server.asked


def test_download_is_kept_and_found_again(served, tmp_path):
    url, state, digest, asked = served
    for _ in range(2):
        module = network()
        load_weights(module, url, sha256=digest.upper())
        assert torch.equal(module[0].weight, state["0.weight"])
    assert asked == ["/models/net.pth"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"{digest[:16]}-net.pth"]


def test_damaged_copy_in_the_cache_is_replaced(served, tmp_path):
    url, state, digest, asked = served
    load_weights(network(), url, sha256=digest)
    next((tmp_path / "cache").iterdir()).write_bytes(b"damaged")
    module = network()
    load_weights(module, url, sha256=digest)
    assert torch.equal(module[0].weight, state["0.weight"])
    assert len(asked) == 2


def test_wrong_checksum_keeps_nothing(served, tmp_path):
    url, _, digest, _ = served
    with pytest.raises(WeightsError, match=f"{'1' * 64}.*{digest}"):
        load_weights(network(), url, sha256="1" * 64)
    assert list((tmp_path / "cache").iterdir()) == []


def test_url_needs_a_checksum(served):
    url, _, _, asked = served
    with pytest.raises(ArgumentError, match=r"sha256=None.*weights_sha256.*sha256sum"):
        load_weights(network(), url)
    with pytest.raises(ArgumentError, match=r"sha256='ab12'.*64 digits"):
        download.fetch(url, sha256="ab12")
    assert asked == []


def test_failed_download_is_named_and_leaves_nothing(served, tmp_path):
    url, _, digest, _ = served
    with pytest.raises(WeightsError, match=r"absent.pth cannot be downloaded \(HTTP Error 404"):
        load_weights(network(), url.replace("net", "absent"), sha256=digest)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_takes_no_files_is_named(served, tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(
        OutputError, match=r"^RCA_CACHE='.*cache' cannot be written to \(.*\); set RCA_CACHE to a folder"
    ):
        load_weights(network(), served[0], sha256=served[2])
    assert served[3] == []


def test_a_server_that_never_answers_ends_the_download(tmp_path, monkeypatch):
    monkeypatch.setenv("RCA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(WeightsError, match="timed out"):
        download.fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/net.pth", sha256="1" * 64)
    assert list((tmp_path / "cache").iterdir()) == []
    assert socket.getdefaulttimeout() is None


def test_name_in_a_url_cannot_leave_the_cache(served, tmp_path):
    url, _, digest, _ = served
    with pytest.raises(WeightsError, match="cannot be downloaded"):
        download.fetch(url.replace("models/net.pth", "..%2f..%2fup\\..\\x"), sha256=digest)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"]


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("RCA_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert download.cache_folder() == tmp_path / "rca_lightning"
    monkeypatch.setenv("RCA_CACHE", str(tmp_path / "chosen"))
    assert download.cache_folder() == tmp_path / "chosen"


def test_backbone_takes_a_url_and_its_checksum(served):
    url, _, digest, asked = served
    with pytest.raises(WeightsError, match="does not fit ResNet: missing keys"):
        build_backbone("resnet18", weights=url, weights_sha256=digest)
    assert len(asked) == 1


def test_of_several_that_ask_at_once_one_downloads(served, tmp_path):
    url, _, digest, asked = served
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: download.fetch(url, sha256=digest, name="net.pth"), range(4)))
    assert found == [tmp_path / "cache" / "net.pth"] * 4
    assert asked == ["/models/net.pth"]


def test_what_killed_downloads_left_is_removed_once_nobody_writes_it(served, tmp_path):
    url, _, digest, _ = served
    (tmp_path / "cache").mkdir()
    kept = {"net.pth.new.partial", "other.pth.old.partial"}
    for name in (*kept, "net.pth.old.partial"):
        (tmp_path / "cache" / name).write_bytes(b"half")
        if "old" in name:
            os.utime(tmp_path / "cache" / name, (time.time() - 7200,) * 2)
    download.fetch(url, sha256=digest, name="net.pth")
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"net.pth", *kept}
