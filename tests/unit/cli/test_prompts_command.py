"""The command `rca prompts`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from rca_lightning.backbones import prompts
from rca_lightning.backbones.prompts import TextEmbeddings, read_text_embeddings
from rca_lightning.cli.prompts import main
from rca_lightning.errors import DataError, DatasetNotFoundError, MissingExtraError, OutputError


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Takes the place of the text tower, and keeps what it is asked."""
    calls = []

    def embed(class_names, texts, *, model, weights):
        calls.append({"model": model, "weights": weights})
        rows = torch.eye(len(class_names) + len(texts.background))
        return TextEmbeddings(rows[: len(class_names)], rows[len(class_names) :], tuple(class_names), model)

    monkeypatch.setattr(prompts, "embed_prompts", embed)
    return calls


def test_a_file_is_written_and_told_of(asked: list[dict], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "own.yaml").write_text("background: [sky, grass, wall]\n")
    out = tmp_path / "new" / "prompts.npz"
    words = ["--classes", str(tmp_path / "classes.txt"), "--weights", "w.safetensors", "--out", str(out)]
    main([*words, "--prompts", str(tmp_path / "own.yaml")])
    assert capsys.readouterr().out == f"text embeddings of 2 classes and 3 of the background: {out}\n"
    found = read_text_embeddings(out, ["dog", "cat"])
    assert torch.equal(found.classes, torch.eye(5)[[1, 0]])
    assert asked == [{"model": "ViT-B-16-quickgelu", "weights": "w.safetensors"}]


@pytest.mark.parametrize(("name", "count"), [("voc2012", 20), ("coco", 80)])
def test_classes_of_data_sets_have_names(asked: list[dict], tmp_path: Path, capsys, name: str, count: int):
    main(["--classes", name, "--weights", "none", "--out", str(tmp_path / "p.npz")])
    assert f"of {count} classes" in capsys.readouterr().out
    assert asked[0]["weights"] is None


def test_what_is_wrong_is_one_error(asked: list[dict], tmp_path: Path):
    (tmp_path / "classes.txt").write_text("cat\n")
    (tmp_path / "file").write_text("")
    classes, weights = ["--classes", str(tmp_path / "classes.txt")], ["--weights", "none"]
    out = ["--out", str(tmp_path / "p.npz")]
    with pytest.raises(DatasetNotFoundError):
        main(["--classes", str(tmp_path / "none.txt"), *weights, *out])
    with pytest.raises(OutputError):
        main([*classes, *weights, "--out", str(tmp_path / "file" / "p.npz")])
    with pytest.raises(DatasetNotFoundError):
        main([*classes, *weights, *out, "--prompts", str(tmp_path / "none.yaml")])
    (tmp_path / "bad.yaml").write_text("words: []")
    with pytest.raises(DataError):
        main([*classes, *weights, *out, "--prompts", str(tmp_path / "bad.yaml")])
    with pytest.raises(SystemExit):
        main([*classes, *out])
    assert asked == []
    assert not (tmp_path / "p.npz").exists()


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingExtraError, match=r"rca-lightning\[clip\]"):
        main(["--classes", "voc2012", "--weights", "none", "--out", str(tmp_path / "p.npz")])
