"""`--model.weights imagenet` on the command line: downloaded once, or one line with the ways out."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rca_lightning.backbones import registry
from rca_lightning.backbones.build import build_backbone
from rca_lightning.cli.main import console
from rca_lightning.io import download
from tests.file_server import FileServer, serve_files
from tests.integration.running import run

ROOT = Path(__file__).resolve().parents[2]
NAME = "resnet14-01234567.pth"
BOTH_WAYS = r"Put the file at {path}, or give a local file as weights$"


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return build_backbone("resnet14").weights_target().state_dict()


@pytest.fixture
def served(state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A server with the weights of the smallest backbone, which the registry then knows; the cache is empty."""
    monkeypatch.setenv("RCA_CACHE", str(tmp_path / "cache"))
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with serve_files() as server:
        server.files[f"/models/{NAME}"] = body = buffer.getvalue()
        digest = hashlib.sha256(body).hexdigest()
        entry = registry.PublishedWeights("resnet14", f"{server.url}/models/{NAME}", digest)
        monkeypatch.setattr(registry, "REGISTRY", (entry,))
        yield server


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / NAME


def change_entry(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    monkeypatch.setattr(registry, "REGISTRY", (replace(registry.REGISTRY[0], **changes),))


def failed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: Path) -> str:
    """What `rca fit` says before it ends with an error: one line."""
    words = ["fit", "--config", config, "--model.backbone=resnet14", "--model.weights=imagenet"]
    monkeypatch.setattr(sys, "argv", ["rca", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        console()
    line = str(ended.value.code)
    assert line.startswith("rca: ")
    assert "\n" not in line
    assert "Traceback" not in capsys.readouterr().err
    return line


def test_fetched_once_and_loaded(
    served: FileServer, target: Path, state: dict[str, torch.Tensor], config: Path, tmp_path: Path
) -> None:
    for folder in ("first", "second"):
        more = ["--model.backbone=resnet14", "--model.weights=imagenet", "--trainer.max_epochs=1"]
        more += ["--features.folder", str(tmp_path / "features"), f"--trainer.default_root_dir={tmp_path / folder}"]
        cli = run("fit", config, *more)
        assert cli.model.is_frozen  # the default where weights are given
        loaded = cli.model.network.backbone.weights_target().state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in state.items())
    assert served.asked == [f"/models/{NAME}"]
    assert [path.name for path in target.parent.iterdir()] == [NAME]


def test_wrong_digest(served: FileServer, target: Path, config: Path, monkeypatch: Any, capsys: Any) -> None:
    change_entry(monkeypatch, sha256="1" * 64)
    line = failed(monkeypatch, capsys, config)
    assert re.search(f'expected "{"1" * 64}", got "[0-9a-f]{{64}}"', line)
    assert re.search(BOTH_WAYS.format(path=target), line)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize(("status", "reason"), [(404, "Not Found"), (403, "Forbidden"), (500, "Internal Server Error")])
def test_the_server_refuses(
    served: FileServer, target: Path, config: Path, monkeypatch: Any, capsys: Any, status: int, reason: str
) -> None:
    served.status[f"/models/{NAME}"] = status
    line = failed(monkeypatch, capsys, config)
    assert f"cannot be downloaded (HTTP Error {status}: {reason})" in line
    assert re.search(BOTH_WAYS.format(path=target), line)
    assert list(target.parent.iterdir()) == []


def test_connection_refused(served: FileServer, target: Path, config: Path, monkeypatch: Any, capsys: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/{NAME}"
    change_entry(monkeypatch, url=url)
    line = failed(monkeypatch, capsys, config)
    assert f"weights='imagenet': {url} cannot be downloaded (<urlopen error [Errno" in line
    assert re.search(BOTH_WAYS.format(path=target), line)


def test_offline_then_by_a_file_put_into_the_cache(
    served: FileServer, target: Path, config: Path, monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    def no_names(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_names)
    line = failed(monkeypatch, capsys, config)
    assert "Name or service not known" in line
    assert re.search(BOTH_WAYS.format(path=target), line)
    body = served.files[f"/models/{NAME}"]
    target.write_bytes(body[:-1])
    line = failed(monkeypatch, capsys, config)
    assert re.search(rf"{target} has the SHA-256 .* remove this one and it is downloaded$", line)
    target.write_bytes(body)
    more = ["--model.backbone=resnet14", "--trainer.max_epochs=1", f"--features.folder={tmp_path / 'features'}"]
    by_name = run("fit", config, *more, "--model.weights=imagenet").model.network.backbone.state_dict()
    local = tmp_path / "mine.pth"
    target.rename(local)
    by_file = run("fit", config, *more, f"--model.weights={local}").model.network.backbone.state_dict()
    assert all(torch.equal(by_file[key], value) for key, value in by_name.items())
    assert served.asked == []


def test_connection_that_breaks_off_leaves_nothing_and_the_next_call_begins_anew(
    served: FileServer, target: Path, config: Path, monkeypatch: Any, capsys: Any
) -> None:
    served.broken.add(f"/models/{NAME}")
    line = failed(monkeypatch, capsys, config)
    assert "it broke off or is another file" in line
    assert re.search(BOTH_WAYS.format(path=target), line)
    assert list(target.parent.iterdir()) == []
    served.broken.clear()
    assert registry.weights_file(registry.REGISTRY[0]) == target
    assert target.read_bytes() == served.files[f"/models/{NAME}"]


def test_killed_download_has_no_file_of_the_final_name(served: FileServer, target: Path) -> None:
    """The process is killed when half of the file is there; the next one downloads the whole."""
    body = served.files[f"/models/{NAME}"]
    half = len(body) // 2
    with socket.create_server(("127.0.0.1", 0)) as slow:
        url = f"http://127.0.0.1:{slow.getsockname()[1]}/{NAME}"
        code = (
            "import sys; from rca_lightning.io.download import fetch; "
            "fetch(sys.argv[1], sha256=sys.argv[2], name=sys.argv[3])"
        )
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-c", code, url, registry.REGISTRY[0].sha256, NAME]
        with subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL) as process:
            slow.settimeout(120)
            connection, _ = slow.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:half])
                while not any(path.stat().st_size > 0 for path in target.parent.glob("*.partial")):
                    assert process.poll() is None
                process.send_signal(signal.SIGKILL)
                process.wait()
    (left,) = target.parent.iterdir()
    assert left.suffix == ".partial"
    os.utime(left, (0, 0))
    assert registry.weights_file(registry.REGISTRY[0]) == target
    assert [path.name for path in target.parent.iterdir()] == [NAME]
    assert target.read_bytes() == body


