"""Steps of `rca masks` that need the network: it fits a model to tagged photographs, and draws their labels with it."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from rca_lightning.arguments import check_arguments
from rca_lightning.callbacks.feature_cache import FeatureCacheCallback
from rca_lightning.callbacks.pseudo_label_writer import PseudoLabelWriter
from rca_lightning.callbacks.region_memory import RegionMemoryCallback
from rca_lightning.checkpoints.writing import write_checkpoints_whole
from rca_lightning.cli.run_folder import RunFolder
from rca_lightning.cli.steps import Steps
from rca_lightning.cli.trainer_console import replace_handlers
from rca_lightning.data.catalogue import Catalogue, CatalogueSource
from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.data.dataset import TaggedImages
from rca_lightning.data.records import Source
from rca_lightning.data.sample import Batch, SkippedImage
from rca_lightning.evaluation import auto_threshold
from rca_lightning.evaluation.protocol import describe_file
from rca_lightning.io.atomic import alone_in, write_atomically
from rca_lightning.io.tensor_file import load_tensors
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.modules.seed_prediction import evenly_spread
from rca_lightning.pseudo_labels.refinement import RefinementName
from rca_lightning.rca.projection import projections_state

ROUNDS = 5
"""Epochs behind a frozen backbone: one clustering, four of contrast."""

SCALES = (1.0, 1.5)
"""Scales that photographs are labelled at; the model is fitted at the first."""

_PROJECTION = "projection.pt"
_MAX_GIB = 1e6  # the disk is the bound: all features are of this run
_SIDE = 1000  # pixels of the longer side above which labels are refined on means of pixels
_MOST_BAD = 0.1  # share of photographs that may be unreadable


@dataclass(frozen=True)
class Model:
    """What decides the model.

    Attributes:
        backbone: its name.
        weights: name or file.
        stride_in: see `RCAModule`; None: as the weights say.
        max_side: longest side in pixels that features are computed at.
        seed: of the order of photographs.
    """

    backbone: str = "resnet50"
    weights: str = "imagenet"
    stride_in: str | None = None
    max_side: int = 768
    seed: int = 0


class RunPhotographs(WSSSDataModule):
    """The data module of a run: its photographs with their tags, read from the list in its folder.

    Args:
        run: the folder.
        catalogue: the list.
        chosen: row numbers of further splits beside "all"; with a part of the run, "part" is one.
        **options: further arguments of `WSSSDataModule`.
    """

    def __init__(
        self,
        run: RunFolder,
        catalogue: Catalogue,
        *,
        chosen: Mapping[str, npt.NDArray[np.int64]] | None = None,
        **options: Any,
    ) -> None:
        common = {
            "class_file": str(run.catalogue / "classes.txt"),
            "train_masks": False,
            "train_split": "all",
            "predict_split": "all" if run.part is None else "part",
            "num_workers": 4 if torch.cuda.is_available() else 0,
            "on_bad_image": "skip",
            "max_bad_images": _MOST_BAD,
        }
        super().__init__("folder", run.work, **{**common, **options})
        of_part = {} if run.part is None else {"part": run.part.rows(len(catalogue.table))}
        self._source = CatalogueSource(run.work, catalogue, of_part | dict(chosen or {}))

    def open_source(self) -> Source:
        """The list, which is not made again."""
        return self._source


def fit_model(run: RunFolder, data: WSSSDataModule, model: Model, steps: Steps) -> dict[str, list[list[float]]]:
    """Fits the model to the tagged photographs, from the last round that an earlier run has ended.

    Args:
        run: the folder; `rca.ckpt` is written there.
        data: the photographs.
        model: what is fitted.
        steps: with the steps "features" and "rounds".

    Returns:
        Curves: values by round.
    """
    module = _new_module(data, model)
    steps.begin("features")
    features = _features_to_fit(run, model, steps)
    rounds = _Rounds(steps)
    last = run.work / "fit" / "last.ckpt"
    trainer = quiet_trainer(run, [features, RegionMemoryCallback(), rounds, checkpoints(last.parent)], epochs=ROUNDS)
    trainer.fit(module, datamodule=data, ckpt_path=str(last) if last.is_file() else None, weights_only=True)
    steps.begin("rounds")
    trainer.save_checkpoint(run.checkpoint)
    with run.output_errors():
        content = projections_state(module.network.projections)
        write_atomically(run.work / _PROJECTION, lambda file: torch.save(content, file))
    run.remember("projection", _of_backbone(model))
    steps.end()
    return rounds.curves


def compute_features(run: RunFolder, data: WSSSDataModule, model: Model, steps: Steps) -> list[SkippedImage]:
    """Computes the features of the photographs of a part as `fit_model` would, and keeps them for it.

    Args:
        run: the folder.
        data: the photographs.
        model: what will be fitted.
        steps: with the step "features".

    Returns:
        Photographs that could not be read.
    """
    steps.begin("features")
    module = _new_module(data, model)
    trainer = quiet_trainer(run, [])
    module.to(trainer.strategy.root_device)
    data.trainer = trainer
    data.setup("fit")
    data.setup("predict")
    images = data.photographs_to_predict()
    images.scored = True
    features = _features_to_fit(run, model, steps)
    unread = features.compute(module, data, images, alone=partial(alone_in, run.work / "features"))
    features.cache.release()
    steps.end()
    return unread


def _new_module(data: WSSSDataModule, model: Model) -> RCAModule:
    L.seed_everything(model.seed, verbose=False)
    stride = {} if model.stride_in is None else {"stride_in": model.stride_in}
    return RCAModule(
        data.num_classes,
        data.class_names,
        backbone=model.backbone,
        weights=model.weights,
        backbone_mode="frozen",
        scales=SCALES,
        flip=False,
        max_side=model.max_side,
        **stride,  # type: ignore[arg-type]
    )


def _features_to_fit(run: RunFolder, model: Model, steps: Steps) -> FeatureCacheCallback:
    features = feature_cache(run, splits=("all",))
    features.each = steps.update
    # With another projection the features of all photographs would be others, and be computed anew.
    if run.state.get("projection") == _of_backbone(model):
        features.projection = _read_projection(run)
    return features


def _of_backbone(model: Model) -> dict[str, str | None]:
    return {"backbone": model.backbone, "weights": model.weights, "stride_in": model.stride_in}


def _read_projection(run: RunFolder) -> dict[str, Tensor] | None:
    try:
        content = load_tensors(run.work / _PROJECTION, map_location="cpu")
    except Exception:  # pickle, zip and torch each have errors of their own for a damaged file
        return None
    return content if isinstance(content, dict) else None


def choose_threshold(run: RunFolder, data: WSSSDataModule, steps: Steps, *, crf: bool) -> float:
    """Chooses the background threshold without masks, once for a model, from the maps of some photographs.

    Their features are kept for their labels.

    Args:
        run: the folder, with `rca.ckpt`; it keeps the threshold.
        data: the photographs.
        steps: with the steps "features" and "labels".
        crf: whether the dense CRF refines the labels.
    """
    if (kept := kept_threshold(run)) is not None and run.state["threshold"].get("crf", crf) is crf:
        return kept
    module = RCAModule.load_from_checkpoint(run.checkpoint, map_location="cpu").eval()
    module.to(quiet_trainer(run, []).strategy.root_device)
    data.setup("predict")
    whole = data.photographs_to_predict()
    rows = np.array(evenly_spread(len(whole)), dtype=np.int64)
    images = TaggedImages(whole.records.take(rows), num_classes=whole.num_classes, skip_of=whole.skip_of)
    images.scored = True
    features = feature_cache(run)
    features.each = partial(_tell, steps)
    features.compute(module, data, images)
    images.features = features.open(module)
    steps.begin("labels")
    sample = (prediction["seeds"].maps for prediction, _ in module.sample_predictions(images))
    threshold = auto_threshold.choose_threshold(sample, kind=module.thresholds_kind, crf=crf, device=module.device)
    run.remember("threshold", {"share": threshold, "crf": crf})
    return threshold


def kept_threshold(run: RunFolder) -> float | None:
    """The background threshold that was chosen without masks for the model of a run."""
    share = (run.state.get("threshold") or {}).get("share")
    return float(share) if isinstance(share, (int, float)) else None


@check_arguments
def label_photographs(
    run: RunFolder,
    data: WSSSDataModule,
    steps: Steps,
    *,
    threshold: float | None,
    refine: Sequence[RefinementName],
) -> None:
    """Draws the labels of photographs that have none yet, with their overlays and maps.

    Features that are not there yet are kept, so that labels that are drawn anew need no backbone.

    Args:
        run: the folder, with `rca.ckpt`.
        data: the photographs.
        steps: with the steps "features" and "labels".
        threshold: see `PseudoLabelWriter`.
        refine: the same.
    """
    module = RCAModule.load_from_checkpoint(run.checkpoint, map_location="cpu")
    data.setup("predict")
    data.leave_out_of_prediction(run.predictions().done())
    images = data.photographs_to_predict()
    images.scored = True
    features = feature_cache(run)
    features.each = partial(_tell, steps)
    module.to(quiet_trainer(run, []).strategy.root_device)
    features.compute(module, data, images)
    steps.begin("labels")
    slow = "dense_crf" in refine
    workers = max(1, min(8, os.cpu_count() or 1)) if slow else 2
    writer = LabelWriter(run, background_threshold=threshold, refine=refine, workers=workers)
    trainer = quiet_trainer(run, [features, writer, Predicted(steps)])
    # Workers refine on cores of their own; threads that wait for a core, and for one another, cost an eighth more.
    with _threads(torch.get_num_threads() - workers if slow else torch.get_num_threads()):
        trainer.predict(module, datamodule=data, return_predictions=False)
    steps.end()


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Lets torch compute with so many threads for a while, or with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tell(steps: Steps, done: int, total: int) -> None:
    steps.begin("features")
    steps.update(done, total)


class LabelWriter(PseudoLabelWriter):
    """Writes labels, maps and overlays into the folders of a run.

    Large photographs are refined on means of pixels, so that memory and time are bounded.

    Args:
        run: the folder.
        **settings: of `PseudoLabelWriter`.
    """

    def __init__(self, run: RunFolder, **settings: Any) -> None:
        super().__init__(str(run.work), overlays=True, **settings)
        self.folder = run.predictions()
        self._checkpoint = run.checkpoint

    def describe(self, module: L.LightningModule) -> dict[str, Any]:
        """Settings, with the digest of the checkpoint of the run; `run.json` says how the threshold was chosen."""
        digest = (describe_file(self._checkpoint) or {}).get("sha256")
        return {**super().describe(module), "checkpoint_sha256": digest, "threshold_source": None}

    def write(self, prediction: dict[str, Any], image: Tensor, batch: Batch, index: int) -> None:
        """Refines on a grid that fits the photograph."""
        stride = max(1, math.ceil(max(image.shape[1:]) / _SIDE))
        self.generator = replace(self.generator, refine_stride=stride)
        super().write(prediction, image, batch, index)

    def summarise(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Leaves the summary to the command."""


