"""Validation and prediction of label images, for modules with a network that gives the logits of every pixel."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from rca_lightning.arguments import check_arguments
from rca_lightning.data.sample import Batch
from rca_lightning.errors import require_extra
from rca_lightning.evaluation.report import metric_name
from rca_lightning.modules.data_checks import DataChecks
from rca_lightning.modules.training_guards import MetricResetMixin
from rca_lightning.segmentation.inference import LabelImage, draw_labels, label_probabilities

GivenTags = Literal["none", "image"]


class LabelPrediction(MetricResetMixin, DataChecks):
    """Scores label images by their mean IoU, and predicts them.

    A module that derives from it names `DataChecks` last among its bases: that loads checkpoints, after all others.
    Its `hparams` have `scales`, `flip`, `max_side`, `crf`, `eval_tags` and `predict_tags`; see `SegmentationModule`.

    Attributes:
        evaluation: a `LabelEvaluation`, the confusion matrix of the split.
        use_crf: whether a fully connected CRF refines the probabilities now: not in the validations of fit.
    """

    evaluation: Any
    use_crf: bool = False

    @property
    def segmenter(self) -> nn.Module:
        """The network that draws: normalised images `(B, 3, H, W)` -> logits `(B, L + 1, h, w)`."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Switches the CRF off in training; otherwise checks that its package is installed."""
        super().setup(stage)
        self.use_crf = self.hparams["crf"] and stage != "fit"
        if self.use_crf:
            require_extra("pydensecrf.densecrf", extra="crf", needed_for="crf=True")

    @check_arguments
    def score_name(self, split: Literal["val", "test"]) -> str:
        """Name of the mean IoU for the logger; it says whether true tags chose what is drawn."""
        return metric_name(split, "miou", self.hparams["eval_tags"])

    def label_probabilities(self, images: Tensor, tags: Tensor | None = None) -> Tensor:
        """Probabilities of every label, `(B, L + 1, h, w)`, with this module's scales and flip.

        Args:
            images: `(B, 3, H, W)`, normalised.
            tags: `(B, L)`, which a module that predicts tags itself reads; `draw_labels` restricts labels to them.
        """
        names = ("scales", "flip", "max_side")
        return label_probabilities(self.segmenter, images, **{name: self.hparams[name] for name in names})

    def label_images(self, images: Tensor, tags: Tensor | None = None) -> list[LabelImage]:
        """Label images of photographs at their own size, with this module's scales, flip and CRF.

        Args:
            images: `(B, 3, H, W)`, normalised.
            tags: `(B, L)`, the classes that may be drawn; a row below 0 and `None`: any.
        """
        probabilities = self.label_probabilities(images, tags)
        return draw_labels(probabilities, images, tags=tags, crf=self.use_crf, max_side=self.hparams["max_side"])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds the images that have a mask to the confusion matrix."""
        if "mask" in batch:
            tags = batch["tags"] if self.hparams["eval_tags"] == "image" else None
            predicted = self.label_images(batch["image"], tags)
            labels = [image.labels for image in predicted]
            self.evaluation.update(labels, batch["mask"], batch["tags"], batch["image_id"])

    def on_validation_epoch_end(self) -> None:
        """Logs the mean IoU of the split."""
        self._log_score("val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As `validation_step`."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Logs the mean IoU of the split."""
        self._log_score("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """For each image `image_id`, `labels` on the CPU, and `confidence`; see `LabelImage`."""
        if not batch["image_id"]:
            return []  # none of its images could be read
        tags = batch["tags"] if self.hparams["predict_tags"] == "image" else None
        return [
            {"image_id": image_id, "labels": image.labels.cpu(), "confidence": image.confidence}
            for image_id, image in zip(batch["image_id"], self.label_images(batch["image"], tags), strict=True)
        ]

    def _log_score(self, split: Literal["val", "test"]) -> None:
        scores = self.evaluation.finish()
        if scores is not None:
            self.log(self.score_name(split), scores.miou, prog_bar=True, sync_dist=False)
        self.tell_scores(scores)
