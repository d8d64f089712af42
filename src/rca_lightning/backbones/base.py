"""What every feature extractor of this library is: a network with a stride, a width and parts that can be frozen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rca_lightning.arguments import check_arguments
from rca_lightning.errors import ArgumentError

if TYPE_CHECKING:
    from typing_extensions import Self


PaddingMode = Literal["zeros", "replicate"]
CLASSIFIER_PREFIXES = ("fc.", "fc8.", "linear1000.", "classifier.", "head.", "head_dist.", "attn_pool.")
"""Names of the classifiers of published weights."""
AffinityKind = Literal["attention", "keys"]

ATTENTION_LAYERS = 8
"""Of a transformer, the last ones that an affinity is the mean of, as in CLIP-ES (Lin et al. 2023)."""


class Backbone(nn.Module, ABC):
    """A network without its classifier: images in, the map of every stage out.

    Attributes:
        stage_channels: channels of every map that `forward` returns, from fine to coarse.
        stage_strides: pixels of the image per cell of every map, along each side.
        output_stride: pixels of the image per cell of the last map, the features.
        embedding_stages: how many of the last maps embeddings are made of where nobody says.
        has_chosen_weights: whether weights were loaded, also into a larger network that holds this one, or random ones
            were asked for.
    """

    stage_channels: list[int]
    stage_strides: list[int]
    output_stride: int
    embedding_stages: int = 2  # the last one knows the class, the one before the parts

    def __init__(self) -> None:
        super().__init__()
        self.frozen_batchnorm = False
        self.frozen_stages = 0
        self.is_frozen = False
        self.has_chosen_weights = False
        self.register_load_state_dict_post_hook(_note_loading)  # type: ignore[no-untyped-call]

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Extract the features of every stage.

        Args:
            images: (B, 3, H, W), RGB, normalised with the mean and standard deviation of ImageNet.

        Returns:
            A map per stage after the stem; the last one, the features, is `(B, num_features, ceil(H / output_stride),
            ceil(W / output_stride))`. The cells of every map cover the whole image and nothing beyond it, so a map that
            is enlarged to the image lies on it.
        """

    @property
    def num_features(self) -> int:
        """Channels D of the last stage."""
        return self.stage_channels[-1]

    @property
    def key_channels(self) -> int:
        """Channels of the keys of the last attention, of all heads, in a backbone that has attention."""
        return self.num_features

    @abstractmethod
    def stages(self) -> Sequence[Sequence[nn.Module | nn.Parameter]]:
        """The stages that can be frozen, from the image on; empty for a network that has no known stages."""

    def last_maps(self, images: Tensor, count: int) -> list[Tensor]:
        """Extract the features of the last stages alone.

        Args:
            images: as for `forward`.
            count: how many maps, at least 1.

        Returns:
            The last `count` maps of `forward`. A network of many stages of one size makes no others.
        """
        maps: list[Tensor] = self(images)
        return maps[-count:]

    def check_affinity(self) -> None:
        """Refuse a network that has no attention between the cells of an image.

        Raises:
            ArgumentError: always, unless a subclass has it: vision transformers of timm.
        """
        remedy = "it has no attention between cells; take a vision transformer, as timm:vit_small_patch14_dinov2"
        raise ArgumentError("backbone", type(self).__name__, remedy)

    @check_arguments
    def affinity(
        self, images: Tensor, *, kind: AffinityKind = "attention", layers: int | None = None, sinkhorn: int = 0
    ) -> Tensor:
        """Compute how alike the cells of an image are to a transformer, without gradient.

        With "attention" the attention between patches, averaged over heads and the last `layers`: class and register
        tokens left out, rows divided by their sums, the mean with its transpose. With "keys" the cosine of the keys of
        the last layer, or 0 where it is negative (DINO). The attention is made a block of rows at a time.

        Args:
            images: `(B, 3, H, W)`, as for `forward`.
            kind: see above.
            layers: how many of the last are averaged; None: `ATTENTION_LAYERS`, or all of fewer.
            sinkhorn: how often columns and rows are divided by their sums in turn before the mean with the transpose
                (2 in CLIP-ES); of "attention" alone.

        Returns:
            `(B, HW, HW)`, not negative, symmetric, of the cells of the last map.

        Raises:
            ArgumentError: see `check_affinity`; or for a number out of its range.
        """
        self.check_affinity()
        raise NotImplementedError

    @check_arguments
    def maps_and_relation(self, images: Tensor, count: int, kind: AffinityKind) -> tuple[list[Tensor], Tensor]:
        """Extract the last maps and, in the same pass, what an affinity is made of.

        Args:
            images: as for `forward`.
            count: as for `last_maps`.
            kind: as for `affinity`.

        Returns:
            What `last_maps` returns, and a map of the relations of cells, without gradient. With "attention"
            `(B, HW, h, w)`, in each cell its row of the affinity times HW, so that 1 is the mean; with "keys"
            `(B, D, h, w)`, the keys, whose cosines the affinity is.

        Raises:
            ArgumentError: see `check_affinity`.
        """
        self.check_affinity()
        raise NotImplementedError

    def convert_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the tensors of a published file to the names of `weights_target`; here they have them."""
        return state

    def ignored_weights(self) -> tuple[str, ...]:
        """Beginnings of the names in a file of weights that are passed over: its classifier."""
        return CLASSIFIER_PREFIXES

    def weights_target(self) -> nn.Module:
        """The module whose key names a file of weights uses: this one, unless it wraps another."""
        return self

    @check_arguments
    def pad_convolutions(self, mode: PaddingMode) -> None:
        """Set what convolutions see beyond the border of a map: zeros, or the cells at the border again.

        Behind zeros the cells at the border look alike whatever they show. Names and values of weights stay.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and any(module.padding):
                module.padding_mode = mode

    def freeze(self, *, batchnorm: bool = True, stages: int = 0) -> None:
        """Hold parts of the network fixed from now on, in training mode too.

        What is frozen stays in evaluation mode whatever `train` is told, and its parameters ask for no gradient
        (so `DistributedDataParallel` needs no `find_unused_parameters`).

        Args:
            batchnorm: freeze the statistics and the affine parameters of every batch normalisation.
            stages: how many stages to freeze, from the image on: 0 none, 1 the stem, 2 the stem and the first
                stage, up to the whole network: 5, or 1 and the number of blocks of a transformer. For the order see
                `stages` of the network.

        Raises:
            ArgumentError: if the network has fewer stages.
        """
        available = len(self.stages())
        if not 0 <= stages <= available:
            what = f"a number from 0 (none) to {available} (all)" if available else "0: it has no known stages"
            raise ArgumentError("frozen_stages", stages, f"{type(self).__name__} accepts {what}")
        self.frozen_batchnorm = batchnorm
        self.frozen_stages = stages
        for part in self._frozen_parts():
            part.requires_grad_(False)
        self.train(self.training)

    def freeze_whole(self) -> None:
        """Hold the whole network fixed in evaluation mode from now on, whether or not its stages are known."""
        self.is_frozen = True
        self.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the training mode, except for what is frozen: that stays in evaluation mode."""
        super().train(mode and not self.is_frozen)
        for part in self._frozen_parts():
            if isinstance(part, nn.Module):
                part.eval()
        return self

    def _frozen_parts(self) -> Iterator[nn.Module | nn.Parameter]:
        for stage in self.stages()[: self.frozen_stages]:
            yield from stage
        if self.frozen_batchnorm:
            yield from (module for module in self.modules() if isinstance(module, _BatchNorm))


def enlarge_to_whole_cells(images: Tensor, stride: int) -> Tensor:
    """Enlarges images to the next multiple of the stride along each side.

    With padding in its place the last cells would lie beyond the image in part, and a map that is enlarged to the image
    would be displaced by up to a cell.

    Args:
        images: `(B, 3, H, W)`.
        stride: pixels of a cell.

    Returns:
        `(B, 3, ceil(H / stride) * stride, ceil(W / stride) * stride)`.
    """
    height, width = images.shape[2:]
    size = (-(-height // stride) * stride, -(-width // stride) * stride)
    # A program that is exported serves every size, so it cannot ask for one. Of the same size pixels stay as they are.
    if not torch.compiler.is_compiling() and size == (height, width):
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def _note_loading(backbone: Backbone, _: object) -> None:
    backbone.has_chosen_weights = True


def init_convolutions(network: nn.Module) -> None:
    """Initialise every convolution as torchvision does: He et al. 2015, normal, fan-out; biases zero.

    Args:
        network: changed in place; everything but convolutions is left as it is.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
