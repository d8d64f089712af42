"""Settings as words, words as settings."""

from __future__ import annotations

import pytest
from ablate.words import as_words, further_words

from rca_lightning.errors import ArgumentError


def test_values_are_written_as_the_command_line_reads_them():
    settings = {
        "model.num_prototypes": 3,
        "model.contrast": False,
        "model.embedding_dim": None,
        "model.scales": [0.5, 1.0],
        "memory.rule": "ema_ring",
        "model.lr": 0.001,
        "data.split_files": {"train": "a b.txt"},
    }
    assert as_words(settings) == [
        "--model.num_prototypes=3",
        "--model.contrast=false",
        "--model.embedding_dim=null",
        "--model.scales=[0.5, 1.0]",
        "--memory.rule=ema_ring",
        "--model.lr=0.001",
        '--data.split_files={"train": "a b.txt"}',
    ]


def test_further_words_come_in_two_forms():
    given = ["--data.root", "a folder", "--model.weights=w=1.pth", "--trainer.callbacks+=X", "--model.lr", "-1"]
    assert further_words(given) == [
        "--data.root=a folder",
        "--model.weights=w=1.pth",
        "--trainer.callbacks+=X",
        "--model.lr=-1",
    ]


@pytest.mark.parametrize(
    "given",
    [
        ["stray"],
        ["--data.root"],
        ["--data.root", "--model.lr=1"],
        ["--row=a"],  # a slip in an option of the tool must not travel to every run
        ["--seed_everything=3"],
        ["--ckpt_path", "last.ckpt"],
        ["--trainer.default_root_dir=x"],
        ["--trainer.logger=true"],
    ],
)
def test_words_that_belong_to_nothing(given: list[str]):
    with pytest.raises(ArgumentError):
        further_words(given)
