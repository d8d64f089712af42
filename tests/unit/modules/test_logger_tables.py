"""Tables of a run in TensorBoard and Weights & Biases."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.unit.callbacks.panel_runs import Recorder, build, loader, samples, trainer

from rca_lightning.evaluation.report import Scores
from rca_lightning.modules.logger_tables import log_scores, log_table


def texts(folder) -> dict[str, list[tuple[int, str]]]:
    events = EventAccumulator(str(folder)).Reload()
    names = [tag for tag in events.Tags()["tensors"] if tag.endswith("/text_summary")]
    return {
        name.removesuffix("/text_summary"): [
            (event.step, event.tensor_proto.string_val[0].decode()) for event in events.Tensors(name)
        ]
        for name in names
    }


def test_a_validation_leaves_scores_by_class_and_the_curve(tmp_path):
    board, wandb = TensorBoardLogger(tmp_path, name="run", version=0), Recorder()
    run = trainer(None, tmp_path, logger=[board, wandb], max_epochs=2, num_sanity_val_steps=1)
    module = build(lr=1e-4)
    run.fit(module, loader(samples(4)), loader(samples(2)))
    board.finalize("success")
    header, *rows = wandb.tables["val/scores_by_class_true_tags"]
    assert header == ["class", "IoU", "precision", "recall"]
    assert [row[0] for row in rows] == ["background", *module.class_names]
    known = [row[1] for row in rows if row[1] is not None]
    logged = 100 * float(run.callback_metrics["val/miou_true_tags"])
    assert sum(known) / len(known) == pytest.approx(logged, abs=0.01)
    header, *curve = wandb.tables["val/miou_by_threshold_true_tags"]
    assert header == ["background threshold", "mIoU"]
    oracle = 100 * float(run.callback_metrics["val/miou_true_tags_oracle"])
    assert max(value for _, value in curve) == pytest.approx(oracle, abs=0.01)
    assert logged <= oracle + 0.01
    written = texts(tmp_path / "run" / "version_0")
    assert [step for step, _ in written["val/scores_by_class_true_tags"]] == [2, 4]  # not of the sanity check
    assert written["val/scores_by_class_true_tags"][-1][1].count("\n") == 1 + len(rows)


def test_numbers_are_percent_and_what_is_not_known_is_empty(tmp_path):
    run = trainer(None, tmp_path, logger=(wandb := Recorder()))
    values = torch.tensor([0.5, math.nan, 0.12345])
    curve = {0.0: 0.1, 0.01: 0.2, 0.05: 0.3, 0.15: 0.4}
    log_scores(
        run,
        Scores(images=1, miou=0.3, iou=values, precision=values, recall=values, curve=curve),
        ["cat", "dog"],
        "none",
    )
    assert wandb.tables["val/scores_by_class"][1:] == [
        ["background", 50.0, 50.0, 50.0],
        ["cat", None, None, None],
        ["dog", 12.35, 12.35, 12.35],
    ]
    assert wandb.tables["val/miou_by_threshold"][1:] == [[0.0, 10.0], [0.05, 30.0], [0.15, 40.0]]


def test_a_table_in_tensorboard_is_markdown(tmp_path):
    board = TensorBoardLogger(tmp_path, name="run", version=0)
    log_table(trainer(None, tmp_path, logger=board), "one/table", ("class", "IoU"), [["a|b", 1.5], ["c", None]])
    board.finalize("success")
    assert texts(tmp_path / "run" / "version_0")["one/table"] == [
        (0, "| class | IoU |\n| --- | --- |\n| a\\|b | 1.5 |\n| c |  |")
    ]
