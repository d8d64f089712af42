"""Record of what a score of a run rests on, for its file and for the loggers."""

from __future__ import annotations

import json
from typing import Any, Literal

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from rca_lightning.evaluation.comparison import flat_entries, protocol_name
from rca_lightning.evaluation.protocol import describe_file, make_protocol, supervision_used
from rca_lightning.evaluation.report import Scores
from rca_lightning.modules.checked_loading import CheckedLoading
from rca_lightning.modules.logger_tables import log_table


def split_of_run(trainer: L.Trainer) -> Literal["val", "test"]:
    """What names of logged scores begin with."""
    return "test" if trainer.state.fn == TrainerFn.TESTING else "val"


def score_protocol(module: CheckedLoading, scores: Scores) -> dict[str, Any]:
    """Lists what the scores of a validation or a test rest on; see `make_protocol`.

    Args:
        module: with its trainer.
        scores: with the counts of single images.
    """
    trainer, settings = module.trainer, module.hparams
    assert scores.image_counts is not None
    split = getattr(getattr(trainer, "datamodule", None), "eval_split", split_of_run(trainer))
    tags = None if settings["eval_tags"] == "none" else settings["eval_tags"]
    of_seeds = scores.threshold is not None
    return make_protocol(
        split=split,
        ids=scores.image_counts.ids,
        supervision=supervision_used(tags=tags, settings=settings, training=module.supervision_on_record),
        settings=settings,
        threshold=scores.threshold_source,
        threshold_split=split,
        # A fit scores what it is training; the file that it goes on from is another network.
        checkpoint=None if trainer.state.fn == TrainerFn.FITTING else describe_file(trainer.ckpt_path),
        weights=module.weights_on_record,
        background={"background_threshold": scores.threshold} if of_seeds else None,
        **(module.protocol_of_maps(tags) if of_seeds else {}),
    )


def log_protocol(trainer: L.Trainer, protocol: dict[str, Any]) -> None:
    """Gives the protocol of a score to the loggers: as hyperparameters, or to TensorBoard as a table.

    The hyperparameters are `val_protocol`, the entries, and `val_protocol_name`; of a test `test_protocol` and
    `test_protocol_name`. Scores of one name may be compared. TensorBoard keeps only the hyperparameters that a run
    begins with.

    Args:
        trainer: of the run; only its first rank logs.
        protocol: see `make_protocol`.
    """
    if not trainer.is_global_zero:
        return
    split, name = split_of_run(trainer), protocol_name(protocol)
    for destination in trainer.loggers:
        if not isinstance(destination, TensorBoardLogger):
            destination.log_hyperparams({f"{split}_protocol": protocol, f"{split}_protocol_name": name})
    rows = [["name", name], *([entry, _in_words(value)] for entry, value in flat_entries(protocol))]
    log_table(trainer, f"{split}/protocol", ("entry", "value"), rows)


def _in_words(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
