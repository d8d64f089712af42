"""`RCAModule`: network, loss, optimiser and steps of RCA for the Lightning Trainer."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from rca_lightning.arguments import check_arguments
from rca_lightning.backbones.base import PaddingMode
from rca_lightning.backbones.build import OutputStride
from rca_lightning.backbones.prompts import TextEmbeddings, read_text_embeddings
from rca_lightning.backbones.registry import StrideIn
from rca_lightning.backbones.weights import load_frozen_start, record_weights
from rca_lightning.data.dataset import CachedFeatures
from rca_lightning.data.sample import Batch
from rca_lightning.data.seed_maps import Seeds
from rca_lightning.distributed import broadcast_from_first, gather_uneven, world_size_and_rank
from rca_lightning.errors import ArgumentError, refuse_removed
from rca_lightning.evaluation.auto_threshold import Automatic
from rca_lightning.evaluation.report import Scores
from rca_lightning.evaluation.seed_iou import Evaluation, TagSource
from rca_lightning.io.listing import first_few
from rca_lightning.modules.data_checks import DataChecks
from rca_lightning.modules.frozen_backbone import prepare_without_gradients
from rca_lightning.modules.hyperparameters import checked_arguments
from rca_lightning.modules.monitored import MonitorGuard
from rca_lightning.modules.optimizers import OptimizerName, ResumableOptimizer
from rca_lightning.modules.seed_prediction import SeedPrediction
from rca_lightning.modules.training_guards import (
    NonFiniteGuard,
    OnNonFinite,
    StepSeedMixin,
    check_cells,
)
from rca_lightning.modules.weight_averaging import AveragedBuffersMixin
from rca_lightning.rca.cam import fit_head, image_logits
from rca_lightning.rca.contrast import Positives
from rca_lightning.rca.inference import MAX_SIDE
from rca_lightning.rca.loss import AddedLoss, Losses, RCALoss
from rca_lightning.rca.memory_bank import RegionMemory
from rca_lightning.rca.network import (
    ActivationMaps,
    AttentionClasses,
    FinalMap,
    Projection,
    RegionMap,
    build_network,
)
from rca_lightning.rca.propagation import PropagationAffinity
from rca_lightning.rca.prototype_contrast import CELLS, select_cells
from rca_lightning.rca.regions import RegionRule, Regions, cell_labels, extract_regions, select_for_memory
from rca_lightning.rca.tag_calibration import TagCalibration

logger = logging.getLogger(__name__)
_info = rank_zero_only(logger.info)

BackboneMode = Literal["frozen", "trained"]


class RCAModule(
    NonFiniteGuard, StepSeedMixin, SeedPrediction, AveragedBuffersMixin, MonitorGuard, ResumableOptimizer, DataChecks
):
    """Weakly supervised segmentation by Regional Semantic Contrast and Aggregation.

    Loss = `CE(P) + beta * CE(P^) + alpha * InfoNCE` (RCA, CVPR 2022, arXiv 2203.09653, section 3). The memory
    of regions belongs to `RegionMemoryCallback`, which the Trainer needs while `contrast` or `aggregation` is on.
    With both off this is the plain CAM baseline. Averaged weights come from Lightning's callbacks `WeightAveraging` and
    `EMAWeightAveraging`, whose validations and checkpoints then have the latest prototypes; see `AveragedBuffersMixin`.

    Args:
        num_classes: foreground classes `L`. The command line takes it from the data.
        class_names: their names, for tables and pictures.
        backbone: resnet14, resnet18, resnet34, resnet50, resnet101, vgg16, resnet38d, or timm:<model>.
        weights: "imagenet" for published ones (rca weights list); a local file with torchvision's key names, for RGB of
            ImageNet's mean and deviation; a checkpoint of rca fit, whose backbone is taken, and with
            backbone_mode="trained" of one with a frozen backbone PCA, CAM head and prototypes too, as far as they fit;
            a URL; or "none" for random weights, which are warned of where it is left out. Checkpoints do not keep it,
            and replace what it loads.
        weights_sha256: checksum of the file; needed for a URL.
        output_stride: pixels a cell: 16 halves the cost of 8 and loses little in seeds.
        stride_in: "3x3" for torchvision's ResNets, "1x1" for weights of ResNet v1, with the stride in the first 1x1.
            none: as "imagenet" or a checkpoint of rca fit that is given as weights has it, else "3x3".
        padding_mode: what convolutions of the backbone see beyond the border of a map: "zeros", or "replicate" for the
            border again. Behind zeros all borders look alike, and maps of a network trained from scratch on small
            images take the form of a box (experiments/quickstart). none: as a checkpoint of rca fit that is given as
            weights was trained, else zeros.
        backbone_mode: "frozen": the backbone stays as it is. `FeatureCacheCallback` computes the features of each
            photograph once; the first head is a logistic regression on them, and each epoch is a round of regions,
            clustering and attention, without gradients. "trained": it is trained with the losses of RCA. none: frozen
            where weights are given, which takes a third of the time (experiments/voc2012_mini).
        frozen_batchnorm: keep statistics and scales of the backbone's BatchNorm. On with pretrained weights and
            small batches; turn it off to train from scratch, on several GPUs with sync_batchnorm of the Trainer.
        frozen_stages: how many of the first stages to freeze, 0 to 5; of a transformer of timm up to 1 and its blocks.
        channels_last: memory layout of the convolutions; turn it on with bf16 or fp16. none: behind a frozen backbone,
            whose features then take a tenth less time on a processor.
        contrast: whether to contrast regions with the memory; behind a frozen backbone the prototypes with cells, see
            `contrast_prototypes`. none: yes, where there is something to train.
        aggregation: whether pixels read the prototypes of the dataset and a second CAM head completes the map.
        projection: of embeddings: "learned", a 1x1 convolution for memory and prototypes, or "pca", onto the principal
            components of standardised features, which the CAM heads read too. none: "pca" behind a frozen backbone and
            where the weights have one.
        embedding_dim: channels of the projection; none: those of the weights, 256 behind a frozen backbone, else the
            features themselves without a projection, which need no warm-up to mean something.
        embedding_stages: how many of the last stages of the backbone embeddings are made of, of a transformer of its
            blocks; none: 2, which adds parts that the features of the last have merged, or 1 for a transformer.
        prompts: file of `rca prompts`: the first CAM head reads cells against its text embeddings in place of a
            regression of the tags, behind a frozen backbone `clip:<model>` whose features they are compared with. It
            reads the last stage and all its channels. none: the regression.
        num_prompts: texts that the first head of a checkpoint reads; follows from `prompts`.
        standardize: whether embeddings have mean 0 and variance 1 in every channel; features behind a ReLU are
            all alike in direction without.
        alpha: weight of the contrast. Behind frozen features of photographs 0.01 gave more than 0.1 or 1.
        beta: weight of the classification loss of the second head; 1 as in the paper: both heads learn the same.
            0 leaves that head out, which the map of the attention has no need of. none: 1, behind a frozen backbone 0.
        contrast_temperature: tau of InfoNCE.
        positives: of InfoNCE: "all" slots of the class, its "prototypes", or its "hardest" slot.
        attention_temperature: of the softmax over prototypes, for unit vectors: the lower, the fewer a pixel reads.
        normalize_attention: cosine instead of raw products.
        attention_classes: "tags": a pixel reads only the classes of its image, or "all" as in the paper.
        num_prototypes: K a class.
        background_prototypes: prototypes of confidently empty cells, 0 for none. Without them sky and road
            must share their attention among objects.
        region_threshold: activation above which a cell belongs to a region, on the scale of region_rule.
        attention_region_threshold: the same where regions are cut from the attention; none: 0.5, and 0.7 behind a
            frozen backbone, where it is propagated.
        region_rule: where the map of a class is cut: "fixed" after min-max, "mean", or "quantile".
        region_map: what regions are cut from: the "coarse" maps, as in the paper, or the "attention" once there are
            prototypes. Each clustering then starts from better regions than the last.
        background_threshold: share of the peak below which a cell counts as confidently empty.
        attention_background_threshold: the same where regions are cut from the attention; none: 0.05, and 0.15 behind
            a frozen backbone.
        confidence: image probability a tag must reach before its region enters the memory; none: 0.5, behind a frozen
            backbone 0.
        warmup_epochs: epochs before the first clustering and before contrast; the memory fills meanwhile. none: 2,
            behind a frozen backbone 1.
        propagation_steps: how often maps are propagated over like cells of their image: the final maps, and behind a
            frozen backbone the attention that regions are cut from; 0: never.
        propagation_power: how alike cells must be; see `propagate`.
        propagation_affinity: what makes cells alike: the "cosine" of their embeddings; or of a transformer of timm its
            "attention" between patches, to which the power does not apply, or the cosine of the "keys" of its last
            block. The cache of features then holds them too; see `Backbone.affinity`. The random walk goes by it too.
        final_map: what seeds are read from: "attention" summed by class, "coarse" (P), "refined" (P^, as in the
            paper) or the "mean" of the last two.
        scales: image scales at evaluation and prediction. Behind a frozen backbone training reads the first one.
        flip: whether evaluation and prediction add the mirrored image.
        max_side: longest side of a view in pixels at evaluation and prediction, which bounds memory; larger photographs
            are computed smaller, and that is logged.
        eval_tags: "image" lets a map use the true tags, as seeds for training do; "predicted" does not.
        predict_tags: the same for prediction. Images whose tags are unknown always use predicted ones.
        tag_threshold: image probability above which a tag is predicted. none: of each class the one that a frozen fit
            has calibrated on the tags of its photographs, else 0.5.
        seed_threshold: background threshold of the score; none: the one that pseudo labels of the kind of maps are
            drawn with, see `PseudoLabelWriter`; "auto": chosen from the maps of the photographs that are scored, see
            `AutoThreshold`. Masks have no part in it; the best of 0.05, 0.10, ... 0.95 on them is
            told as "oracle" beside.
        optimizer: "sgd" or "adamw".
        lr: learning rate of the backbone.
        new_layer_lr_ratio: rate of the heads and the projection, as a multiple of lr.
        weight_decay: weight decay.
        momentum: of SGD.
        poly_power: exponent of the poly decay over all training steps.
        on_non_finite: what happens to a training batch with a number that is not finite: "raise" names it and stops,
            "skip" leaves the batch out and counts it; see `NonFiniteGuard`.

    Example:
        >>> import torch
        >>> module = RCAModule(num_classes=3, backbone="resnet18")
        >>> module(torch.zeros(1, 3, 64, 64)).refined.shape
        torch.Size([1, 3, 4, 4])
    """

    task = "localize"

    @refuse_removed(context="gone since 0.2; rival contexts are in experiments/ablation/contexts.py")
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
        backbone_mode: BackboneMode | None = None,
        frozen_batchnorm: bool = True,
        frozen_stages: int = 0,
        channels_last: bool | None = None,
        contrast: bool | None = None,
        aggregation: bool = True,
        projection: Projection | None = None,
        embedding_dim: int | None = None,
        embedding_stages: int | None = None,
        prompts: str | None = None,
        num_prompts: int | None = None,
        standardize: bool = True,
        alpha: float = 0.01,
        beta: float | None = None,
        contrast_temperature: float = 0.1,
        positives: Positives = "all",
        attention_temperature: float = 0.05,
        normalize_attention: bool = True,
        attention_classes: AttentionClasses = "tags",
        num_prototypes: int = 20,
        background_prototypes: int = 64,
        region_threshold: float = 0.5,
        attention_region_threshold: float | None = None,
        region_rule: RegionRule = "fixed",
        region_map: RegionMap = "attention",
        background_threshold: float = 0.05,
        attention_background_threshold: float | None = None,
        confidence: float | None = None,
        warmup_epochs: int | None = None,
        propagation_steps: int = 1,
        propagation_power: float = 2.0,
        propagation_affinity: PropagationAffinity = "cosine",
        final_map: FinalMap = "attention",
        scales: tuple[float, ...] = (1.0,),
        flip: bool = True,
        max_side: int = MAX_SIDE,
        eval_tags: TagSource = "image",
        predict_tags: TagSource = "image",
        tag_threshold: float | None = None,
        seed_threshold: float | Automatic | None = None,
        optimizer: OptimizerName = "sgd",
        lr: float = 0.01,
        new_layer_lr_ratio: float = 10.0,
        weight_decay: float = 1e-4,
        momentum: float = 0.9,
        poly_power: float = 0.9,
        on_non_finite: OnNonFinite = "raise",
    ) -> None:
        super().__init__()
        # An explicit dict: what the command line read plus what it linked, and no paths of one machine.
        self.save_hyperparameters(checked_arguments(locals()))
        self.network = build_network(
            num_classes,
            backbone=backbone,
            weights=weights,
            weights_sha256=weights_sha256,
            output_stride=output_stride,
            stride_in=self.hparams["stride_in"],
            padding_mode=self.hparams["padding_mode"],
            frozen_batchnorm=frozen_batchnorm,
            frozen_stages=frozen_stages,
            channels_last=self.hparams["channels_last"],
            contrast=self.hparams["contrast"],
            aggregation=aggregation,
            beta=self.hparams["beta"],
            frozen=self.is_frozen,
            projection=self.hparams["projection"],
            embedding_dim=self.hparams["embedding_dim"],
            embedding_stages=self.hparams["embedding_stages"],
            standardize=standardize,
            attention_temperature=attention_temperature,
            normalize_attention=normalize_attention,
            attention_classes=attention_classes,
            num_prototypes=num_prototypes,
            background_prototypes=background_prototypes,
            num_prompts=self.hparams["num_prompts"],
            propagation_affinity=propagation_affinity,
        )
        self.weights_on_record = record_weights(weights, backbone=backbone, sha256=weights_sha256)
        self._prompts = None if prompts is None else self._read_prompts(prompts)
        if weights is not None and not self.is_frozen:
            load_frozen_start(self.network, weights, sha256=weights_sha256, class_names=class_names)
        self.loss = RCALoss(
            alpha=alpha, beta=self.hparams["beta"], temperature=contrast_temperature, positives=positives
        )
        fixed = (seed_threshold,) if isinstance(seed_threshold, (int, float)) else ()
        self.evaluation = Evaluation(num_classes, fixed, chooses=seed_threshold == "auto")
        self.tag_calibration = TagCalibration(num_classes)
        self.memory: RegionMemory | None = None
        self.cells_per_class = CELLS  # of a view, in a round; `RegionMemoryCallback` takes fewer of many photographs
        self.keeps_features = False  # a writer that walks over them asks for them
        if self.is_frozen:
            self.network.requires_grad_(False)

    @property
    def needs_memory(self) -> bool:
        """Whether the losses or the prototypes come from the region memory."""
        return bool(self.hparams["contrast"]) or self.network.aggregation is not None

    @property
    def memory_classes(self) -> int:
        """Queues of the memory: the classes, and the background where it has prototypes."""
        return int(self.hparams["num_classes"]) + bool(self.hparams["background_prototypes"])

    @property
    def num_classes(self) -> int:
        """Foreground classes `L`."""
        return int(self.hparams["num_classes"])

    @property
    def embedding_dim(self) -> int:
        """Channels of regions and prototypes."""
        return self.network.stage_weights.shape[0]

    @property
    def reads_seeds(self) -> bool:
        """Whether regions are cut from the maps of `seed_dir`: behind a frozen backbone, where nothing is cropped."""
        return self.is_frozen and self.needs_memory

    def forward(self, images: Tensor, tags: Tensor | None = None) -> ActivationMaps:
        """Maps of images `(B, 3, H, W)`; see `RCANetwork.forward`."""
        return self.network(images, tags)  # type: ignore[no-any-return]

    def score_names(self) -> list[str]:
        """Names of the scores of a validation in `fit`."""
        return [*Scores.logged_names(self.hparams["eval_tags"], "val")]

    def logged_names(self) -> list[str]:
        """Names of the metrics that `fit` logs."""
        scores = self.score_names() * self.validates()
        if self.is_frozen:
            return scores + ["train/label_change"] * self.needs_memory
        parts = ["coarse"] + ["refined"] * (self.network.refined_head is not None) + ["contrast"] * self.needs_memory
        names = ["train/loss", *(f"train/loss_{part}" for part in parts), *super().logged_names()]
        return names + scores

    def setup(self, stage: str) -> None:
        """Refuses callbacks that need gradients where there are none."""
        super().setup(stage)
        if stage != TrainerFn.FITTING or not self.is_frozen:
            return
        prepare_without_gradients(self.trainer, "leave it out, or give backbone_mode='trained'")

    def _read_prompts(self, path: str) -> TextEmbeddings:
        """The text embeddings of a file, if they fit the backbone and the classes."""
        given = read_text_embeddings(Path(path), self.class_names)
        width, expected = given.classes.shape[1], self.network.backbone.num_features
        if width != expected:
            remedy = f"its embeddings have {width} channels and the features of the backbone {expected}"
            raise ArgumentError("prompts", path, f"{remedy}; give a backbone clip:<model> of the same model")
        return given

    def on_fit_start(self) -> None:
        """Refuse to train without the memory that the losses need, or with a projection that nothing trains."""
        super().on_fit_start()
        if self.is_frozen:
            self.network.eval()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.is_frozen and getattr(data, "features", None) is None:
            raise ArgumentError(
                "callbacks", None, "add FeatureCacheCallback() to the Trainer, or give backbone_mode='trained'"
            )
        if self.network.pca is not None and not self.is_frozen and not self.network.pca_learned:
            raise ArgumentError(
                "projection",
                "pca",
                "a trained backbone has the components of a frozen fit: give its checkpoint as weights, with the same "
                "embedding_dim and embedding_stages; or leave it out",
            )
        if self.network.projection is not None and not self._trains_projection():
            raise ArgumentError(
                "embedding_dim",
                self.hparams["embedding_dim"],
                "nothing trains this projection; leave it out, or give beta above 0 with aggregation=True, or alpha "
                "above 0 with contrast=True",
            )
        if self.needs_memory and self.memory is None:
            raise ArgumentError(
                "callbacks", None, "add RegionMemoryCallback() to the Trainer, or set contrast=False, aggregation=False"
            )

    def start_from_features(self, images: CachedFeatures, *, penalty: float) -> None:
        """Fits the first CAM head to the mean features of photographs, of which every rank reads a share.

        A head of prompts is given them; nothing is fitted.
        """
        if self.network.reads_prompts:
            if self._prompts is None:
                raise ArgumentError("prompts", None, "give the file of rca prompts, whose texts the first head reads")
            classes, background = self._prompts.classes, self._prompts.background
            self.network.start_prompts(classes.to(self.device), background.to(self.device))
            _info("features: the first head reads %d texts, %d of the background", len(classes), len(background))
            return
        processes, rank = world_size_and_rank()
        means, tags, rows = [torch.zeros(0, self.embedding_dim)], [torch.zeros(0, self.hparams["num_classes"])], []
        for row in range(rank, len(images), processes):
            sample = images[row]
            largest = max(sample["features"], key=lambda of_scale: of_scale.shape[2] * of_scale.shape[3])
            means.append(largest[:, : self.embedding_dim].float().mean(dim=(0, 2, 3))[None])  # (V, D, h, w) -> (1, D)
            tags.append(sample["tags"][None])
            rows.append(row)
        gathered = gather_uneven(
            torch.cat(means).to(self.device),
            torch.cat(tags).to(self.device),
            torch.tensor(rows, dtype=torch.int64, device=self.device),
        )
        order = torch.argsort(gathered[2])
        weight, bias = fit_head(gathered[0][order].cpu(), gathered[1][order].cpu(), penalty=penalty)
        weight, bias = weight.to(self.device), bias.to(self.device)
        broadcast_from_first(weight, bias)
        self.network.start_head(weight, bias)
        _info("features: the first head is fitted to %d photographs", len(order))

    def _trains_projection(self) -> bool:
        contrasts = self.hparams["contrast"] and self.hparams["alpha"] > 0
        return contrasts or self.network.refined_head is not None

    def on_validation_start(self) -> None:
        """Warns before `validate` of classes without a prototype."""
        if self.trainer.state.fn != "fit":
            self._warn_of_missing_prototypes()

    def on_predict_start(self) -> None:
        """Warns of classes without a prototype."""
        self._warn_of_missing_prototypes()

    on_test_start = on_predict_start

    @rank_zero_only
    def _warn_of_missing_prototypes(self) -> None:
        prototyped = self.network.has_prototype
        if self.hparams["final_map"] != "attention" or prototyped is None or bool(prototyped.all()):
            return
        missing = [name for name, has in zip(self.class_names, prototyped.tolist(), strict=True) if not has]
        logger.warning(
            "prototypes: %s; maps without prototypes are those of the first CAM head, which cover less of an object. "
            "Remedy: train for more epochs than warmup_epochs=%d, on images with these tags",
            "no class has any" if len(missing) == len(prototyped) else f"none for {first_few(missing)}",
            self.hparams["warmup_epochs"],
        )

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Computes one step of RCA; numbers are the equations of docs/method.md.

        Returns:
            `loss`; `regions` that `RegionMemoryCallback` enqueues, (4), and clusters, (6); `image_id`; and `maps`
            `(B, L, h, w)` and `probabilities` `(B, L)` for `AttentionAccumulation`.
        """
        if self.is_frozen:
            return self._round_step(batch)
        check_cells(self.network, batch["image"], self.network.backbone.output_stride)
        self.before_step()
        return self.learn_from_maps(batch, self.network(batch["image"], batch["tags"]))  # (1), (7), (8)

    def learn_from_maps(self, batch: Batch, maps: ActivationMaps, added: AddedLoss | None = None) -> dict[str, Any]:
        """Computes the losses and regions of maps, which `training_step` returns.

        Args:
            batch: what the maps are of.
            maps: what the network computed of it.
            added: one more loss of the batch.
        """
        tags = batch["tags"]
        cam = self._region_cam(maps)
        regions = self._extract_regions(maps, cam, tags) if self.needs_memory else None  # (2), (3)
        contrasts = self.hparams["contrast"] and self.current_epoch >= self.hparams["warmup_epochs"]
        memory = self.memory if contrasts else None
        losses = self.loss(maps, tags, regions, memory, self.network.aggregation)  # (5), (9)
        probabilities = image_logits(maps.coarse.detach()).sigmoid()
        remembered = None if regions is None else self._select_for_memory(regions, maps, cam, tags, probabilities)
        pooled = {} if remembered is None else {"regions": remembered.embeddings}
        if added is not None:
            losses = added.to(losses)
            pooled |= added.watched
        if self.should_skip(batch, {**pooled, "loss": losses.total}, self._evidence(maps, losses)):
            nothing = None if remembered is None else remembered.none()
            return {"loss": self.no_loss(), "regions": nothing, "image_id": batch["image_id"], "skipped": True}
        self.log_dict({f"train/loss_{name}": value for name, value in losses.parts.items()}, batch_size=len(tags))
        self.log("train/loss", losses.value, prog_bar=True, batch_size=len(tags))
        # Detached, for embeddings and graph would live on until the next step has been computed.
        final = maps.final_cam(self.hparams["final_map"]).detach()
        kept = {"image_id": batch["image_id"], "maps": final, "probabilities": probabilities}
        return {"loss": losses.total, "regions": remembered, **kept}

    @torch.no_grad()
    def _round_step(self, batch: Batch) -> dict[str, Any]:
        """Selects the regions of photographs from their cached features: (2), (3) and (7) without a loss.

        Returns:
            As `training_step`, without maps; and `labels`, of each photograph its id and the labels of all its cells,
            which `RegionMemoryCallback` compares with those of the round before.
        """
        weight = self.network.coarse_head.weight
        empty = torch.zeros(0, dtype=torch.int64, device=weight.device)
        regions = [Regions(weight.new_zeros(0, self.embedding_dim), empty, empty)]
        contrasts = self.contrasts_prototypes and self._reads_regions_from_attention()  # the first round has none
        cells = [regions[0].none()] if contrasts else None
        threshold = self.threshold_of_regions("background_threshold")
        labels, seeds = [], batch.get("seeds")
        for image, (features, tags) in enumerate(zip(batch["features"], batch["tags"], strict=True)):
            of_views = []
            for of_scale in features:  # (V, D, h, w)
                rows = tags.expand(len(of_scale), -1)
                maps = self.network.read([of_scale.to(weight)], rows)
                cam = self._region_cam(maps)
                if seeds is not None and seeds[image] is not None:
                    cam = _with_seeds(cam, seeds[image])
                probabilities = image_logits(maps.coarse).sigmoid()
                own = self._select_for_memory(self._extract_regions(maps, cam, rows), maps, cam, rows, probabilities)
                own.images = torch.full_like(own.images, image)  # of all views
                regions.append(own)
                if cells is not None:
                    chosen = self._select_cells(maps, cam, rows, probabilities)
                    chosen.images = torch.full_like(chosen.images, image)
                    cells.append(chosen)
                of_views.append(cell_labels(cam, rows, threshold).flatten())
            if of_views:
                labels.append((batch["image_id"][image], torch.cat(of_views).cpu()))
        loss = torch.zeros((), device=weight.device, requires_grad=True)  # Lightning calls backward
        found = {"regions": functools.reduce(Regions.cat, regions)}
        if cells is not None:
            found["cells"] = functools.reduce(Regions.cat, cells)
        return {"loss": loss, **found, "image_id": batch["image_id"], "labels": labels}

    def _select_cells(self, maps: ActivationMaps, cam: Tensor, tags: Tensor, probabilities: Tensor) -> Regions:
        seen = probabilities >= self.hparams["confidence"]
        return select_cells(
            maps.embeddings,
            cam,
            tags * seen,
            threshold=self.threshold_of_regions("region_threshold"),
            rule=self.hparams["region_rule"],
            background_threshold=self.threshold_of_regions("background_threshold"),
            count=self.cells_per_class,
        )

    @property
    def cuts_from_cam(self) -> bool:
        """Whether regions are cut from the CAM now, whose place the maps of `seed_dir` take, or from the attention."""
        return not self._reads_regions_from_attention()

    def _reads_regions_from_attention(self) -> bool:
        return self.hparams["region_map"] == "attention" and self.network.has_prototypes

    @property
    def propagation_of_regions(self) -> int:
        """How often the maps that regions are cut from are propagated."""
        propagates = self.is_frozen and self._reads_regions_from_attention()
        return int(self.hparams["propagation_steps"]) if propagates else 0

    def _region_cam(self, maps: ActivationMaps) -> Tensor:
        """Maps that regions are cut from."""
        cam, steps = maps.region_cam(self.hparams["region_map"]), self.propagation_of_regions
        if steps == 0:
            return cam
        return maps.propagate(cam, power=self.hparams["propagation_power"], steps=steps)

    @check_arguments
    def threshold_of_regions(self, name: Literal["region_threshold", "background_threshold"]) -> float:
        """The named threshold, of the maps that regions are cut from now."""
        of_cam, of_attention = float(self.hparams[name]), float(self.hparams[f"attention_{name}"])
        # Equal by default where the backbone is trained: nothing has to be asked of the device then.
        return of_attention if of_cam != of_attention and self._reads_regions_from_attention() else of_cam

    def _extract_regions(self, maps: ActivationMaps, cam: Tensor, tags: Tensor) -> Regions:
        threshold, rule = self.threshold_of_regions("region_threshold"), self.hparams["region_rule"]
        return extract_regions(maps.embeddings, cam, tags, threshold=threshold, rule=rule)

    def _select_for_memory(
        self, regions: Regions, maps: ActivationMaps, cam: Tensor, tags: Tensor, probabilities: Tensor
    ) -> Regions:
        background = (
            self.threshold_of_regions("background_threshold") if self.hparams["background_prototypes"] else None
        )
        return select_for_memory(
            regions,
            maps.embeddings,
            cam,
            tags,
            probabilities,
            confidence=self.hparams["confidence"],
            background_threshold=background,
        )

    def _evidence(self, maps: ActivationMaps, losses: Losses) -> dict[str, Tensor]:
        memory = {} if self.memory is None else {"memory": self.memory.embeddings}
        computed = {"features (maps of the first head)": maps.coarse, "embeddings": maps.embeddings}
        refined = {} if maps.refined is None else {"maps of the second head": maps.refined}
        return {**memory, **computed, **refined, **{f"loss_{name}": value for name, value in losses.parts.items()}}


def _with_seeds(cam: Tensor, seeds: Seeds) -> Tensor:
    """Maps `(V, L, h, w)` of a photograph, and of its mirror image if V is 2, with those of seeds in their place."""
    on_grid = seeds.on_grid((cam.shape[2], cam.shape[3])).to(cam)
    seeded = cam.clone()
    seeded[:, seeds.classes.to(cam.device)] = torch.stack([on_grid, on_grid.flip(2)][: len(cam)])
    return seeded
