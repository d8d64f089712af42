"""What a module with a frozen backbone offers, so that `FeatureCacheCallback` can compute its features once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import lightning as L
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder, StochasticWeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from rca_lightning.backbones.base import Backbone
from rca_lightning.data.dataset import CachedFeatures
from rca_lightning.errors import ArgumentError
from rca_lightning.rca.projection import PCAProjection

_NEED_GRADIENTS = (LearningRateFinder, BatchSizeFinder, StochasticWeightAveraging)


class FeatureNetwork(Protocol):
    """A network that reads projected features of a backbone: one map, or several levels from fine to coarse."""

    @property
    def backbone(self) -> Backbone:
        """Computes what `features` returns."""

    @property
    def projections(self) -> Sequence[PCAProjection]:
        """One for each level."""

    @property
    def strides(self) -> Sequence[int]:
        """Pixels of the image per cell of each level."""

    def features(self, images: Tensor) -> list[Tensor]:
        """Levels `(B, C_k, h_k, w_k)` of images `(B, 3, H, W)`, before projection; further channels are kept as is."""

    def relation_channels(self, cells: int) -> int:
        """Channels behind those that a projection reads, of an image of so many cells of the coarsest level, about."""

    def feature_key(self) -> dict[str, object]:
        """What the features depend on besides the backbone, its weights and the projections: JSON values."""


class FrozenBackboneMixin(L.LightningModule):
    """A module that `FeatureCacheCallback` serves while its backbone is frozen.

    Its hyperparameters have `backbone_mode`, `backbone`, `output_stride`, `scales`, `flip` and `max_side`.

    Attributes:
        network: gives the features.
        trains_on_crops: whether it is trained on crops of features and masks, `data.crop_size` pixels wide, or on whole
            photographs.
        reads_masks: whether the masks of whole photographs come with their features.
        scores_features: whether validation, test and prediction read features, or photographs alone.
    """

    network: FeatureNetwork
    trains_on_crops: bool = False
    reads_masks: bool = False
    scores_features: bool = True

    @property
    def is_frozen(self) -> bool:
        """Whether the backbone is not trained."""
        return bool(self.hparams["backbone_mode"] == "frozen")

    @property
    def feature_arguments(self) -> Mapping[str, Any]:
        """Arguments by name, among them those that features depend on."""
        return self.hparams

    def start_from_features(self, images: CachedFeatures, *, penalty: float) -> None:
        """Starts the module where its projections were just learned; every rank calls it once, in `fit`.

        Args:
            images: the features of the photographs to train on.
            penalty: of a logistic regression on them; see `fit_head`.
        """


def prepare_without_gradients(trainer: L.Trainer, remedy: str) -> None:
    """Refuses callbacks that need gradients, and lets several processes train a module that has none.

    Args:
        trainer: in the setup of a fit.
        remedy: what to do about such a callback.

    Raises:
        ArgumentError: for a callback that needs gradients.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, _NEED_GRADIENTS):
            problem = "behind a frozen backbone nothing is trained by gradients"
            raise ArgumentError("trainer.callbacks", type(callback).__name__, f"{problem}; {remedy}")
    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy.configure_ddp = functools.partial(  # type: ignore[method-assign]
            _wrap_if_trained, trainer.strategy, trainer.strategy.configure_ddp
        )


def _wrap_if_trained(strategy: DDPStrategy, wrap: Callable[[], None]) -> None:
    """DistributedDataParallel refuses a module without a gradient to exchange."""
    if strategy.model is not None and any(weight.requires_grad for weight in strategy.model.parameters()):
        wrap()
