"""Writer of predicted label images: masks, and the files that benchmark servers take."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
from torch import Tensor

from rca_lightning.arguments import check_arguments
from rca_lightning.callbacks.prediction_writer import PredictionWriter
from rca_lightning.data.images import open_image
from rca_lightning.data.sample import Batch
from rca_lightning.data.visualization import denormalise
from rca_lightning.errors import ArgumentError, OutputError
from rca_lightning.io.output_folder import Existing
from rca_lightning.io.tensor_file import tensor_digest
from rca_lightning.modules.frozen_segmentation_module import FrozenSegmentationModule
from rca_lightning.modules.label_prediction import LabelPrediction
from rca_lightning.modules.one_stage_module import OneStageModule
from rca_lightning.modules.segmentation_module import SegmentationModule
from rca_lightning.pseudo_labels.files import write_mask_file, write_overlay_file
from rca_lightning.submission.coco import CocoForm, write_coco_results
from rca_lightning.submission.voc import VOC_FOLDER

logger = logging.getLogger(__name__)

MaskLayout = Literal["masks", "voc2012"]
_FOLDERS = {"masks": "masks", "voc2012": str(VOC_FOLDER)}
_CONFIDENCE = "confidence"  # keyword of the text in a mask


class MaskWriter(PredictionWriter):
    """Writes the mask of each photograph as soon as it is computed, whole or not at all.

    A mask is a PNG of mode P with the VOC palette, in the size of the photograph: 0 background, 1..L classes. The
    confidence of the network is stored in it as a text. Images that are complete already are not computed again.

    Args:
        output_dir: folder of the results.
        layout: "masks" for `masks/<id>.png`, "voc2012" for what the server of VOC 2012 takes,
            `results/VOC2012/Segmentation/comp6_test_cls/<id>.png`; `rca check` checks and packs it.
        overlays: whether to write `overlays/<id>.jpg`, the mask over the photograph, as well.
        coco_results: whether to write `coco_results.json` at the end, one region for each class in each image; for
            the ids in it see `CocoForm`. All regions of an image have its confidence as their score. It covers the
            images of the predicted split whose masks are there, whichever run wrote them.
        existing: "skip" what is complete, "overwrite" everything.

    Raises:
        ArgumentError: for an unknown layout; when predicting starts, if the module predicts no label
            images, as `SegmentationModule`, `FrozenSegmentationModule` and `OneStageModule` do.
        OutputError: when predicting starts, if the folder cannot be made or written to, or holds predictions of
            another model or setting; later, if two images have one id, or an id cannot be a file name.
    """

    task = (SegmentationModule.task, FrozenSegmentationModule.task, OneStageModule.task)

    @check_arguments
    def __init__(
        self,
        output_dir: str,
        layout: MaskLayout = "masks",
        overlays: bool = False,
        coco_results: bool = False,
        existing: Existing = "skip",
    ) -> None:
        self._masks = _FOLDERS[layout]
        super().__init__(output_dir, {self._masks: ".png"} | ({"overlays": ".jpg"} if overlays else {}), existing)
        self.coco_results = coco_results

    def describe(self, module: L.LightningModule) -> dict[str, Any]:
        """Settings that masks depend on."""
        if not isinstance(module, LabelPrediction):
            remedy = "MaskWriter writes predictions of SegmentationModule, FrozenSegmentationModule and OneStageModule"
            raise ArgumentError("model", type(module).__name__, remedy)
        names = ("num_classes", "class_names", "scales", "flip", "max_side", "predict_tags", "crf")
        some = ("backbone", "head", "drawn_by", "propagation_steps", "propagation_power")
        known = [*names, *(name for name in some if name in module.hparams)]
        settings = {name: module.hparams[name] for name in known}
        if isinstance(module, FrozenSegmentationModule):  # its few weights hardly count among those of the backbone
            settings["classifier"] = tensor_digest(module.network.classifier.state_dict())[:16]
        return settings

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Checks the folder, and removes COCO results that would be out of date."""
        super().on_predict_start(trainer, pl_module)
        if trainer.is_global_zero and (self.coco_results or self.folder.existing == "overwrite"):
            with self.folder.output_errors():
                self._results_file.unlink(missing_ok=True)

    def write(self, prediction: dict[str, Any], image: Tensor, batch: Batch, index: int) -> None:
        """Writes the files of one photograph, its mask last."""
        paths, labels = self.folder.paths(prediction["image_id"]), prediction["labels"]
        with self.folder.output_errors():
            if "overlays" in paths:
                write_overlay_file(denormalise(image), labels, paths["overlays"])
            # A mean of many probabilities may exceed 1 by rounding.
            notes = {_CONFIDENCE: f"{min(1.0, prediction['confidence']):.6g}"}
            write_mask_file(labels, paths[self._masks], notes=notes)

    def summarise(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Writes the COCO results from the mask files, which may be of several runs."""
        if not self.coco_results:
            return
        assert isinstance(module, LabelPrediction)
        wanted = _predicted_ids(trainer)
        ids = [image_id for image_id in self.folder.complete_ids() if wanted is None or image_id in wanted]
        entries = self._entries(ids, _coco_form(trainer, module.class_names))
        with self.folder.output_errors():
            count = write_coco_results(self._results_file, entries)
        logger.info("wrote %d regions of %d images to %s", count, len(ids), self._results_file)

    @property
    def _results_file(self) -> Path:
        return self.output_dir / "coco_results.json"

    def _entries(self, ids: Iterable[str], form: CocoForm) -> Iterator[dict[str, Any]]:
        for image_id in ids:
            path = self.folder.paths(image_id)[self._masks]
            with open_image(path) as mask:
                confidence, labels = mask.info.get(_CONFIDENCE), np.array(mask, dtype=np.uint8)
            if confidence is None:
                raise OutputError(f"{path} says no confidence, MaskWriter did not write it; delete it and predict anew")
            yield from form.entries(image_id, labels, float(confidence))


def _coco_form(trainer: L.Trainer, class_names: Sequence[str]) -> CocoForm:
    """Ids of the annotations where the data have some."""
    ids_of = getattr(getattr(trainer, "datamodule", None), "predict_coco_ids", None)
    ids = None if ids_of is None else ids_of()
    return CocoForm(class_names) if ids is None else CocoForm(class_names, categories=ids[0], images=ids[1])


def _predicted_ids(trainer: L.Trainer) -> set[str] | None:
    """The images of the split; None without a data module that lists them."""
    records = getattr(getattr(trainer, "datamodule", None), "predict_records", None)
    return None if records is None else {record.image_id for record in records}
