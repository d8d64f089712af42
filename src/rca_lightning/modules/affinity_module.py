"""`AffinityModule`: learns where objects end from confident labels, so that class maps can be walked up to there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric

from rca_lightning.arguments import check_arguments
from rca_lightning.backbones.base import PaddingMode
from rca_lightning.backbones.build import OutputStride, build_backbone
from rca_lightning.backbones.registry import StrideIn
from rca_lightning.checkpoints.reading import read_checkpoint, task_of
from rca_lightning.data.classes import check_mask_classes
from rca_lightning.data.crops import CachedCrops
from rca_lightning.data.dataset import CachedFeatures
from rca_lightning.data.sample import Batch
from rca_lightning.distributed import sum_over_ranks, world_size_and_rank
from rca_lightning.errors import ArgumentError, DataError, WeightsError
from rca_lightning.io.tensor_file import tensor_digest
from rca_lightning.modules.data_checks import DataChecks
from rca_lightning.modules.frozen_backbone import FrozenBackboneMixin
from rca_lightning.modules.hyperparameters import shared_arguments
from rca_lightning.modules.monitored import MonitorGuard
from rca_lightning.modules.optimizers import OptimizerName, ResumableOptimizer
from rca_lightning.modules.training_guards import MetricResetMixin, NonFiniteGuard, OnNonFinite, StepSeedMixin
from rca_lightning.pseudo_labels.affinity import (
    LOSS_RADIUS,
    NUM_OFFSETS,
    PAIR_WEIGHTS,
    affinity_loss,
    half_disc,
    pair_losses,
)
from rca_lightning.pseudo_labels.labels import check_count
from rca_lightning.pseudo_labels.refinement import RefinementName
from rca_lightning.rca.inference import MAX_SIDE, multi_scale_flip
from rca_lightning.rca.loss import means_over_ranks
from rca_lightning.segmentation.boundary import BoundaryNetwork
from rca_lightning.segmentation.pyramid import FeaturePyramid

_PHOTOGRAPHS = 256  # that means and variances are taken of, evenly spread
_REMEDY = "give train_masks=True and a folder of confident labels as train_mask_dir; every image needs one"


class AffinityModule(
    FrozenBackboneMixin,
    MetricResetMixin,
    NonFiniteGuard,
    StepSeedMixin,
    MonitorGuard,
    ResumableOptimizer,
    DataChecks,
):
    """Boundary network behind a frozen backbone, trained so that affinities across boundaries separate labels.

    The class boundary branch of IRN (Ahn, Cho & Kwak, CVPR 2019, arXiv 1904.05044): cells with one label are to have no
    boundary between them, cells with different labels one; see `affinity_loss`. Labels are masks of `train_mask_dir`,
    255 where maps do not decide; all others take part. The refinement "affinity" walks class maps over what is learned.
    It needs `FeatureCacheCallback`, and is trained on crops of its features, `data.crop_size` pixels wide.

    Args:
        num_classes: foreground classes of the labels. The command line takes it from the data.
        class_names: their names.
        backbone: resnet14, resnet18, resnet34, resnet50, resnet101, vgg16, resnet38d, or timm:<model>; it stays as it
            is.
        weights: "imagenet" for published ones (rca weights list); a local file with torchvision's key names, for RGB of
            ImageNet's mean and deviation; a checkpoint of rca fit, whose backbone is taken; a URL; or "none" for random
            weights, which are warned of where it is left out. Checkpoints do not keep it, and replace what it loads.
        weights_sha256: checksum of the file; needed for a URL.
        output_stride: pixels a cell of the coarsest level.
        stride_in: "3x3" for torchvision's ResNets, "1x1" for weights of ResNet v1, with the stride in the first 1x1.
            none: as "imagenet" or a checkpoint of rca fit that is given as weights has it, else "3x3".
        padding_mode: what convolutions see beyond the border of a map, "zeros" or "replicate". none: as a checkpoint of
            rca fit that is given as weights was trained, else zeros.
        radius: how far apart the cells of a pair may lie in training, in cells of 4 pixels.
        num_offsets: how many of the offsets within the radius each step draws at random, for speed; none: all.
        scales: image scales whose boundary maps are averaged after training.
        flip: whether the boundary map of the mirrored image is averaged in after training.
        max_side: longest side in pixels of what is computed at once after training; bounds memory.
        optimizer: "sgd" or "adamw".
        lr: learning rate.
        new_layer_lr_ratio: rate of the boundary network, as a multiple of lr.
        weight_decay: weight decay.
        momentum: of SGD.
        poly_power: exponent of the poly decay over all training steps.
        on_non_finite: "raise", or "skip" training batches with a number that is not finite; see `NonFiniteGuard`.

    Raises:
        RCAError: for an argument out of its range.

    Example:
        >>> module = AffinityModule(num_classes=3, backbone="resnet18")
        >>> tuple(module(torch.zeros(1, 3, 64, 64)).shape)
        (1, 16, 16)
    """

    task = "affinity"
    network: BoundaryNetwork
    trains_on_crops = True

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
        radius: float = LOSS_RADIUS,
        num_offsets: int | None = NUM_OFFSETS,
        scales: tuple[float, ...] = (1.0,),
        flip: bool = False,
        max_side: int = MAX_SIDE,
        optimizer: OptimizerName = "sgd",
        lr: float = 0.1,
        new_layer_lr_ratio: float = 1.0,
        weight_decay: float = 1e-4,
        momentum: float = 0.9,
        poly_power: float = 0.9,
        on_non_finite: OnNonFinite = "raise",
    ) -> None:
        super().__init__()
        self.save_hyperparameters(shared_arguments(locals()))
        check_mask_classes(num_classes)
        half_disc(radius)
        if num_offsets is not None:
            check_count("num_offsets", num_offsets, least=1)
        extractor = build_backbone(
            backbone,
            output_stride=output_stride,
            weights=weights,
            weights_sha256=weights_sha256,
            stride_in=self.hparams["stride_in"],
            padding_mode=self.hparams["padding_mode"],
        )
        self.network = BoundaryNetwork(FeaturePyramid(extractor))
        self.evaluation = MeanMetric()
        self.last_loss: float | None = None

    @property
    def is_frozen(self) -> bool:
        """The backbone is never trained."""
        return True

    def forward(self, images: Tensor) -> Tensor:
        """Boundary `(B, h, w)` of images `(B, 3, H, W)`; see `BoundaryNetwork.forward`."""
        return self.network(images)  # type: ignore[no-any-return]

    def logged_names(self) -> list[str]:
        """Names of the metrics that `fit` logs."""
        return ["train/loss", *super().logged_names()] + ["val/loss"] * self.validates()

    def on_fit_start(self) -> None:
        """Refuse to train without the features that the projections are learned from."""
        super().on_fit_start()
        if getattr(self.trainer.datamodule, "features", None) is None:  # type: ignore[attr-defined]
            raise ArgumentError("callbacks", None, "add FeatureCacheCallback() to the Trainer")

    @torch.no_grad()
    def start_from_features(self, images: CachedFeatures, *, penalty: float) -> None:
        """Takes mean and variance of each channel from photographs, of which every rank reads a share."""
        processes, rank = world_size_and_rank()
        step = max(1, len(images) // _PHOTOGRAPHS)
        widths = [len(projection.weight) for projection in self.network.projections]
        # Components have mean 0 over all cells that were learned from, so squares lose no digits.
        sums = torch.zeros(3, sum(widths), dtype=torch.float64)  # number of cells, their sum, that of their squares
        for row in range(rank * step, len(images), processes * step):
            levels = _levels(images[row]["features"][0])
            cells = [level[0].flatten(1).double() for level in levels]  # (D_k, h_k w_k)
            number = torch.cat([of_level.new_full((len(of_level),), of_level.shape[1]) for of_level in cells])
            total = torch.cat([of_level.sum(1) for of_level in cells])
            sums += torch.stack([number, total, torch.cat([of_level.square().sum(1) for of_level in cells])])
        number, total, squares = sum_over_ranks(
            sums.to(self.device, torch.float32 if self.device.type == "mps" else torch.float64)
        )
        mean = total / number
        variance = (squares / number - mean.square()).clamp_min(0)
        parts = zip(self.network.standardizations, mean.split(widths), variance.split(widths), strict=True)
        for standardization, of_level, spread in parts:
            standardization.get_buffer("mean").copy_(of_level)
            standardization.get_buffer("variance").copy_(spread)

    def on_train_start(self) -> None:
        """Checks that every training image has labels."""
        super().on_train_start()
        crops = getattr(self.trainer.train_dataloader, "dataset", None)
        if isinstance(crops, CachedCrops):
            without = [record.image_id for record in crops.images.records if record.mask is None]
            if without:
                problem = f"{len(without)} of {len(crops)} training images have no labels, such as {without[0]}"
                raise DataError(f"train_masks: {problem}; {_REMEDY}")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Computes the loss of pairs of cells of a batch of crops, equation (15)."""
        if "mask" not in batch:
            raise DataError(f"train_masks: the batch of {batch['image_id'][0]} holds no labels; {_REMEDY}")
        self.before_step()
        boundary = self.network.read(batch["features"])
        radius, drawn = self.hparams["radius"], self.hparams["num_offsets"]
        means, counts = pair_losses(boundary, _on_grid(batch["mask"], boundary), radius=radius, num_offsets=drawn)
        features = {f"features of level {level}": values for level, values in enumerate(batch["features"])}
        if self.should_skip(batch, {"boundary": boundary, **means}, features):
            return self.no_loss()
        minimised, values = means_over_ranks(means, counts)
        weighted = {name: weight * values[name] for name, weight in PAIR_WEIGHTS.items()}
        self.log("train/loss", torch.stack([*weighted.values()]).sum(), prog_bar=True, batch_size=len(boundary))
        return torch.stack([weight * minimised[name] for name, weight in PAIR_WEIGHTS.items()]).sum()

    @torch.no_grad()
    def boundaries(self, batch: Batch) -> list[Tensor]:
        """Boundary map `(h, w)` of each photograph of a batch: of its cached features where there are any."""
        if "features" in batch:
            return [self._read_views([_levels(levels) for levels in scales]) for scales in batch["features"]]
        return list(self.boundary_maps(batch["image"]))

    @torch.no_grad()
    def boundary_maps(self, images: Tensor) -> Tensor:
        """Boundary maps `(B, h, w)` of photographs `(B, 3, H, W)`, averaged over `scales` and `flip`."""
        options = {name: self.hparams[name] for name in ("scales", "flip", "max_side")}
        views = multi_scale_flip(images, **options)
        return _mean([_unflip(self.network(view), mirrored) for view, mirrored in views])

    def _read_views(self, scales: Sequence[list[Tensor]]) -> Tensor:
        """Boundary `(h, w)` of a photograph from its levels at each scale, each `(V, D_k, h_k, w_k)`."""
        views = [(self.network.read(levels), len(levels[0])) for levels in scales]
        maps = [_unflip(boundary[view : view + 1], view == 1) for boundary, count in views for view in range(count)]
        return _mean(maps)[0]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds the loss of each image that has a mask."""
        if "mask" in batch:
            for boundary, mask in zip(self.boundaries(batch), batch["mask"], strict=True):
                labels = _on_grid(mask[None], boundary[None])
                self.evaluation.update(affinity_loss(boundary[None], labels, radius=self.hparams["radius"]))

    def on_validation_epoch_end(self) -> None:
        """Logs the mean loss over the photographs of the split."""
        self._log_loss("val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As `validation_step`."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Logs the mean loss over the photographs of the split."""
        self._log_loss("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """For each image `image_id`, and its `boundary` `(h, w)` on the CPU."""
        if not batch["image_id"]:
            return []  # none of its images could be read
        named = zip(batch["image_id"], self.boundaries(batch), strict=True)
        return [{"image_id": image_id, "boundary": boundary.cpu()} for image_id, boundary in named]

    def digest(self) -> str:
        """Checksum of the weights, which tells what was refined with them from what was refined with others."""
        return tensor_digest(self.state_dict())[:16]

    def _log_loss(self, split: str) -> None:
        loss = float(self.evaluation.compute())
        self.last_loss = None if loss != loss else loss  # NaN without any mask
        if self.last_loss is not None:
            self.log(f"{split}/loss", loss, prog_bar=True, sync_dist=False)
        elif not self.trainer.sanity_checking:
            self.warn_once("no image that was validated has a mask, so there is no loss")


@check_arguments
def check_affinity(refine: Sequence[RefinementName], affinity_ckpt: str | None) -> None:
    """Refuses the refinement "affinity" without a checkpoint, and a checkpoint without that refinement.

    Raises:
        ArgumentError: naming `affinity_ckpt`.
    """
    if "affinity" in refine and affinity_ckpt is None:
        remedy = "refine='affinity' needs a checkpoint of rca affinity fit; give its path"
        raise ArgumentError("affinity_ckpt", None, remedy)
    if "affinity" not in refine and affinity_ckpt is not None:
        remedy = "nothing reads it; give 'affinity' first in refine, or leave it out"
        raise ArgumentError("affinity_ckpt", affinity_ckpt, remedy)


def load_affinity(affinity_ckpt: str | Path, device: torch.device | str = "cpu") -> AffinityModule:
    """Loads the module that draws the boundary maps of the refinement "affinity"; runs no code in the file.

    Args:
        affinity_ckpt: a checkpoint of `rca affinity fit`.
        device: for its weights.

    Raises:
        ArgumentError: if there is no such file.
        WeightsError: if it is damaged, or a checkpoint of another task.
    """
    content = read_checkpoint(affinity_ckpt, map_location="meta", argument="affinity_ckpt")
    other = task_of(content["state_dict"])
    if other != AffinityModule.task:
        of = "no task" if other is None else f"the task {other!r}"
        raise WeightsError(
            f"affinity_ckpt={str(affinity_ckpt)!r} is a checkpoint of {of}; give one of rca affinity fit"
        )
    return AffinityModule.load_from_checkpoint(affinity_ckpt, map_location=device).eval()


def _levels(stored: Tensor | list[Tensor]) -> list[Tensor]:
    """Levels `(V, D_k, h_k, w_k)` as a cache gives them: of a single level the tensor alone."""
    return [stored] if isinstance(stored, Tensor) else stored


def _on_grid(mask: Tensor, boundary: Tensor) -> Tensor:
    """Labels `(B, h, w)` of the cells of a boundary map from those of the pixels `(B, H, W)`."""
    return F.interpolate(mask[:, None].float(), boundary.shape[1:], mode="nearest-exact")[:, 0].long()


def _unflip(boundary: Tensor, mirrored: bool) -> Tensor:
    return boundary.flip(-1) if mirrored else boundary


def _mean(maps: Sequence[Tensor]) -> Tensor:
    """Mean of boundary maps `(B, h, w)`, on the grid of the first."""
    size = maps[0].shape[1:]
    resized = [F.interpolate(one[:, None], size, mode="bilinear", align_corners=False)[:, 0] for one in maps]
    return torch.stack(resized).mean(0)
