"""Validation and prediction of seeds, for a module whose network gives class maps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from rca_lightning.arguments import check_arguments
from rca_lightning.data.dataset import TaggedImages
from rca_lightning.data.sample import Batch, collate_read
from rca_lightning.distributed import world_size_and_rank
from rca_lightning.evaluation.auto_threshold import Automatic
from rca_lightning.evaluation.map_kinds import MapKind, map_kind, thresholds_of
from rca_lightning.evaluation.protocol import TagsOnRecord, ThresholdSource, tag_threshold_used
from rca_lightning.io.progress import show_progress
from rca_lightning.modules.data_checks import DataChecks
from rca_lightning.modules.frozen_backbone import FrozenBackboneMixin
from rca_lightning.modules.training_guards import MetricResetMixin
from rca_lightning.rca.inference import ClassMaps, infer_class_maps, read_class_maps
from rca_lightning.rca.network import FinalMap, RCANetwork
from rca_lightning.rca.tag_calibration import UNCALIBRATED_THRESHOLD, TagCalibration

SAMPLE = 200
"""Photographs whose maps choose the background threshold "auto", at most."""


class SeedPrediction(MetricResetMixin, DataChecks, FrozenBackboneMixin):
    """Computes class maps of photographs or of their cached features, scores them as seeds, and predicts them.

    A module that derives from it names `DataChecks` last among its bases: that loads checkpoints, after all others.
    Its `hparams` have `scales`, `flip`, `max_side`, `final_map`, `eval_tags`, `predict_tags`, `tag_threshold`,
    `seed_threshold`, `propagation_steps` and `propagation_power`; see `RCAModule`.

    Attributes:
        network: gives the maps.
        evaluation: an `Evaluation`, the scores of the split.
        tag_calibration: of predicted tags.
        keeps_features: whether class maps come with the features that a refinement walks over.
    """

    network: RCANetwork
    evaluation: Any
    tag_calibration: TagCalibration
    keeps_features: bool = False

    @property
    def contrasts_prototypes(self) -> bool:
        """Whether contrast moves the prototypes, and not the embeddings."""
        return self.is_frozen and bool(self.hparams["contrast"])

    @property
    def tag_threshold(self) -> float | Tensor:
        """Image probability above which a tag is predicted: one for all classes if it was given, else `(L,)`."""
        given = self.hparams["tag_threshold"]
        return self.tag_calibration.threshold if given is None else float(given)

    @property
    def reads_attention(self) -> bool:
        """Whether seeds are read from the attention of at least one class."""
        prototyped = self.network.has_prototype
        return self.hparams["final_map"] == "attention" and prototyped is not None and bool(prototyped.any())

    def threshold_without_masks(self) -> tuple[float | Automatic, ThresholdSource]:
        """Background threshold of the score, which no mask had a part in, and how it was chosen.

        It is `seed_threshold` if that was given, else what pseudo labels of this kind of maps are drawn with.
        """
        given = self.hparams["seed_threshold"]
        if given == "auto":
            return "auto", "auto"
        if given is not None:
            return float(given), "given"
        return thresholds_of(self.thresholds_kind).background, "default"

    @property
    def thresholds_kind(self) -> MapKind:
        """The kind of maps whose default thresholds suit the seeds."""
        return map_kind(
            attention=self.reads_attention,
            contrasted=self.contrasts_prototypes,
            propagated=self.hparams["propagation_steps"] > 0,
        )

    @property
    def maps_in_words(self) -> str:
        """What the class maps are, in words: "CAM", "refined CAM", "RCA attention", ..., "propagated" if they are."""
        final_map = self.hparams["final_map"]
        if self.reads_attention:
            kind = "RCA attention"
        elif final_map == "coarse" or self.network.refined_head is None:
            kind = "CAM"
        else:
            kind = "mean of CAM and refined CAM" if final_map == "mean" else "refined CAM"
        return f"propagated {kind}" if self.hparams["propagation_steps"] else kind

    @check_arguments
    def protocol_of_maps(self, tags: TagsOnRecord | None) -> dict[str, Any]:
        """What a protocol says of class maps and predicted tags, as arguments of `make_protocol`.

        Args:
            tags: whose tags were used.
        """
        threshold = tag_threshold_used(
            tags,
            given=self.hparams["tag_threshold"],
            calibrated=bool(self.tag_calibration.fitted),
            default=UNCALIBRATED_THRESHOLD,
        )
        return {"map_kind": self.maps_in_words, "tag_threshold": threshold}

    @check_arguments
    def seeds(self, images: Tensor, tags: Tensor | None = None, final_map: FinalMap | None = None) -> list[ClassMaps]:
        """Class maps of photographs at their own size, with this module's scales and flip; see `infer_class_maps`."""
        return infer_class_maps(
            self.network,
            images,
            tags,
            scales=self.hparams["scales"],
            flip=self.hparams["flip"],
            max_side=self.hparams["max_side"],
            **self._reading(final_map),
        )

    def _reading(self, final_map: FinalMap | None = None) -> dict[str, Any]:
        """How maps are read, whether from photographs or from cached features."""
        names = ("propagation_steps", "propagation_power")
        chosen = {
            "final_map": final_map or self.hparams["final_map"],
            "keep_features": self.keeps_features,
            "tag_threshold": self.tag_threshold,
            "calibration": self.tag_calibration,
            "tags_by_attention": self.contrasts_prototypes,
        }
        return {**chosen, **{name: self.hparams[name] for name in names}}

    def _batch_seeds(self, batch: Batch, tags: Tensor | None) -> list[ClassMaps]:
        """Class maps of a batch, from its cached features where it has them."""
        if "features" not in batch:
            return self.seeds(batch["image"], tags)
        seeds = []
        for index, features in enumerate(batch["features"]):
            seeds += read_class_maps(
                self.network,
                _views(features, self.network.coarse_head.weight),
                None if tags is None else tags[index : index + 1],
                size=(batch["image"].shape[2], batch["image"].shape[3]),
                **self._reading(),
            )
        return seeds

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Scores the class maps of images that have a mask."""
        if "mask" not in batch:
            return  # nothing to score, or none of its images could be read
        tags = batch["tags"] if self.hparams["eval_tags"] == "image" else None
        seeds = self._batch_seeds(batch, tags)
        self.evaluation.update(seeds, batch["tags"], batch["mask"], batch["image_id"])

    def on_validation_epoch_end(self) -> None:
        """Log the score of the split."""
        self._log_scores("val")

    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        """Log the score of the split."""
        self._log_scores("test")

    def _log_scores(self, split: Literal["val", "test"]) -> None:
        threshold, source = self.threshold_without_masks()
        result = self.evaluation.finish(
            self.tag_threshold, threshold=threshold, threshold_source=source, kind=self.thresholds_kind
        )
        if result is not None:
            self.log_dict(result.logged(self.hparams["eval_tags"], prefix=split), sync_dist=False)
        self.tell_scores(result)

    @torch.no_grad()
    def sample_predictions(self, images: TaggedImages) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Predicts some photographs ahead of the others, evenly spread over all; each rank its share of them.

        Args:
            images: all photographs.

        Yields:
            What `predict_step` gives, and the photograph `(3, H, W)`. One that cannot be read is passed over.
        """
        size, rank = world_size_and_rank()
        rows = evenly_spread(len(images))[rank::size]
        for row in show_progress(rows, what="threshold", total=len(rows)):
            batch = collate_read([images[row]], num_classes=images.num_classes)
            batch.pop("unread", None)  # noted when it is predicted
            if batch["image_id"]:
                batch = self.transfer_batch_to_device(batch, self.device, 0)
                yield self.predict_step(batch, 0)[0], batch["image"][0]

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """For each image `image_id` and `seeds`, on the device that computed them."""
        if not batch["image_id"]:
            return []  # none of its images could be read
        seeds = self._batch_seeds(batch, batch["tags"] if self.hparams["predict_tags"] == "image" else None)
        return [
            {"image_id": image_id, "seeds": of_image}
            for image_id, of_image in zip(batch["image_id"], seeds, strict=True)
        ]


def evenly_spread(total: int, most: int = SAMPLE) -> list[int]:
    """Row numbers of at most `most` photographs, evenly spread over all.

    Example:
        >>> evenly_spread(9, most=3), evenly_spread(2)
        ([0, 3, 6], [0, 1])
    """
    count = min(most, total)
    return [place * total // count for place in range(count)]


def _views(features: Iterable[Tensor], weight: Tensor) -> Iterator[tuple[list[Tensor], bool]]:
    """Cached features `(V, D, h, w)` of each scale as views for this weight, the largest first, each size once."""
    by_size = {tuple(of_scale.shape[2:]): of_scale for of_scale in features}
    for _, of_scale in sorted(by_size.items(), reverse=True):
        for mirrored, view in enumerate(of_scale.to(weight)):
            yield [view[None]], bool(mirrored)
