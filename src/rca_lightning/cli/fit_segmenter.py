"""Steps of `rca masks --segmenter`: it learns from the labels, and draws photographs without tags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt

from rca_lightning.callbacks.mask_writer import MaskWriter
from rca_lightning.cli.fit_photographs import (
    SCALES,
    Model,
    Predicted,
    RunPhotographs,
    checkpoints,
    feature_cache,
    quiet_trainer,
)
from rca_lightning.cli.run_folder import RunFolder
from rca_lightning.cli.steps import Steps
from rca_lightning.data.catalogue import Catalogue
from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.modules.affinity_module import AffinityModule
from rca_lightning.modules.frozen_segmentation_module import FrozenSegmentationModule
from rca_lightning.prediction.stored_maps import write_confident_labels

_EPOCHS = 6  # of the boundaries, as in experiments/voc2012_mini/affinity.yaml
_LOW, _HIGH = 0.3, 0.6  # shares of the maps of RCA below which is background, and above which a class is sure
_SIDE, _BATCH = 320, 8  # crops that boundaries are learned on


def fit_segmenter(
    run: RunFolder, catalogue: Catalogue, learned: npt.NDArray[np.int64], model: Model, steps: Steps
) -> None:
    """Fits the segmenter to the confident labels of the first stage, from the last step that an earlier run has ended.

    Args:
        run: the folder, with `rca.ckpt`, labels and maps; `segmenter.ckpt` is written there.
        catalogue: the photographs.
        learned: row numbers of those with tags and a label.
        model: what the first stage was fitted with.
        steps: with the steps "boundaries" and "segmenter".
    """
    L.seed_everything(model.seed, verbose=False)
    steps.begin("boundaries")
    confident = run.segmentation / "confident_labels"
    write_confident_labels(_photographs(run, catalogue, learned), run.maps, confident, low=_LOW, high=_HIGH)
    boundaries = run.segmentation / "boundaries" / "last.ckpt"
    # Undecided pixels teach nothing: labels of a single threshold make a worse classifier (experiments/voc2012_mini).
    data = _photographs(run, catalogue, learned, labels=confident / "pseudo_labels")
    _fit_boundaries(run, data, model, steps)
    steps.begin("segmenter")
    data = _photographs(run, catalogue, learned, labels=confident / "pseudo_labels")
    module = FrozenSegmentationModule(
        data.num_classes,
        data.class_names,
        first_stage=str(run.checkpoint),
        affinity=str(boundaries),
        scales=SCALES,
        max_side=model.max_side,
    )
    trainer = quiet_trainer(run, [feature_cache(run)])
    trainer.fit(module, datamodule=data)
    with run.output_errors():
        trainer.save_checkpoint(run.segmenter)
    steps.end()


def _fit_boundaries(run: RunFolder, data: WSSSDataModule, model: Model, steps: Steps) -> None:
    module = AffinityModule(
        data.num_classes,
        data.class_names,
        backbone=model.backbone,
        weights=str(run.checkpoint),
        max_side=model.max_side,
    )
    last = run.segmentation / "boundaries" / "last.ckpt"
    callbacks = [feature_cache(run), _Trained(steps), checkpoints(last.parent)]
    trainer = quiet_trainer(run, callbacks, epochs=_EPOCHS)
    trainer.fit(module, datamodule=data, ckpt_path=str(last) if last.is_file() else None, weights_only=True)


def segment_photographs(run: RunFolder, catalogue: Catalogue, untagged: npt.NDArray[np.int64], steps: Steps) -> None:
    """Draws photographs by the segmenter, those that it has not drawn, in the place of the labels of the first stage.

    Args:
        run: the folder, with `segmenter.ckpt`.
        catalogue: the photographs.
        untagged: row numbers of those without tags.
        steps: with the step "untagged".
    """
    steps.begin("untagged")
    drawn = run.segmented()
    records = catalogue.table.take(untagged)
    if any(not drawn.is_complete(image_id) for image_id in records.iterate_ids()):
        data = _photographs(run, catalogue, untagged)
        module = FrozenSegmentationModule.load_from_checkpoint(run.segmenter, map_location="cpu")
        trainer = quiet_trainer(run, [MaskWriter(str(drawn.root), overlays=True), Predicted(steps)])
        trainer.predict(module, datamodule=data, return_predictions=False)
    with run.output_errors():
        for image_id in records.iterate_ids():
            paths = drawn.paths(image_id)
            _put(paths["overlays"], run.overlays / f"{image_id}.jpg")
            _put(paths["masks"], run.labels / f"{image_id}.png")
    steps.end()


def _put(source: Path, target: Path) -> None:
    """Makes the target a link to the same file, at once, so that no kill leaves it without."""
    if not source.is_file() or (target.is_file() and target.samefile(source)):
        return
    beside = target.with_name(f".{target.name}.link")
    beside.unlink(missing_ok=True)
    beside.hardlink_to(source)
    beside.replace(target)


def _photographs(
    run: RunFolder, catalogue: Catalogue, rows: npt.NDArray[np.int64], *, labels: Path | None = None
) -> WSSSDataModule:
    """Some photographs, to be learned from with labels, or to be drawn."""
    return RunPhotographs(
        run,
        catalogue,
        chosen={"listed": rows},
        train_mask_dir=None if labels is None else str(labels),
        train_masks=labels is not None,
        train_split="listed",
        predict_split="listed",
        batch_size=_BATCH,
        crop_size=_SIDE,
        max_bad_images=1.0,  # the first stage has refused too many
    )


class _Trained(L.Callback):
    """Tells the progress of the boundaries."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        self._steps.update(trainer.global_step, _EPOCHS * max(1, int(trainer.num_training_batches)))
