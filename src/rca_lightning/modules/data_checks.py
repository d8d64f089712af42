"""Checks a module against its data: class names, and masks that lack a class."""

from __future__ import annotations

import logging

from lightning.pytorch.utilities import rank_zero_only

from rca_lightning.errors import ArgumentError, refuse_other_classes
from rca_lightning.evaluation.report import Scores
from rca_lightning.modules.checked_loading import CheckedLoading
from rca_lightning.modules.logger_tables import log_scores
from rca_lightning.modules.score_record import log_protocol, score_protocol

_log = logging.getLogger(__name__)
_warn = rank_zero_only(_log.warning)
_note = rank_zero_only(_log.info)


class DataChecks(CheckedLoading):
    """Refuses data of other classes, and seeds that nothing reads; tells scores and what the masks lack."""

    @property
    def reads_seeds(self) -> bool:
        """Whether a fit reads the maps of `seed_dir`."""
        return False

    def __init__(self) -> None:
        super().__init__()
        self._warned: set[str] = set()
        self._has_told_protocol = False  # of this fit, whose validations have one

    def setup(self, stage: str) -> None:
        """Compare the classes with those of the data module."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        names = getattr(data, "class_names", None)
        if names is not None and len(names) != self.hparams["num_classes"]:
            raise ArgumentError(
                "num_classes", self.hparams["num_classes"], f"the data has {len(names)} classes; give its num_classes"
            )
        refuse_other_classes(
            names,
            self.hparams["class_names"],
            where="the data",
            here="the module",
            remedy="give the data module the classes that the module was trained with, in their order",
        )
        if stage == "fit":
            self._warned.clear()
            self._has_told_protocol = False
            seed_dir = getattr(data, "seed_dir", None)
            if seed_dir is not None and not self.reads_seeds:
                remedy = "only regions of RCAModule behind a frozen backbone are cut from it; leave it out"
                raise ArgumentError("seed_dir", seed_dir, remedy)

    def tell_scores(self, scores: Scores | None) -> None:
        """Log the scores of a validation, in `fit` in a line too, and once what the masks of the split lack."""
        trainer = self.trainer
        if trainer.sanity_checking:
            return
        if scores is None:
            self.warn_once("no image that was validated has a mask, so there is no score")
            return
        if trainer.state.fn == "fit":
            _note("epoch %d: %s", trainer.current_epoch + 1, scores.line())
        log_scores(trainer, scores, self.class_names, self.hparams["eval_tags"])
        fits = trainer.state.fn == "fit"
        if trainer.loggers and trainer.is_global_zero and not (fits and self._has_told_protocol):
            log_protocol(trainer, score_protocol(self, scores))
        self._has_told_protocol = fits
        for line in scores.warnings(self.class_names):
            self.warn_once(f"validation: {line}")

    def warn_once(self, line: str) -> None:
        """Log a warning that this run has not logged yet."""
        if line not in self._warned:
            self._warned.add(line)
            _warn("%s", line)
