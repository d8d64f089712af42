"""Image towers of language-image models: cells in the space of text embeddings, and GradCAM of text."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rca_lightning.arguments import check_arguments
from rca_lightning.backbones.attention import attention_layers
from rca_lightning.backbones.timm import TimmBackbone
from rca_lightning.errors import ArgumentError


class ClipBackbone(TimmBackbone):
    """A vision transformer of CLIP in timm, with the projection into the space of text embeddings.

    Its stages are those of `TimmBackbone`, except the last: the patch tokens of the last block, whose attention is left
    out so that each cell keeps its own value (MaskCLIP, arXiv 2112.01071), after the last normalisation and the
    projection, scaled to length 1. Their products with text embeddings are cosines, which `PromptHead` reads.

    Args:
        model: name of a vision transformer of timm with such a projection, such as
            `vit_base_patch16_clip_quickgelu_224.openai`. Weights have to have the projection.
        output_stride: has no part in it; see `TimmBackbone`.

    Raises:
        MissingExtraError: without timm.
        ArgumentError: for a model that timm does not know, or without a projection.
    """

    _PREFIX: ClassVar[str] = "clip:"
    _KEEPS_HEAD: ClassVar[bool] = True

    def _check_model(self, model: str) -> None:
        attention_layers(self.model, self._name)
        if not isinstance(getattr(self.model, "head", None), nn.Linear) or "clip" not in model:
            remedy = "it has no projection into a space of text; take vit_base_patch16_clip_quickgelu_224.openai"
            raise ArgumentError("backbone", self._name, remedy)

    def _maps(self, images: Tensor, count: int | None = None) -> list[Tensor]:
        """The maps of the blocks, the last of them in the space of text embeddings."""
        kept: list[Tensor] = []
        hook = self.model.blocks[-1].register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
        try:
            maps = super()._maps(images, count)
        finally:
            hook.remove()
        return [*maps[:-1], self._joint(kept[0], maps[-1])]

    def _joint(self, tokens: Tensor, like: Tensor) -> Tensor:
        """Unit vectors `(B, D, h, w)` in the space of text embeddings, from what goes into the last block."""
        block = self.model.blocks[-1]
        attention = block.attn
        width = attention.qkv.weight.shape[0] // 3
        bias = None if attention.qkv.bias is None else attention.qkv.bias[2 * width :]
        value = F.linear(block.norm1(tokens), attention.qkv.weight[2 * width :], bias)
        value = attention.proj(getattr(attention, "norm", nn.Identity())(value))
        tokens = tokens + block.ls1(value)
        tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
        patches = self.model.head(self.model.norm(tokens)[:, self.model.num_prefix_tokens :])
        # (B, hw, D) -> (B, D, h, w)
        return _unit(patches, dim=2).transpose(1, 2).reshape(len(patches), -1, *like.shape[2:])

    def image_embeddings(self, images: Tensor) -> Tensor:
        """Embed whole images in the space of text, by the class token.

        Args:
            images: as for `forward`.

        Returns:
            `(B, D)`, length 1.
        """
        return _unit(self.model(self._prepared(images)), dim=1)

    @check_arguments
    def grad_cam(
        self, images: Tensor, classes: Tensor, background: Tensor, tags: Tensor, *, scale: float = 100.0
    ) -> Tensor:
        """Draws class activation maps of text by the gradient of its probability (CLIP-ES, arXiv 2212.09506).

        The probability of a tagged class is a softmax over the tags of the image and the background. Its gradient with
        respect to the tokens that go into the last attention, averaged over the patches, weighs their channels.

        Args:
            images: `(B, 3, H, W)`, as for `forward`.
            classes: `(L, D)`, text embeddings of length 1.
            background: `(G, D)`, of what is behind the objects; with none a single tag would have no rival.
            tags: `(B, L)`, above 0 for the classes to draw.
            scale: of the cosines; 100 for CLIP.

        Returns:
            `(B, L, h, w)`, not negative; 0 for a class that is not tagged.

        Raises:
            ArgumentError: without background.
        """
        if not len(background):
            raise ArgumentError("background", 0, "give embeddings of the background, as rca prompts writes them")
        prefix, drawn = self.model.num_prefix_tokens, []
        for image, of_image in zip(images, tags, strict=True):
            shown = torch.nonzero(of_image > 0)[:, 0]
            tokens: list[Tensor] = []

            def keep(_: Any, __: Any, output: Tensor, kept: list[Tensor] = tokens) -> Tensor:
                kept.append(output if output.requires_grad else output.detach().requires_grad_())
                return kept[-1]

            with torch.enable_grad():
                hook = self.model.blocks[-1].norm1.register_forward_hook(keep)
                try:
                    embedding = self.image_embeddings(image[None])
                finally:
                    hook.remove()
                chances = (embedding @ torch.cat([classes[shown], background]).T * scale).softmax(dim=1)[0]
                height, width = (-(-side // self.output_stride) for side in image.shape[1:])
                maps = classes.new_zeros(len(classes), height, width)
                for number, index in enumerate(shown.tolist()):
                    (gradient,) = torch.autograd.grad(chances[number], tokens[0], retain_graph=True)
                    weights = gradient[0, prefix:].mean(dim=0)
                    cam = (tokens[0][0, prefix:].detach() @ weights).clamp_min(0)
                    maps[index] = cam.reshape(height, width)
            drawn.append(maps)
        return torch.stack(drawn)

    @property
    def key_channels(self) -> int:
        """Those of the tokens, not of the space of text."""
        return int(self.model.embed_dim)

    def ignored_weights(self) -> tuple[str, ...]:
        """None: the projection is needed."""
        return ()


def _unit(vectors: Tensor, *, dim: int) -> Tensor:
    """Vectors of length 1 in float32 at least: half precision leaves two digits of a cosine."""
    return F.normalize(vectors if vectors.dtype == torch.float64 else vectors.float(), dim=dim)