def feature_cache(run: RunFolder, *, splits: Sequence[str] = ()) -> FeatureCacheCallback:
    """The features of a run, in its folder."""
    return FeatureCacheCallback(str(run.work / "features"), max_gib=_MAX_GIB, splits=splits)


def quiet_trainer(run: RunFolder, callbacks: Sequence[L.Callback], *, epochs: int = 1) -> L.Trainer:
    """A Trainer on one device that shows nothing, writes whole checkpoints and validates nothing."""
    trainer = L.Trainer(
        max_epochs=epochs,
        devices=1,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        default_root_dir=str(run.own),
    )
    write_checkpoints_whole(trainer)
    return trainer


def checkpoints(folder: Path) -> ModelCheckpoint:
    """Keeps the last epoch, for the run that goes on from it."""
    return ModelCheckpoint(dirpath=folder, save_last=True, save_on_train_epoch_end=True, enable_version_counter=False)


class _Rounds(L.Callback):
    """Tells the progress of rounds, and keeps their curves also when the run is cut short.

    Attributes:
        curves: values by round.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self.curves: dict[str, list[list[float]]] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._steps.begin("rounds")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        batches = max(1, int(trainer.num_training_batches))
        # One more of each round for the clustering that ends it, and of the last one for the tags.
        done = trainer.current_epoch * (batches + 1) + batch_idx + 1
        self._steps.update(done, ROUNDS * (batches + 1) + 1)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        number = trainer.current_epoch + 1
        for name, value in trainer.callback_metrics.items():
            if name == "train/label_change" and number == 1:
                continue  # nothing was there to change
            if name in ("train/label_change", "prototypes/contrast_loss"):
                points = self.curves.setdefault(name, [])
                points[:] = [point for point in points if point[0] < number] + [[number, float(value)]]

    def state_dict(self) -> dict[str, Any]:
        return {"curves": {name: [list(point) for point in points] for name, points in self.curves.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.curves = state_dict.get("curves", {})


class Predicted(L.Callback):
    """Tells the progress of prediction.

    Args:
        steps: the step that runs is told.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps, self._done = steps, 0

    def on_predict_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        """Tells of one more batch."""
        self._done += 1
        self._steps.update(self._done, int(sum(trainer.num_predict_batches)))


@contextlib.contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Sends the log of this library and of Lightning to a file while the progress of steps is shown."""
    replace_handlers()
    own, theirs = logging.getLogger("rca_lightning"), logging.getLogger("lightning")
    before: list[tuple[Callable[[int], None], int]] = [(own.setLevel, own.level)]
    shown = list(own.handlers)
    for handler in shown:
        handler.addFilter(_is_of_photographs)
    others = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    for logger in (theirs, *others):
        before.append((logger.setLevel, logger.level))
        logger.setLevel(logging.WARNING)
    own.setLevel(logging.INFO)
    lines = logging.FileHandler(path, encoding="utf-8", delay=True)
    lines.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    own.addHandler(lines)
    try:
        with warnings.catch_warnings():
            for message in (".*does not have many workers.*", "Checkpoint directory .* exists and is not empty"):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        own.removeHandler(lines)
        lines.close()
        for handler in shown:
            handler.removeFilter(_is_of_photographs)
        for restore, level in before:
            restore(level)


def _is_of_photographs(record: logging.LogRecord) -> bool:
    """Whether a line is a warning of photographs or tags; others name arguments that the command does not have."""
    return record.levelno >= logging.WARNING and record.name.startswith(("rca_lightning.cli.", "rca_lightning.data."))
