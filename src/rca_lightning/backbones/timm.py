"""Networks of the timm package as feature extractors."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rca_lightning.arguments import check_arguments
from rca_lightning.backbones.attention import attention_layers, normalise_affinity, run_and_read
from rca_lightning.backbones.base import ATTENTION_LAYERS, AffinityKind, Backbone, enlarge_to_whole_cells
from rca_lightning.constants import IMAGENET_MEAN, IMAGENET_STD
from rca_lightning.errors import ArgumentError, require_extra

if TYPE_CHECKING:
    from typing_extensions import Self

PROBE_CELLS = 4


class TimmBackbone(Backbone):
    """A model of timm (https://github.com/huggingface/pytorch-image-models) without its classifier.

    Convolutional networks and vision transformers serve, as far as timm can run them at free image sizes. A
    convolutional network, or one of windows such as Swin, gives its stages of stride 4 and above. A transformer gives
    the patch tokens after each of its blocks, all of one size, each under the last normalisation; class and register
    tokens are dropped, and position embeddings are resampled to the grid of the image.
    A model that was trained with another normalisation than ImageNet's gets that one, computed from the images given.
    Images are enlarged to a multiple of the output stride.
    Weights are never downloaded by timm itself; keys are those of the timm model, its classifier apart, or those of the
    publisher as far as timm converts them: DINO, DINOv2 and DINOv3, CLIP of OpenAI, DeiT, ConvNeXt, Swin.

    Stages to freeze: first what comes before the first block or stage of `feature_info` of timm, patch and position
    embedding or the stem; then each of these with what leads to it; the last with all that follows.

    Args:
        model: name of the model, as `timm.list_models()` has it.
        output_stride: pixels per cell along each side. Networks that cannot be dilated accept only their own one.
            A vision transformer always has its patch size, whatever is asked for.

    Raises:
        MissingExtraError: without timm.
        ArgumentError: if timm does not know the model, it cannot be run at free sizes, or has another output stride.
    """

    _PREFIX: ClassVar[str] = "timm:"  # of its name as a backbone
    _KEEPS_HEAD: ClassVar[bool] = False
    _scale: Tensor
    _shift: Tensor

    @check_arguments
    def __init__(self, model: str, *, output_stride: Literal[8, 16, 32] = 16) -> None:
        super().__init__()
        self._name = f"{self._PREFIX}{model}"
        timm = require_extra("timm", extra="timm", needed_for=f"the backbone '{self._name}'")
        if not timm.is_model(model):
            raise ArgumentError("backbone", self._name, "timm has no model of this name; see timm.list_models()")
        self.model: Any = _create(timm, model, output_stride, {} if self._KEEPS_HEAD else {"num_classes": 0})
        self._check_model(model)
        self._activating = [name for name, layer in self.model.named_modules() if _activates(layer)]
        self._match_normalisation()
        self._transformer = hasattr(self.model, "num_prefix_tokens")
        # Of a transformer the last map alone, as in checkpoints from before its blocks were stages.
        self.embedding_stages = 1 if self._transformer else 2
        self._inner = [] if self._transformer else _inner_stages(self.model)
        self.output_stride = _patch_size(self.model, self._name) if self._transformer else output_stride
        self._probe()

    def _check_model(self, model: str) -> None:
        """Refuses a model that this kind of backbone cannot read."""

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`: the stages of stride 4 and above, of a vision transformer every block."""
        return self._maps(self._prepared(images))

    def last_maps(self, images: Tensor, count: int) -> list[Tensor]:
        """See `Backbone.last_maps`."""
        return self._maps(self._prepared(images), count)

    def check_affinity(self) -> None:
        """See `Backbone.check_affinity`."""
        attention_layers(self.model, self._name)

    @check_arguments
    def affinity(
        self, images: Tensor, *, kind: AffinityKind = "attention", layers: int | None = None, sinkhorn: int = 0
    ) -> Tensor:
        """See `Backbone.affinity`."""
        depth = len(attention_layers(self.model, self._name))
        if layers is not None and not 1 <= layers <= depth:
            raise ArgumentError("layers", layers, f"{self._name} offers 1 to {depth}")
        if sinkhorn < 0:
            raise ArgumentError("sinkhorn", sinkhorn, "give 0 (not at all) or more")
        with torch.no_grad():
            _, read = self._run_and_read(images, 1, kind, layers)
            if kind == "attention":
                return normalise_affinity(read, sinkhorn=sinkhorn)
            directions = F.normalize(read, dim=2)
            return (directions @ directions.transpose(1, 2)).clamp_(min=0)

    @check_arguments
    def maps_and_relation(self, images: Tensor, count: int, kind: AffinityKind) -> tuple[list[Tensor], Tensor]:
        """See `Backbone.maps_and_relation`."""
        maps, read = self._run_and_read(images, count, kind, None)
        if kind == "attention":
            read = normalise_affinity(read).mul_(read.shape[2])
        batch, _, height, width = maps[-1].shape
        return maps, read.transpose(1, 2).reshape(batch, -1, height, width)  # (B, HW, K) -> (B, K, h, w)

    def _run_and_read(
        self, images: Tensor, count: int, kind: AffinityKind, layers: int | None
    ) -> tuple[list[Tensor], Tensor]:
        """The last maps, and keys of the last layer or attention of the last layers; see `run_and_read`."""
        attention = attention_layers(self.model, self._name)
        read = attention[-1 if kind == "keys" else -(layers or ATTENTION_LAYERS) :]
        prefix = self.model.num_prefix_tokens
        return run_and_read(lambda: self.last_maps(images, count), read, prefix, keys=kind == "keys")

    def _prepared(self, images: Tensor) -> Tensor:
        """Images as the model expects them: whole cells, in its own normalisation."""
        images = enlarge_to_whole_cells(images, self.output_stride)
        return images * self._scale + self._shift if self._rescale else images

    def _maps(self, images: Tensor, count: int | None = None) -> list[Tensor]:
        """The maps of images whose sides the output stride divides, or the last of them."""
        if self._transformer:  # patch tokens after the last normalisation, as maps
            indices = len(self.model.feature_info) if count is None else count
            maps = self.model.forward_intermediates(images, indices=indices, norm=True, intermediates_only=True)
            return cast(list[Tensor], maps)
        if not self._inner:
            return [self._as_map(self.model.forward_features(images))]
        features, inner = self.model.forward_intermediates(images, indices=self._inner)
        maps = [*inner, self._as_map(features)]
        return maps if count is None else maps[-count:]

    def _as_map(self, features: Tensor) -> Tensor:
        """Features `(B, D, H, W)`; networks of windows have the channels last."""
        return features.permute(0, 3, 1, 2) if getattr(self.model, "output_fmt", "NCHW") == "NHWC" else features

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

    def stages(self) -> list[list[nn.Module | nn.Parameter]]:
        """See the class; none for a model that does not say which modules give its features."""
        names = [stage["module"] for stage in getattr(self.model, "feature_info", []) if "module" in stage]
        return _stages_between(self.model, names) if names else []

    def convert_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the tensors of the publisher of a model as timm does; see `Backbone.convert_weights`."""
        convert = getattr(sys.modules[type(self.model).__module__], "checkpoint_filter_fn", None)
        if convert is None:
            return state
        knows = inspect.signature(convert).parameters
        return dict(convert(state, self.model, **{"adapt_layer_scale": True} if "adapt_layer_scale" in knows else {}))

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

    def _probe(self) -> None:
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
            remedy = f"timm cannot run it on an image of {side} pixels ({error}); take another"
            raise ArgumentError("backbone", self._name, remedy) from error
        if any(stage.ndim != 4 or stage.shape[2] != stage.shape[3] for stage in maps):
            raise ArgumentError("backbone", self._name, "its features are no map (B, D, H, W); take another")
        self.stage_channels = [stage.shape[1] for stage in maps]
        self.stage_strides = [side // stage.shape[2] for stage in maps]
        if self.stage_strides[-1] != self.output_stride:
            stride = self.stage_strides[-1]
            remedy = f"{self._name} has the output stride {stride} whatever it is asked for; give {stride}"
            raise ArgumentError("output_stride", self.output_stride, remedy)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(total, trained, allow_unused=True)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)
        self.train(was_training)


def _stages_between(model: nn.Module, names: Sequence[str]) -> list[list[nn.Module | nn.Parameter]]:
    """Parts of a model by stage: what comes before the first of the modules that are named, each of them, the rest."""
    found: list[list[nn.Module | nn.Parameter]] = [[] for _ in range(len(names) + 1)]
    done = 0

    def visit(module: nn.Module, path: str) -> None:
        nonlocal done
        found[0].extend(parameter for _, parameter in module.named_parameters(recurse=False))
        for name, child in module.named_children():
            full = f"{path}{name}"
            if full in names:
                done = names.index(full) + 1
                found[done].append(child)
            elif any(of.startswith(f"{full}.") for of in names):
                visit(child, f"{full}.")
            else:  # what lies between two stages leads to the second
                found[min(done + (done > 0), len(names))].append(child)

    visit(model, "")
    # A first module without parameters ends the stem, as the activation of a ResNet of timm; or it is the stem.
    if not found[0] or not any(_has_parameters(part) for part in found[1]):
        found[:2] = [found[0] + found[1]]
    return found


def _has_parameters(part: nn.Module | nn.Parameter) -> bool:
    return isinstance(part, nn.Parameter) or next(part.parameters(), None) is not None


def _inner_stages(model: Any) -> list[int]:
    """Positions in timm's list of stages of those before the last, the fine ones below stride 4 left out."""
    if not hasattr(model, "forward_intermediates"):
        return []
    strides = [stage["reduction"] for stage in model.feature_info]
    return [index for index, stride in enumerate(strides[:-1]) if stride >= 4]


def _activates(layer: nn.Module) -> bool:
    """Whether a batch normalisation holds an activation as well (`BatchNormAct2d` of timm)."""
    return isinstance(layer, _BatchNorm) and hasattr(layer, "act")


def _create(timm: Any, name: str, output_stride: int, head: dict[str, int]) -> Any:
    """The model with the option it knows: free image sizes for transformers and windows, dilation for the rest."""
    options = {"dynamic_img_size": True, "strict_img_size": False, "output_stride": output_stride}
    models = (_create_with(timm, name, {option: value, **head}) for option, value in options.items())
    model = next((model for model in models if model is not None), None)
    return model if model is not None else timm.create_model(name, pretrained=False, **head)


def _create_with(timm: Any, name: str, options: dict[str, Any]) -> Any:
    """The model with options, None if it does not know the first of them."""
    try:
        return timm.create_model(name, pretrained=False, **options)
    except TypeError as error:
        if next(iter(options)) in str(error):
            return None
        raise


def _patch_size(model: Any, name: str) -> int:
    patch: tuple[int, int] = model.patch_embed.patch_size
    rows, columns = patch
    if rows != columns:
        raise ArgumentError("backbone", name, f"its patches are {rows} x {columns}, not square; take another")
    return rows
