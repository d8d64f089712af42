"""`FrozenSegmentationModule`: a second stage that reads the frozen features of the first one and trains no backbone."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from rca_lightning.arguments import check_arguments
from rca_lightning.checkpoints.reading import check_task, read_checkpoint
from rca_lightning.constants import IGNORE_INDEX
from rca_lightning.data.classes import check_mask_classes
from rca_lightning.data.dataset import CachedFeatures
from rca_lightning.data.sample import Batch
from rca_lightning.distributed import broadcast_from_first, gather_objects, gather_uneven, world_size_and_rank
from rca_lightning.errors import ArgumentError, DataError, WeightsError, refuse_other_classes
from rca_lightning.evaluation.label_iou import LabelEvaluation
from rca_lightning.io.tensor_file import tensor_digest
from rca_lightning.modules.affinity_module import AffinityModule, load_affinity
from rca_lightning.modules.data_checks import DataChecks
from rca_lightning.modules.frozen_backbone import FrozenBackboneMixin, prepare_without_gradients
from rca_lightning.modules.label_prediction import GivenTags, LabelPrediction
from rca_lightning.modules.monitored import MonitorGuard
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.rca.inference import MAX_SIDE, check_views
from rca_lightning.rca.propagation import check_propagation
from rca_lightning.segmentation.frozen_segmenter import FrozenSegmenter
from rca_lightning.segmentation.pixel_classifier import (
    MAX_CELLS,
    PENALTY,
    TAG_PRIOR,
    check_weights,
    fit_pixel_classifier,
)

_info = rank_zero_only(logging.getLogger(__name__).info)

_REMEDY = "give train_masks=True and, for pseudo labels, their folder as train_mask_dir; every image needs one"


class FrozenSegmentationModule(LabelPrediction, FrozenBackboneMixin, MonitorGuard, DataChecks):
    """A segmentation network behind the frozen backbone of a first stage, fitted to masks in closed steps.

    It predicts label images without tags: a linear classifier of the pixels, the calibrated tags of the first stage,
    propagation inside the image and the walk over learned boundaries; see `FrozenSegmenter`. `fit` reads each
    photograph once, as cached features with `FeatureCacheCallback`, and solves for the classifier; nothing is random.
    One epoch is all there is. What it gives on 663 photographs is in experiments/voc2012_mini; on large sets it was not
    compared with `SegmentationModule`, which trains a backbone.

    Args:
        num_classes: foreground classes `L`. The command line takes it from the data.
        class_names: their names, for tables.
        first_stage: checkpoint of `rca fit` with a frozen backbone. Checkpoints keep its arguments in the place of the
            path.
        affinity: checkpoint of `rca affinity fit --model.weights <first_stage>`; none: no walk. Kept the same way.
        penalty: of half the squared weights; see `fit_pixel_classifier`.
        tag_prior: how strongly classes that an image has no tag of are held back; see there.
        scales: image scales at evaluation and prediction; training reads the first.
        flip: whether evaluation and prediction add the mirrored image.
        max_side: longest side in pixels of what is computed at once; bounds memory.
        propagation_steps: how often probabilities are propagated inside a view; see `propagate`.
        propagation_power: see there.
        crf: whether a fully connected CRF refines the probabilities in validate, test and predict; needs the extra
            "crf".
        eval_tags: "image" draws only what the tags of an image name; "none" does not look at them.
        predict_tags: the same for prediction.

    Raises:
        RCAError: for an argument out of its range, or checkpoints that do not belong together.
    """

    task = "segment_frozen"
    trains_on_labels = True
    network: FrozenSegmenter
    reads_masks = True
    scores_features = False  # tags are scored by other features than pixels

    @check_arguments
    def __init__(
        self,
        num_classes: int,
        class_names: list[str] | None = None,
        *,
        first_stage: str | dict[str, Any] | None = None,
        affinity: str | dict[str, Any] | None = None,
        penalty: float = PENALTY,
        tag_prior: float = TAG_PRIOR,
        scales: tuple[float, ...] = (1.0,),
        flip: bool = False,
        max_side: int = MAX_SIDE,
        propagation_steps: int = 1,
        propagation_power: float = 2.0,
        crf: bool = False,
        eval_tags: GivenTags = "none",
        predict_tags: GivenTags = "none",
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        check_mask_classes(num_classes)
        check_views(scales, max_side)
        check_propagation(propagation_power, propagation_steps)
        check_weights(penalty, tag_prior)
        first = _first_stage(first_stage)
        names = first.hparams["class_names"]
        if first.num_classes != num_classes:
            raise ArgumentError("num_classes", num_classes, f"the first stage knows {first.num_classes} classes")
        refuse_other_classes(
            names, class_names, where="the first stage", here="the data", remedy="give data of the same classes"
        )
        boundary = None if affinity is None else _affinity(affinity)
        if boundary is not None and not isinstance(affinity, Mapping):  # else a checkpoint has brought both together
            _check_one_backbone(first, boundary)
        kept = {
            "class_names": names if class_names is None else class_names,
            "first_stage": dict(first.hparams),
            "affinity": None if boundary is None else dict(boundary.hparams),
        }
        self.save_hyperparameters(given | kept)
        self.network = FrozenSegmenter(
            first.network,
            first.tag_calibration,
            tags_by_attention=first.contrasts_prototypes,
            boundary=None if boundary is None else boundary.network,
        )
        self.weights_on_record = first.weights_on_record
        self.supervision_on_record = first.supervision_on_record
        self.evaluation = LabelEvaluation(num_classes)
        self.use_crf = crf
        self._read: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # of this epoch: cells, targets and tags by image
        self._reads_all = False  # in this run: one that goes on within an epoch has read a part of it before

    @property
    def is_frozen(self) -> bool:
        """The backbone is never trained."""
        return True

    @property
    def feature_arguments(self) -> Mapping[str, Any]:
        """Arguments that features depend on: those of the module that learned the projections, or is to."""
        source = self.hparams["affinity"] or self.hparams["first_stage"]
        return {**source, **{name: self.hparams[name] for name in ("scales", "flip", "max_side")}}

    @property
    def segmenter(self) -> nn.Module:
        """None of its own: see `label_images`.

        Raises:
            ArgumentError: always; there is no network of images alone to export.
        """
        remedy = "its tags and walk are no plain network; export a checkpoint of --task segment or one_stage"
        raise ArgumentError("task", self.task, remedy)

    def configure_optimizers(self) -> None:
        """None: the classifier is solved for."""

    def logged_names(self) -> list[str]:
        """Names of the metrics that `fit` logs."""
        return ["train/cells"] + [self.score_name("val")] * self.validates()

    def train(self, mode: bool = True) -> FrozenSegmentationModule:
        """Leaves the network in evaluation mode."""
        super().train(mode)
        self.network.eval()
        return self

    def setup(self, stage: str) -> None:
        """Refuses callbacks that need gradients."""
        super().setup(stage)
        if stage == TrainerFn.FITTING:
            prepare_without_gradients(self.trainer, "leave it out, or give --task segment")

    def on_fit_start(self) -> None:
        """Refuses to fit without cached features."""
        super().on_fit_start()
        if getattr(self.trainer.datamodule, "features", None) is None:  # type: ignore[attr-defined]
            raise ArgumentError("callbacks", None, "add FeatureCacheCallback() to the Trainer")

    def on_train_epoch_start(self) -> None:
        """Forgets the cells of the epoch before."""
        super().on_train_epoch_start()
        self._read.clear()
        self._reads_all = True

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Keeps evenly spread cells of each photograph with the labels of their pixels; solves in the last batch.

        Returns:
            0: nothing is minimised by steps.
        """
        if "masks" not in batch:
            raise DataError(f"train_masks: the batch of {batch['image_id'][0]} holds no masks; {_REMEDY}")
        parts = zip(batch["image_id"], batch["features"], batch["masks"], batch["tags"], strict=True)
        for image_id, of_scales, mask, tags in parts:
            if of_scales:  # else of a process that has no further photograph
                self._keep(image_id, of_scales[0], mask, tags)
        if self.trainer.is_last_batch:
            with torch.autocast(self.device.type, enabled=False):
                self._fit()
        return torch.zeros((), device=self.device, requires_grad=True)  # Lightning calls backward

    def _keep(self, image_id: str, features: Tensor | list[Tensor], mask: Tensor, tags: Tensor) -> None:
        """Keeps cells of one photograph; of a single level its features are the tensor alone."""
        most = max(1, MAX_CELLS // self.trainer.datamodule.num_train_images)  # type: ignore[attr-defined]
        levels = features if isinstance(features, list) else [features]
        embeddings = self.network.embed([level[:1].to(self.device) for level in levels])
        mask = mask.to(self.device)
        targets = label_shares(mask, embeddings.shape[2:], num_labels=self.hparams["num_classes"] + 1)
        cells = embeddings[0].flatten(1).T  # (1, D, h, w) -> (hw, D)
        chosen = torch.linspace(0, len(cells) - 1, min(most, len(cells)), device=cells.device).long()
        chosen = chosen[targets.sum(dim=1)[chosen] > 0]
        self._read[image_id] = cells[chosen].half(), targets[chosen].half(), tags.to(self.device).half()

    def _read_rest(self) -> None:
        """Reads what the run before has read of an epoch that this one goes on with: checkpoints keep no cells."""
        images: CachedFeatures = self.trainer.datamodule.cached_features()  # type: ignore[attr-defined]
        here = {image_id for of_rank in gather_objects(list(self._read)) for image_id in of_rank}
        missing = [row for row, image_id in enumerate(images.images.records.image_ids) if image_id not in here]
        processes, rank = world_size_and_rank()
        for sample in (images[row] for row in missing[rank::processes]):
            self._keep(sample["image_id"], sample["features"][0], sample["mask"], sample["tags"])

    def _fit(self) -> None:
        """Solves for the classifier on the first rank, from the cells of all."""
        if not self._reads_all:
            self._read_rest()
        device, (_, rank) = self.device, world_size_and_rank()
        width, labels = self.network.classifier.weight.shape[1], self.hparams["num_classes"] + 1
        empty = torch.zeros(0, width).half(), torch.zeros(0, labels).half(), torch.zeros(0, labels - 1).half()
        own = sorted(self._read.items())
        rows = [(cells, targets, tags.expand(len(cells), -1)) for _, (cells, targets, tags) in own]
        parts = zip(tuple(part.to(device) for part in empty), *rows, strict=True)
        cells, targets, tags = gather_uneven(*(torch.cat(part) for part in parts))
        of_ranks = gather_objects([(image_id, len(part[0])) for image_id, part in own])
        self._read.clear()
        del own, rows, parts
        if len(of_ranks) > 1:  # by photograph, so that ranks have no part in the order that numbers are added up in
            sizes = [size for of_rank in of_ranks for size in of_rank]
            blocks = torch.split(torch.arange(len(cells), device=device), [count for _, count in sizes])
            order = torch.cat([blocks[place] for place in sorted(range(len(sizes)), key=sizes.__getitem__)])
            cells, targets, tags = cells[order], targets[order], tags[order]
        weight = torch.zeros(labels, width, device=device, dtype=torch.float32)
        bias = torch.zeros(labels, device=device, dtype=torch.float32)
        if len(cells) == 0:
            raise DataError(f"train_masks: no training image has a pixel with a label; {_REMEDY}")
        if rank == 0:
            _info("segmentation: the classifier is fitted to %d cells", len(cells))
            fitted = fit_pixel_classifier(
                cells.cpu(),
                targets.cpu(),
                tags.cpu(),
                penalty=self.hparams["penalty"],
                tag_prior=self.hparams["tag_prior"],
            )
            weight, bias = (one.to(device) for one in fitted)
        broadcast_from_first(weight, bias)
        self.network.classifier.learn(weight, bias)
        self.log("train/cells", float(len(cells)), batch_size=1)

    def label_probabilities(self, images: Tensor, tags: Tensor | None = None) -> Tensor:
        """Probabilities of every label, `(B, L + 1, h, w)`; see `FrozenSegmenter.label_probabilities`.

        Args:
            images: `(B, 3, H, W)`, normalised.
            tags: `(B, L)`, the classes that may be drawn; a row below 0 and `None`: as predicted tags say.

        Raises:
            ArgumentError: before the classifier is fitted.
        """
        if not bool(self.network.classifier.fitted):
            raise ArgumentError(
                "ckpt_path", None, "nothing is fitted yet; give a checkpoint of rca fit, or fit it first"
            )
        names = ("scales", "flip", "max_side", "propagation_steps", "propagation_power")
        return self.network.label_probabilities(images, tags, **{name: self.hparams[name] for name in names})


def label_shares(mask: Tensor, size: torch.Size, *, num_labels: int) -> Tensor:
    """Share of the pixels of each cell that have each label.

    Args:
        mask: `(H, W)`: 0 background, 1..L classes, 255 no label.
        size: `(h, w)` of the grid of cells that covers it.
        num_labels: `L + 1`.

    Returns:
        `(hw, L + 1)` float32; a row sums to the share of pixels with a label.

    Example:
        >>> label_shares(torch.tensor([[0, 0, 1, 255]]), torch.Size((1, 2)), num_labels=2)
        tensor([[1.0000, 0.0000],
                [0.0000, 0.5000]])
    """
    known = mask != IGNORE_INDEX
    one_hot = F.one_hot(mask.long() * known, num_labels) * known[..., None]
    shares = F.adaptive_avg_pool2d(one_hot.permute(2, 0, 1).float(), (size[0], size[1]))
    return shares.flatten(1).T  # (L + 1, h, w) -> (hw, L + 1)


def _first_stage(source: str | Mapping[str, Any] | None) -> RCAModule:
    """The module of a checkpoint, or one of these arguments without its weights."""
    if isinstance(source, Mapping):
        return RCAModule(**source)
    if source is None:
        raise ArgumentError("first_stage", None, "give a checkpoint of rca fit with a frozen backbone")
    content = read_checkpoint(source, map_location="meta", argument="first_stage")
    check_task(content["state_dict"], RCAModule.task)
    module = RCAModule.load_from_checkpoint(source, map_location="cpu")
    if not module.is_frozen:
        raise WeightsError(
            f"first_stage={source!r} is of a trained backbone; give one that was fitted with backbone_mode='frozen', "
            "or --task segment"
        )
    return module


def _affinity(source: str | Path | Mapping[str, Any]) -> AffinityModule:
    """The module of a checkpoint, or one of these arguments without its weights."""
    return AffinityModule(**source) if isinstance(source, Mapping) else load_affinity(source)


def _check_one_backbone(first: RCAModule, affinity: AffinityModule) -> None:
    digests = {tensor_digest(module.network.backbone.state_dict()) for module in (first, affinity)}
    for name in ("backbone", "output_stride", "stride_in", "padding_mode"):
        before, now = first.hparams[name], affinity.hparams[name]
        if now != before:
            raise ArgumentError("affinity", now, f"the first stage has {name} {before!r}; fit affinity with the same")
    if len(digests) > 1:
        raise WeightsError(
            "affinity is a checkpoint of another backbone than first_stage; give one of rca affinity fit "
            "--model.weights <first_stage>"
        )