def test_read_only_cache(served: FileServer, target: Path, config: Path, monkeypatch: Any, capsys: Any) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    target.parent.mkdir()
    # Permissions do not hold for root, so the file system says it.
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", read_only)
        line = failed(monkeypatch, capsys, config)
        assert re.search(r"RCA_CACHE='.*' cannot be written to \(.*Read-only file system\); set RCA_CACHE", line)
        assert line.endswith("or give a local file as weights")
        assert served.asked == []
        target.write_bytes(served.files[f"/models/{NAME}"])
        assert registry.weights_file(registry.REGISTRY[0]) == target  # a file that is there is only read


def test_slow_server_ends_after_the_timeout(
    served: FileServer, target: Path, config: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        change_entry(monkeypatch, url=f"http://127.0.0.1:{silent.getsockname()[1]}/{NAME}")
        line = failed(monkeypatch, capsys, config)
    assert "timed out" in line
    assert re.search(BOTH_WAYS.format(path=target), line)


@pytest.mark.parametrize(
    "words",
    [
        ["weights", "fetch", "resnet50"],
        ["fit", "--data.dataset=synthetic", "--model.weights=imagenet", "--trainer.accelerator=cpu"],
    ],
    ids=["weights", "fit"],
)
def test_without_a_network_a_user_reads_one_line(words: list[str], tmp_path: Path) -> None:
    """The real registry in a process of its own, behind a proxy that is not there."""
    proxy = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"} | proxy
    environment |= {"RCA_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "rca_lightning", *words],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    target = tmp_path / "resnet50-0676ba61.pth"
    assert line.startswith("rca: weights='imagenet': https://download.pytorch.org/models/resnet50-0676ba61.pth cannot")
    assert re.search(BOTH_WAYS.format(path=target), line)
    assert not list(tmp_path.glob("*.pth*"))
