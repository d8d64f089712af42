"""The command `rca weights`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.file_server import FileServer, serve_files

from rca_lightning.backbones import registry
from rca_lightning.cli import weights
from rca_lightning.cli.main import main
from rca_lightning.errors import ArgumentError, WeightsError

BODIES = {"resnet18": b"eighteen" * 100, "vgg16": b"sixteen" * 100}


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A registry of two files on a server; the cache is empty."""
    monkeypatch.setenv("RCA_CACHE", str(tmp_path / "cache"))
    with serve_files() as server:
        server.files = {f"/{name}.pth": body for name, body in BODIES.items()}
        entries = tuple(
            registry.PublishedWeights(name, f"{server.url}/{name}.pth", hashlib.sha256(body).hexdigest())
            for name, body in BODIES.items()
        )
        for module in (registry, weights):
            monkeypatch.setattr(module, "REGISTRY", entries)
        yield server


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """What `rca weights ...` prints."""

    def run(*words: object) -> list[str]:
        main(["weights", *map(str, words)])
        return capsys.readouterr().out.splitlines()

    return run


def test_list_says_what_the_registry_says_and_what_is_cached(
    served: FileServer, lines: Callable[..., list[str]], tmp_path: Path
) -> None:
    def cached() -> dict[str, str]:
        table = [line.split() for line in lines("list")[:3]]
        assert table[0] == ["backbone", "weights", "stride_in", "licence", "cached", "address"]
        return {row[0]: row[4] for row in table[1:]}

    assert cached() == {"resnet18": "no", "vgg16": "no"}
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "vgg16.pth").write_bytes(BODIES["vgg16"])
    assert cached() == {"resnet18": "no", "vgg16": "yes"}
    text = "\n".join(lines("list"))
    for part in ("BSD-3-Clause", "RGB", "(0.485, 0.456, 0.406)", "resnet14, resnet38d", str(tmp_path / "cache")):
        assert part in text
    assert served.asked == []


def test_list_of_the_real_registry_fits_a_screen(lines: Callable[..., list[str]]) -> None:
    table = lines("list")
    assert len(table) <= 24
    assert [line.split()[0] for line in table[1:6]] == ["resnet18", "resnet34", "resnet50", "resnet101", "vgg16"]
    assert all(entry.url in "\n".join(table) for entry in registry.REGISTRY)


def test_fetch_downloads_once_and_verify_finds_it_right(
    served: FileServer, lines: Callable[..., list[str]], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    assert lines("verify") == [f"nothing to verify in {cache}; rca weights fetch BACKBONE downloads"]
    expected = [f"resnet18: {cache / 'resnet18.pth'}", f"vgg16: {cache / 'vgg16.pth'}"]
    assert lines("fetch", "resnet18", "vgg16") == expected
    assert lines("fetch", "resnet18", "vgg16") == expected
    assert served.asked == ["/resnet18.pth", "/vgg16.pth"]
    right = [f"verified: {cache / name}.pth is imagenet of {name}" for name in BODIES]
    assert lines("verify") == right
    assert lines("verify", "vgg16") == right[1:]
    assert len(served.asked) == 2


def test_verify_names_every_file_that_is_not_right(
    served: FileServer, lines: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines("fetch", "vgg16")
    (tmp_path / "cache" / "vgg16.pth").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match=r"no .*18\.pth; get it by rca weights fetch resnet18; .*vgg16.*SHA-256"):
        lines("verify", "resnet18", "vgg16")
    (tmp_path / "cache" / "resnet18.pth").write_bytes(BODIES["resnet18"])
    with pytest.raises(WeightsError, match=r"vgg16\.pth has the SHA-256 .*remove it, then rca weights fetch vgg16"):
        lines("verify")
    assert capsys.readouterr().out == f"verified: {tmp_path / 'cache' / 'resnet18.pth'} is imagenet of resnet18\n"


def test_verify_a_file_elsewhere(served: FileServer, lines: Callable[..., list[str]], tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    with pytest.raises(WeightsError, match=r"^file='.*mine\.pth': there is no such file"):
        lines("verify", "--file", path)
    path.write_bytes(BODIES["vgg16"])
    for words in ((), ("vgg16",)):
        assert lines("verify", *words, "--file", path) == [f"verified: {path} is imagenet of vgg16"]
    digest = hashlib.sha256(BODIES["vgg16"]).hexdigest()
    with pytest.raises(WeightsError, match=f"{digest}, which no published weights of resnet18 have"):
        lines("verify", "resnet18", "--file", path)
    path.write_bytes(b"other")
    with pytest.raises(WeightsError, match="which no published weights of any backbone have"):
        lines("verify", "--file", path)


@pytest.mark.parametrize("action", ["fetch", "verify"])
def test_unknown_backbone_names_the_known_ones(
    served: FileServer, lines: Callable[..., list[str]], action: str
) -> None:
    with pytest.raises(ArgumentError, match=r"none are known for resnet38d.*take one of resnet18, vgg16"):
        lines(action, "resnet38d")
    assert served.asked == []


@pytest.mark.parametrize("words", [["--help"], ["list", "--help"], ["fetch", "--help"], ["verify", "--help"]])
def test_help_is_short(words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main(["weights", *words])
    assert ended.value.code == 0
    assert 4 < len(capsys.readouterr().out.splitlines()) <= 20
