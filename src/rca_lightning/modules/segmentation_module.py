"""`SegmentationModule`: the second stage, a segmentation network trained on pseudo labels or real masks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from rca_lightning.arguments import check_arguments
from rca_lightning.backbones.base import PaddingMode
from rca_lightning.backbones.build import OutputStride, build_backbone
from rca_lightning.backbones.registry import StrideIn
from rca_lightning.backbones.weights import load_cam_head, record_weights
from rca_lightning.constants import IGNORE_INDEX
from rca_lightning.data.classes import check_mask_classes
from rca_lightning.data.dataset import TaggedImages
from rca_lightning.data.sample import Batch
from rca_lightning.errors import ArgumentError, DataError
from rca_lightning.evaluation.label_iou import LabelEvaluation
from rca_lightning.evaluation.mask_classes import sample_mask_classes
from rca_lightning.modules.data_checks import DataChecks
from rca_lightning.modules.hyperparameters import shared_arguments
from rca_lightning.modules.label_prediction import GivenTags, LabelPrediction
from rca_lightning.modules.monitored import MonitorGuard
from rca_lightning.modules.optimizers import OptimizerName, ResumableOptimizer
from rca_lightning.modules.training_guards import (
    NonFiniteGuard,
    OnNonFinite,
    StepSeedMixin,
    check_cells,
)
from rca_lightning.modules.weight_averaging import AveragedBuffersMixin
from rca_lightning.rca.inference import MAX_SIDE
from rca_lightning.rca.loss import classification_loss, means_over_ranks
from rca_lightning.segmentation.network import HeadName, SegmentationNetwork, pixel_cross_entropy

_REMEDY = "give train_masks=True and, for pseudo labels, their folder as train_mask_dir; every image needs one"


class SegmentationModule(
    LabelPrediction, NonFiniteGuard, StepSeedMixin, AveragedBuffersMixin, MonitorGuard, ResumableOptimizer, DataChecks
):
    """A segmentation network trained with cross-entropy on masks, in which 255 marks pixels without a label.

    Tags take no part by default. With `tag_weight` a second head learns them, and weighs the classes of every image;
    with `eval_tags` or `predict_tags` given tags choose what is drawn. Averaged weights come from Lightning's
    callback `EMAWeightAveraging`; checkpoints then hold the averaged weights, and those training goes on with.

    Args:
        num_classes: foreground classes `L`. The command line takes it from the data.
        class_names: their names, for tables.
        backbone: resnet14, resnet18, resnet34, resnet50, resnet101, vgg16, resnet38d, or timm:<model>.
        weights: "imagenet" for published ones (rca weights list); a local file with torchvision's key names, for RGB of
            ImageNet's mean and deviation; a checkpoint of rca fit, whose backbone is taken; a URL; or "none" for random
            weights, which are warned of where it is left out. Checkpoints do not keep it, and replace what it loads.
        weights_sha256: checksum of the file; needed for a URL.
        output_stride: pixels a cell of the features.
        stride_in: "3x3" for torchvision's ResNets, "1x1" for weights of ResNet v1, with the stride in the first 1x1.
            none: as "imagenet" or a checkpoint of rca fit that is given as weights has it, else "3x3".
        padding_mode: what convolutions of the backbone see beyond the border of a map: "zeros", or "replicate" for the
            border again. Behind zeros all borders look alike, and maps of a network trained from scratch on small
            images take the form of a box (experiments/quickstart). none: as a checkpoint of rca fit that is given as
            weights was trained, else zeros.
        frozen_batchnorm: keep statistics and scales of the backbone's BatchNorm. On with pretrained weights and
            small batches; turn it off to train from scratch, on several GPUs with sync_batchnorm of the Trainer.
        frozen_stages: how many of the first stages to freeze, 0 to 5; of a transformer of timm up to 1 and its blocks.
        channels_last: memory layout of the convolutions; turn it on with bf16 or fp16.
        head: "deeplabv2", parallel dilated classifiers (arXiv 1606.00915); "deeplabv3plus", ASPP with image pooling
            and a decoder that reads an early stage (arXiv 1802.02611), for sharper outlines at a higher cost; "linear",
            one classifier on standardised features, which sees no surroundings: for few images with poor labels.
        tag_weight: weight of the loss of a head that learns the tags of the image, beside the loss of the pixels; 0: no
            such head. The probability of a class is multiplied with that of its tag then. With weights from a
            checkpoint of rca fit it starts as the CAM head in there, unless that head reads a projection, as behind a
            frozen backbone.
        scales: image scales at evaluation and prediction.
        flip: whether evaluation and prediction add the mirrored image.
        max_side: longest side in pixels of what evaluation and prediction compute at once; bounds memory.
        crf: whether a fully connected CRF refines the probabilities in validate, test and predict, but not in the
            validations of fit; needs the extra "crf".
        eval_tags: "image" draws only what the tags of an image name, for photographs that come with tags; "none" does
            not look at them. An image without tags is drawn as with "none".
        predict_tags: the same for prediction.
        optimizer: "sgd" or "adamw".
        lr: learning rate of the backbone.
        new_layer_lr_ratio: rate of the head, as a multiple of lr.
        weight_decay: weight decay.
        momentum: of SGD.
        poly_power: exponent of the poly decay over all training steps.
        on_non_finite: "raise", or "skip" training batches with a number that is not finite; see `NonFiniteGuard`.

    Raises:
        RCAError: for an argument out of its range.

    Example:
        >>> import torch
        >>> module = SegmentationModule(num_classes=3, backbone="resnet18")
        >>> module(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 4, 4, 4])
    """

    task = "segment"
    trains_on_labels = True

    @check_arguments
    def __init__(
        self,
        num_classes: int,
        class_names: list[str] | None = None,
        *,
        backbone: str = "resnet50",
        weights: str | None = None,
        weights_sha256: str | None = None,
        output_stride: OutputStride = 16,
        stride_in: StrideIn | None = None,
        padding_mode: PaddingMode | None = None,
        frozen_batchnorm: bool = True,
        frozen_stages: int = 0,
        channels_last: bool = False,
        head: HeadName = "deeplabv2",
        tag_weight: float = 0.0,
        scales: tuple[float, ...] = (1.0,),
        flip: bool = True,
        max_side: int = MAX_SIDE,
        crf: bool = False,
        eval_tags: GivenTags = "none",
        predict_tags: GivenTags = "none",
        optimizer: OptimizerName = "sgd",
        lr: float = 0.01,
        new_layer_lr_ratio: float = 10.0,
        weight_decay: float = 1e-4,
        momentum: float = 0.9,
        poly_power: float = 0.9,
        on_non_finite: OnNonFinite = "raise",
    ) -> None:
        super().__init__()
        self.save_hyperparameters(shared_arguments(locals()))
        check_mask_classes(num_classes)
        if tag_weight < 0:
            raise ArgumentError("tag_weight", tag_weight, "give 0 or more")
        extractor = build_backbone(
            backbone,
            output_stride=output_stride,
            weights=weights,
            weights_sha256=weights_sha256,
            stride_in=self.hparams["stride_in"],
            padding_mode=self.hparams["padding_mode"],
            frozen_batchnorm=frozen_batchnorm,
            frozen_stages=frozen_stages,
        )
        self.network = SegmentationNetwork(
            extractor, head, num_classes + 1, tag_head=tag_weight > 0, channels_last=channels_last
        )
        self.weights_on_record = record_weights(weights, backbone=backbone, sha256=weights_sha256)
        if self.network.tag_head is not None and weights is not None:
            load_cam_head(self.network.tag_head, weights, sha256=weights_sha256, class_names=class_names)
        self.evaluation = LabelEvaluation(num_classes)
        self.use_crf = crf

    @property
    def segmenter(self) -> nn.Module:
        """The network that draws: normalised images `(B, 3, H, W)` -> logits `(B, L + 1, h, w)`."""
        return self.network

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, L + 1, h, w)` of images `(B, 3, H, W)`; see `SegmentationNetwork.forward`."""
        return self.network(images)  # type: ignore[no-any-return]

    def logged_names(self) -> list[str]:
        """Names of the metrics that `fit` logs."""
        names = ["train/loss"] + ["train/tag_loss"] * (self.network.tag_head is not None) + super().logged_names()
        return names + [self.score_name("val")] * self.validates()

    def on_train_start(self) -> None:
        """Checks that every training image has a mask, and warns of classes that the masks do not show."""
        super().on_train_start()
        images = getattr(self.trainer.train_dataloader, "dataset", None)
        if isinstance(images, TaggedImages):
            without = [record.image_id for record in images.records if record.mask is None]
            if without:
                problem = f"{len(without)} of {len(images)} training images have no mask, such as {without[0]}"
                raise DataError(f"train_masks: {problem}; {_REMEDY}")
            if self.trainer.is_global_zero and self.current_epoch == 0:
                for line in sample_mask_classes(images.records, self.hparams["num_classes"]).warnings(self.class_names):
                    self.warn_once(f"training: {line}")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Computes the loss of a batch: cross-entropy of the pixels, plus `tag_weight` times that of the tags."""
        if "mask" not in batch:
            raise DataError(f"train_masks: the batch of {batch['image_id'][0]} holds no masks; {_REMEDY}")
        check_cells(self.network, batch["image"], self.network.backbone.output_stride)
        self.before_step()
        mask, size = batch["mask"], len(batch["mask"])
        logits, tag_maps = self.network.branches(batch["image"])
        losses = {"loss": pixel_cross_entropy(logits, mask)}
        if tag_maps is not None:
            losses["tag_loss"] = classification_loss(tag_maps, batch["tags"])
        # The logits too: the loss does not see those of pixels without a label, their gradients would not be finite.
        if self.should_skip(batch, {"logits": logits, **losses}, {}):
            return self.no_loss()
        minimised, values = means_over_ranks(losses, {"loss": (mask != IGNORE_INDEX).sum(), "tag_loss": size})
        if tag_maps is not None:
            self.log("train/tag_loss", values["tag_loss"], batch_size=size)
        self.log("train/loss", self._total(values), prog_bar=True, batch_size=size)
        return self._total(minimised)

    def _total(self, losses: Mapping[str, Tensor]) -> Tensor:
        tag_loss = losses.get("tag_loss")
        return losses["loss"] if tag_loss is None else losses["loss"] + self.hparams["tag_weight"] * tag_loss
