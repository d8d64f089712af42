"""`OneStageModule`: CAM, RCA and a segmentation head in one network, trained from tags with an EMA teacher."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rca_lightning.arguments import check_arguments
from rca_lightning.constants import IGNORE_INDEX
from rca_lightning.data.classes import check_mask_classes
from rca_lightning.data.sample import Batch
from rca_lightning.errors import ArgumentError
from rca_lightning.evaluation.label_iou import LabelEvaluation
from rca_lightning.evaluation.map_kinds import default_thresholds
from rca_lightning.modules.label_prediction import GivenTags, LabelPrediction
from rca_lightning.modules.rca_module import BackboneMode, RCAModule
from rca_lightning.modules.training_guards import check_cells
from rca_lightning.pseudo_labels.labels import check_count
from rca_lightning.rca.loss import AddedLoss, means_over_ranks
from rca_lightning.segmentation.network import HeadName, build_head, pixel_cross_entropy
from rca_lightning.segmentation.one_stage import OneStageNetwork
from rca_lightning.segmentation.teacher import (
    LABEL_STRIDE,
    check_thresholds,
    ramp,
    teacher_labels,
    update_teacher,
    warm_decay,
)

Drawer = Literal["teacher", "student"]


class OneStageModule(LabelPrediction, RCAModule):
    """Weakly supervised segmentation in one stage: RCA and a segmentation head on one backbone.

    The losses are those of `RCAModule` and, after `teacher_warmup` epochs, the cross-entropy of the head on labels that
    an exponential moving average of the network draws of every batch: its maps of the image's tags, refined along the
    colours by PAMR, and 255 between two thresholds; see `teacher_labels`. Single-stage methods of this form are ToCo
    (CVPR 2023, arXiv 2303.01267) and CoSA (ECCV 2024, arXiv 2402.17891).

    It predicts label images without tags: the probability of a class at a pixel is that of the head, multiplied by the
    one its CAM head gives the image. `RegionMemoryCallback` belongs to it as to `RCAModule`.

    Args:
        num_classes: foreground classes `L`. The command line takes it from the data.
        class_names: their names, for tables.
        backbone_mode: "trained" only: what is learned from the labels is the backbone.
        head: of the segmentation; see `SegmentationModule`.
        teacher_decay: of the moving average, a step. 0 makes the student its own teacher.
        teacher_decay_warmup: whether its first steps have less, `(1 + t) / (10 + t)`, so that it soon forgets
            the random numbers it begins with; none: unless `weights` bring prototypes, whose maps are good at once.
        teacher_warmup: epochs before the teacher labels pixels; none: one more than `warmup_epochs`, so that there are
            prototypes for its maps.
        pamr_iterations: of the refinement of its maps; 0: none.
        low: share of the peak of all maps below which a pixel is background; none: as for pseudo labels of the
            `final_map`, 0.5 of the attention, else 0.05.
        high: share of the peak above which a pixel has the strongest class; none: 0.8 of the attention, else 0.3.
        segmentation_weight: of the cross-entropy of the pixels.
        ramp_epochs: in which that weight grows from 0 after `teacher_warmup`; 0: at once.
        drawn_by: whether "teacher" or "student" draws label images in validation and prediction.
        crf: whether a fully connected CRF refines the probabilities in validate, test and predict, but not in the
            validations of fit; needs the extra "crf".
        eval_tags: "image" draws only what the tags of an image name; "none" does not look at them.
        predict_tags: the same for prediction.
        **options: arguments of `RCAModule`. `final_map`, `propagation_steps` and `propagation_power` say which maps the
            teacher labels pixels from; `scales`, `flip` and `max_side` are those of label images; `seed_threshold` and
            `tag_threshold` have no part in it.

    Raises:
        RCAError: for an argument out of its range.

    Example:
        >>> module = OneStageModule(num_classes=3, backbone="resnet18")
        >>> module.segmenter(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 4, 4, 4])
    """

    task = "one_stage"

    @check_arguments
    def __init__(
        self,
        num_classes: int,
        class_names: list[str] | None = None,
        *,
        backbone_mode: BackboneMode | None = None,
        head: HeadName = "deeplabv2",
        teacher_decay: float = 0.99,
        teacher_decay_warmup: bool | None = None,
        teacher_warmup: int | None = None,
        pamr_iterations: int = 10,
        low: float | None = None,
        high: float | None = None,
        segmentation_weight: float = 1.0,
        ramp_epochs: float = 1.0,
        drawn_by: Drawer = "teacher",
        crf: bool = False,
        eval_tags: GivenTags = "none",
        predict_tags: GivenTags = "none",
        **options: Any,
    ) -> None:
        if backbone_mode == "frozen":
            remedy = "one stage trains its backbone; leave it out, or give --task localize and then segment"
            raise ArgumentError("backbone_mode", backbone_mode, remedy)
        super().__init__(num_classes, class_names, backbone_mode="trained", **options)
        check_mask_classes(num_classes)
        warmup = self.hparams["warmup_epochs"] + 1 if teacher_warmup is None else teacher_warmup
        reads_attention = self.hparams["final_map"] == "attention" and self.hparams["aggregation"]
        thresholds = default_thresholds("attention" if reads_attention else "cam")
        if teacher_decay_warmup is None:
            # Of the weights alone: a checkpoint is read into a module without numbers.
            teacher_decay_warmup = options.get("weights") in (None, "none") or not self.network.has_prototypes
        own = {
            "head": head,
            "teacher_decay": teacher_decay,
            "teacher_decay_warmup": teacher_decay_warmup,
            "teacher_warmup": warmup,
            "pamr_iterations": pamr_iterations,
            "low": thresholds["low"] if low is None else low,
            "high": thresholds["high"] if high is None else high,
            "segmentation_weight": segmentation_weight,
            "ramp_epochs": ramp_epochs,
            "drawn_by": drawn_by,
            "crf": crf,
            "eval_tags": eval_tags,
            "predict_tags": predict_tags,
        }
        _check_own(own)
        self.save_hyperparameters({**self.hparams, **own})
        self.head, self._head_stages = build_head(head, self.network.backbone, num_classes + 1)
        self.head.to(memory_format=self.network.memory_format)  # type: ignore[call-overload]
        # The prototypes are those of the student: one module, that the memory callback writes.
        shared = {id(self.network.aggregation): self.network.aggregation}
        self.teacher: OneStageNetwork = copy.deepcopy(self.student, shared).requires_grad_(False).eval()
        self.evaluation = LabelEvaluation(num_classes)
        self.use_crf = crf
        self._moves_teacher = True  # at this step of the optimizer: a step that leaves the student as it is does not

    @property
    def student(self) -> OneStageNetwork:
        """The network that is trained."""
        return OneStageNetwork(self.network, self.head, self._head_stages)

    @property
    def segmenter(self) -> nn.Module:
        """The network that draws: normalised images `(B, 3, H, W)` -> logits `(B, L + 1, h, w)`."""
        return self.teacher if self.hparams["drawn_by"] == "teacher" else self.student

    def train(self, mode: bool = True) -> OneStageModule:
        """Sets the training mode; the teacher stays in evaluation mode."""
        super().train(mode)
        if "teacher" in self._modules:
            self.teacher.eval()
        return self

    def score_names(self) -> list[str]:
        """Names of the scores of a validation in `fit`."""
        return [self.score_name("val")]

    def logged_names(self) -> list[str]:
        """Names of the metrics that `fit` logs."""
        return ["train/loss_segmentation", "train/labelled", *super().logged_names()]

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Computes one step of RCA, and the loss of the pixels that the teacher labels.

        Returns:
            As `RCAModule.training_step`.
        """
        check_cells(self.student, batch["image"], self.network.backbone.output_stride)
        self.before_step()
        maps, logits = self.student.branches(batch["image"], batch["tags"])
        labels, teacher_maps = self.label_batch(batch)
        labelled = labels != IGNORE_INDEX
        means = {"segmentation": pixel_cross_entropy(logits, labels), "labelled": labelled.float().mean()}
        minimised, values = means_over_ranks(means, {"segmentation": labelled.sum(), "labelled": len(labels)})
        added = AddedLoss(
            "segmentation",
            self.segmentation_weight(batch_idx),
            minimised["segmentation"],
            values["segmentation"],
            # The loss does not see the logits of pixels without a label, and labels hide what the teacher has computed.
            {**teacher_maps, "logits": logits},
        )
        self.log("train/labelled", values["labelled"], batch_size=len(labels))
        return self.learn_from_maps(batch, maps, added)

    def segmentation_weight(self, batch_idx: int) -> float:
        """Weight of the loss of the pixels at this batch of the epoch."""
        within = batch_idx / self.trainer.num_training_batches
        elapsed = self.current_epoch + within - self.hparams["teacher_warmup"]
        return float(self.hparams["segmentation_weight"]) * ramp(elapsed, self.hparams["ramp_epochs"])

    @torch.no_grad()
    def label_batch(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Lets the teacher label the pixels of a batch.

        Returns:
            Labels `(B, h, w)`, a quarter of the size of the images, all 255 in the warm-up; and the maps that they are
            drawn from, by name.
        """
        images, tags = batch["image"], batch["tags"]
        if self.current_epoch < self.hparams["teacher_warmup"]:
            size = [-(-side // LABEL_STRIDE) for side in images.shape[2:]]
            return torch.full((len(images), *size), IGNORE_INDEX, device=images.device), {}
        network, final_map = self.teacher.network, self.hparams["final_map"]
        maps = network(images, tags)
        cam = maps.final_cam(final_map)
        shown = torch.nonzero((tags > 0).any(dim=0))[:, 0]  # only these are propagated
        power, steps = self.hparams["propagation_power"], self.hparams["propagation_steps"]
        propagated = maps.propagate(cam[:, shown], power=power, steps=steps)
        cam = torch.zeros_like(cam).index_copy(1, shown, propagated)
        labels = teacher_labels(
            cam,
            images,
            tags,
            low=self.hparams["low"],
            high=self.hparams["high"],
            pamr_iterations=self.hparams["pamr_iterations"],
            trusted=network.has_prototype if final_map == "attention" else None,
        )
        return labels, {"maps of the teacher": cam}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Notes whether this step changes the student."""
        self._moves_teacher = self._has_learned
        super().on_before_optimizer_step(optimizer)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Moves the teacher after the student, before callbacks write a checkpoint of both."""
        step = self.global_step
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self._moves_teacher:
            decay = self.hparams["teacher_decay"]
            decay = warm_decay(decay, step) if self.hparams["teacher_decay_warmup"] else decay
            update_teacher(self.teacher, self.student, decay)

    def _warn_of_missing_prototypes(self) -> None:
        """Label images need no prototypes."""


def _check_own(arguments: Mapping[str, Any]) -> None:
    """Refuses arguments of `OneStageModule` that are out of their range."""
    if not 0 <= arguments["teacher_decay"] < 1:
        raise ArgumentError("teacher_decay", arguments["teacher_decay"], "give a number from 0 to below 1")
    check_count("teacher_warmup", arguments["teacher_warmup"], least=0)
    check_count("pamr_iterations", arguments["pamr_iterations"], least=0)
    check_thresholds(arguments["low"], arguments["high"])
    for name in ("segmentation_weight", "ramp_epochs"):
        if not 0 <= arguments[name] < float("inf"):
            raise ArgumentError(name, arguments[name], "give a number of 0 or more")
