"""Networks of the timm package as feature extractors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.modules.batchnorm import _BatchNorm

from rca_lightning.backbones.base import Backbone
from rca_lightning.constants import IMAGENET_MEAN, IMAGENET_STD
from rca_lightning.errors import ArgumentError, require_extra

if TYPE_CHECKING:
    from typing_extensions import Self

PROBE_CELLS = 4


class TimmBackbone(Backbone):
    """A model of timm (https://github.com/huggingface/pytorch-image-models) without its classifier.

    Convolutional networks and vision transformers serve, as far as timm can run them at free image sizes. Of a
    transformer the patch tokens after the last normalisation are the map, class and register tokens are dropped.
    A model that was trained with another normalisation than ImageNet's gets that one, computed from the images given.
    Images are padded with zeros (the mean colour) at the right and at the bottom to a multiple of the output stride.
    Weights are never downloaded by timm itself; keys are those of the timm model, its classifier apart.

    Args:
        model: name of the model, as `timm.list_models()` has it.
        output_stride: pixels per cell along each side. Networks that cannot be dilated accept only their own one.
            A vision transformer always has its patch size, whatever is asked for.

    Raises:
        MissingExtraError: without timm.
        ArgumentError: if timm does not know the model, it cannot be run at free sizes, or has another output stride.
    """

    _scale: Tensor
    _shift: Tensor

    def __init__(self, model: str, *, output_stride: Literal[8, 16, 32] = 16) -> None:
        super().__init__()
        timm = require_extra("timm", extra="timm", needed_for=f"the backbone 'timm:{model}'")
        if not timm.is_model(model):
            raise ArgumentError("backbone", f"timm:{model}", "timm has no model of this name; see timm.list_models()")
        self.model: Any = _create(timm, model, output_stride)
        self._activating = [name for name, layer in self.model.named_modules() if _activates(layer)]
        self._match_normalisation()
        self._prefix_tokens: int | None = getattr(self.model, "num_prefix_tokens", None)
        self.output_stride = output_stride if self._prefix_tokens is None else _patch_size(self.model, model)
        self.stage_channels, self.stage_strides = [self._probe(model)], [self.output_stride]

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`: the last stage alone."""
        stride = self.output_stride
        height, width = images.shape[-2:]
        images = pad(images, (0, -width % stride, 0, -height % stride))
        if self._rescale:
            images = images * self._scale + self._shift
        features: Tensor = self.model.forward_features(images)
        if self._prefix_tokens is None:
            return [features]
        patches = features[:, self._prefix_tokens :]
        rows, columns = images.shape[-2] // stride, images.shape[-1] // stride
        # (B, HW, D) -> (B, D, H, W)
        return [patches.transpose(1, 2).reshape(len(images), -1, rows, columns)]

    def train(self, mode: bool = True) -> Self:
        """Set the training mode.

        Raises:
            ArgumentError: if `sync_batchnorm` of the Trainer has taken away activations that layers of timm hold.
        """
        # Still there, but torch has made layers of it that do not call them.
        if any(type(self.model.get_submodule(name)) is nn.SyncBatchNorm for name in self._activating):
            remedy = "leave it out: the layers of this timm model hold activations too, which it takes away"
            raise ArgumentError("sync_batchnorm", True, f"{remedy}; frozen_batchnorm=True has no need of it")
        return super().train(mode)

    def stages(self) -> list[list[nn.Module]]:
        """None: stages are named differently in every model of timm."""
        return []

    def weights_target(self) -> nn.Module:
        """The model of timm."""
        return cast(nn.Module, self.model)

    def _match_normalisation(self) -> None:
        """Prepare the step from ImageNet's mean and standard deviation to those the model was trained with."""
        trained_with = getattr(self.model, "pretrained_cfg", None) or {}
        mean, std = trained_with.get("mean", IMAGENET_MEAN), trained_with.get("std", IMAGENET_STD)
        given, wanted = torch.tensor([IMAGENET_MEAN, IMAGENET_STD]), torch.tensor([mean, std])
        # Of numbers: a network that is only tried is built of tensors without any.
        self._rescale = (tuple(mean), tuple(std)) != (tuple(IMAGENET_MEAN), tuple(IMAGENET_STD))
        self.register_buffer("_scale", (given[1] / wanted[1]).view(3, 1, 1), persistent=False)
        self.register_buffer("_shift", ((given[0] - wanted[0]) / wanted[1]).view(3, 1, 1), persistent=False)

    def _probe(self, name: str) -> int:
        """Run a small image through: checks the stride, tells the width, and freezes what has no part in it.

        Layers that only a classifier would use still stand in some models; they would make
        `DistributedDataParallel` wait for their gradients.
        """
        side = PROBE_CELLS * math.lcm(self.output_stride, 32 if self._prefix_tokens is None else 1)
        was_training = self.training
        self.eval()
        try:
            with torch.enable_grad():
                [features] = self(torch.zeros(1, 3, side, side))
        except Exception as error:  # whatever a foreign model raises, it does not serve
            raise ArgumentError(
                "backbone", f"timm:{name}", f"timm cannot run it on an image of {side} pixels ({error}); take another"
            ) from error
        self._check_map(features, side, name)
        parameters = list(self.model.parameters())
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        gradients = torch.autograd.grad(features.sum(), trained, allow_unused=True)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)
        self.train(was_training)
        return int(features.shape[1])

    def _check_map(self, features: Tensor, side: int, name: str) -> None:
        if features.ndim != 4 or features.shape[2] != features.shape[3]:
            raise ArgumentError("backbone", f"timm:{name}", "its features are no map (B, D, H, W); take another")
        stride = side // features.shape[2]
        if stride != self.output_stride:
            remedy = f"timm:{name} has the output stride {stride} whatever it is asked for; give {stride}"
            raise ArgumentError("output_stride", self.output_stride, remedy)


def _activates(layer: nn.Module) -> bool:
    """Whether a batch normalisation holds an activation as well (`BatchNormAct2d` of timm)."""
    return isinstance(layer, _BatchNorm) and hasattr(layer, "act")


def _create(timm: Any, name: str, output_stride: int) -> Any:
    """The model with the options it knows: free image sizes for transformers, dilation for the rest."""
    model = _create_with(timm, name, "dynamic_img_size", True)
    if model is None:
        model = _create_with(timm, name, "output_stride", output_stride)
    return model if model is not None else timm.create_model(name, pretrained=False, num_classes=0)


def _create_with(timm: Any, name: str, option: str, value: Any) -> Any:
    """The model with one option, None if the model does not know the option."""
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, **{option: value})
    except TypeError as error:
        if option in str(error):
            return None
        raise


def _patch_size(model: Any, name: str) -> int:
    patch: tuple[int, int] = model.patch_embed.patch_size
    rows, columns = patch
    if rows != columns:
        raise ArgumentError("backbone", f"timm:{name}", f"its patches are {rows} x {columns}, not square; take another")
    return rows
