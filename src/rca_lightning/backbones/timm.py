"""Networks of the timm package as feature extractors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rca_lightning.arguments import check_arguments
from rca_lightning.backbones.base import Backbone, enlarge_to_whole_cells
from rca_lightning.constants import IMAGENET_MEAN, IMAGENET_STD
from rca_lightning.errors import ArgumentError, require_extra

if TYPE_CHECKING:
    from typing_extensions import Self

PROBE_CELLS = 4


class TimmBackbone(Backbone):
    """A model of timm (https://github.com/huggingface/pytorch-image-models) without its classifier.

    Convolutional networks and vision transformers serve, as far as timm can run them at free image sizes. A
    convolutional network gives its stages of stride 4 and above. Of a transformer the patch tokens after the last
    normalisation are the only map; class and register tokens are dropped.
    A model that was trained with another normalisation than ImageNet's gets that one, computed from the images given.
    Images are enlarged to a multiple of the output stride.
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

    @check_arguments
    def __init__(self, model: str, *, output_stride: Literal[8, 16, 32] = 16) -> None:
        super().__init__()
        timm = require_extra("timm", extra="timm", needed_for=f"the backbone 'timm:{model}'")
        if not timm.is_model(model):
            raise ArgumentError("backbone", f"timm:{model}", "timm has no model of this name; see timm.list_models()")
        self.model: Any = _create(timm, model, output_stride)
        self._activating = [name for name, layer in self.model.named_modules() if _activates(layer)]
        self._match_normalisation()
        self._transformer = hasattr(self.model, "num_prefix_tokens")
        self._inner = [] if self._transformer else _inner_stages(self.model)
        self.output_stride = _patch_size(self.model, model) if self._transformer else output_stride
        self._probe(model)

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`: the stages of stride 4 and above, of a vision transformer the last alone."""
        images = enlarge_to_whole_cells(images, self.output_stride)
        if self._rescale:
            images = images * self._scale + self._shift
        return self._maps(images)

    def _maps(self, images: Tensor) -> list[Tensor]:
        """The maps of images whose sides the output stride divides."""
        if self._transformer:  # patch tokens after the last normalisation, as maps
            maps = self.model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
            return cast(list[Tensor], maps)
        if not self._inner:
            return [self.model.forward_features(images)]
        features, inner = self.model.forward_intermediates(images, indices=self._inner)
        return [*inner, features]

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

    def _probe(self, name: str) -> None:
        """Run a small image through: sets channels and strides of the stages, and freezes what has no part in them.

        `feature_info` of timm tells neither whether a model runs at free sizes nor which layers only its classifier
        uses; these would make `DistributedDataParallel` wait for their gradients.
        """
        side = PROBE_CELLS * math.lcm(self.output_stride, 1 if self._transformer else 32)
        was_training = self.training
        self.eval()
        try:
            with torch.enable_grad():
                maps = self._maps(torch.zeros(1, 3, side, side))
                total = maps[-1].sum()
        except Exception as error:  # whatever a foreign model raises, it does not serve
            raise ArgumentError(
                "backbone", f"timm:{name}", f"timm cannot run it on an image of {side} pixels ({error}); take another"
            ) from error
        if any(stage.ndim != 4 or stage.shape[2] != stage.shape[3] for stage in maps):
            raise ArgumentError("backbone", f"timm:{name}", "its features are no map (B, D, H, W); take another")
        self.stage_channels = [stage.shape[1] for stage in maps]
        self.stage_strides = [side // stage.shape[2] for stage in maps]
        if self.stage_strides[-1] != self.output_stride:
            stride = self.stage_strides[-1]
            remedy = f"timm:{name} has the output stride {stride} whatever it is asked for; give {stride}"
            raise ArgumentError("output_stride", self.output_stride, remedy)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(total, trained, allow_unused=True)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)
        self.train(was_training)


def _inner_stages(model: Any) -> list[int]:
    """Positions in timm's list of stages of those before the last, the fine ones below stride 4 left out."""
    if not hasattr(model, "forward_intermediates"):
        return []
    strides = [stage["reduction"] for stage in model.feature_info]
    return [index for index, stride in enumerate(strides[:-1]) if stride >= 4]


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
