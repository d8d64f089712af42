"""Which task words and configuration files ask for."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonargparse import Namespace

from rca_lightning.cli.trainer import find_task
from rca_lightning.errors import ArgumentError


@pytest.fixture
def segment(tmp_path: Path) -> str:
    path = tmp_path / "lr=1.yaml"
    path.write_text("task: segment\nmodel: {head: deeplabv2}\n")
    return str(path)


@pytest.fixture
def localize(tmp_path: Path) -> str:
    path = tmp_path / "localize.yaml"
    path.write_text("fit:\n  task: localize\n")
    return str(path)


def test_nothing_said_is_localize(tmp_path: Path):
    (tmp_path / "plain.yaml").write_text("model: {backbone: resnet18}\n")
    assert find_task([]) == "localize"
    assert find_task(["fit", "--config", str(tmp_path / "plain.yaml"), "--model.lr", "1"]) == "localize"


@pytest.mark.parametrize("words", [["--task", "segment"], ["--task=segment"]], ids=str)
def test_word(words):
    assert find_task(["fit", *words, "--help"]) == "segment"


@pytest.mark.parametrize("form", [["--config", "{}"], ["--config={}"], ["-c", "{}"]], ids=str)
def test_configuration_file(form, segment):
    assert find_task(["validate", *(word.format(segment) for word in form)]) == "segment"


def test_later_words_win(segment, localize):
    assert find_task(["fit", "--config", segment, "--task", "localize"]) == "localize"
    assert find_task(["fit", "--task", "localize", "--config", segment]) == "segment"
    assert find_task(["fit", "--config", segment, "--config", localize]) == "localize"


def test_words_of_the_process(monkeypatch, segment):
    monkeypatch.setattr("sys.argv", ["rca", "fit", "--config", segment])
    assert find_task() == "segment"


@pytest.mark.parametrize("wrap", [dict, lambda content: Namespace(subcommand="fit", fit=Namespace(**content))])
def test_arguments_as_an_object(wrap):
    assert find_task(wrap({"task": "segment"})) == "segment"
    assert find_task(wrap({"ckpt_path": None})) == "localize"


@pytest.mark.parametrize("value", ["segmentation", "", "Segment"])
def test_another_task_is_refused(value):
    with pytest.raises(
        ArgumentError, match=rf"^task='{value}': give one of localize, segment, segment_frozen, one_stage, affinity$"
    ):
        find_task(["fit", "--task", value])


@pytest.mark.parametrize("content", ["task: [segment]", "task:", "task: 1"])
def test_another_task_in_a_file_is_refused(content, tmp_path: Path):
    (tmp_path / "odd.yaml").write_text(content)
    with pytest.raises(ArgumentError, match=r"^task="):
        find_task(["fit", "--config", str(tmp_path / "odd.yaml")])


@pytest.mark.parametrize("content", [b"task: [", b"\xff\xfe\x00", b"- task", b""])
def test_files_that_are_no_configuration_are_left_to_the_parser(content, tmp_path: Path):
    (tmp_path / "odd.yaml").write_bytes(content)
    assert find_task(["fit", "--config", str(tmp_path / "odd.yaml")]) == "localize"
    assert find_task(["fit", "--config", str(tmp_path / "missing.yaml")]) == "localize"
    assert find_task(["fit", "--config"]) == "localize"
