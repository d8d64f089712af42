"""Rival contexts, to compare the prototypes of RCA with: pixels read another image, or their own.

`RCANetwork(context=...)` takes one in the place of semantic aggregation; `rival.py` trains it. Parameters and
multiply-adds a cell at the defaults, with 2048 channels, 20 classes and maps of 16 x 16 in training:

| context | reads | parameters | multiply-adds | context channels |
| --- | --- | --- | --- | --- |
| `CoAttention` | pixels of another image | 1.05 M | 1.64 M | 2048 |
| `DoubleAttention` | descriptors of the same image | 1.57 M | 1.70 M | 256 |
| `ObjectContext` | regions of the same image | 1.64 M | 0.73 M | 256 |

Semantic aggregation of 20 x 10 + 64 prototypes has no parameters and 1.09 M multiply-adds; a projection of the
features to 256 channels for it has 0.52 M of both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rca_lightning.errors import ArgumentError
from rca_lightning.rca.cam import image_logits


class ContextModule(nn.Module, ABC):
    """Gives every pixel a context; the second CAM head reads `[context, features]`.

    It takes the place of `SemanticAggregation` in the network, so that where the context comes from is all that
    differs. All its parameters take part in every training step.

    Attributes:
        context_channels: channels of the context.
    """

    context_channels: int

    @abstractmethod
    def forward(self, features: Tensor, coarse: Tensor, tags: Tensor | None = None) -> Tensor:
        """Context of every pixel.

        Args:
            features: `(B, C, H, W)`.
            coarse: `(B, L, H, W)`, maps of the first CAM head, detached.
            tags: `(B, L)`, 0 or 1; `None` where unknown: the classes with an image probability above one half.

        Returns:
            `(B, context_channels, H, W)`.
        """


class CoAttention(ContextModule):
    """Pixels attend to the pixels of a related image: `context_i = sum_j softmax_j(q_i k_j / sqrt(d)) f_j`.

    Here `q` and `k` are learned projections of the features of the image and of the related one, whose features
    `f_j` are the values: the co-attention of MCIS (Sun et al., ECCV 2020, arXiv 2007.01947) with a bilinear form of
    rank `d`, and the affinity of CIAN (Fan et al., AAAI 2020, arXiv 1811.10842) without its projection of the values,
    which the second CAM head, linear itself, makes up for.

    In training the related image is one of the batch, see `choose_partners`. In evaluation there is no batch
    to rely on. CIAN then pairs an image with itself, MCIS with training images; here a store keeps, for each class, a
    grid of cells of the latest training image tagged with it, and pixels attend to the cells of all classes of their
    image at once. Where none of those has cells, and always with `reference_grid=0`, they attend to their own image.

    The store is made of persistent buffers, so a checkpoint alone predicts: 32 MB for 20 classes, 128 MB for 80, with
    2048 channels. Each rank fills its own; `DistributedDataParallel` replaces all by that of rank 0 before every
    forward pass, and rank 0 writes the checkpoint.

    Args:
        in_channels: channels `C` of the features.
        num_classes: foreground classes `L`.
        key_channels: `d`.
        reference_grid: cells along each side that are kept of an image, evenly spread; 0 keeps none.

    Example:
        >>> context = CoAttention(in_channels=16, num_classes=3, key_channels=4, reference_grid=2)
        >>> tags = torch.tensor([[1, 0, 0], [1, 1, 0]])
        >>> read = context(torch.randn(2, 16, 5, 7), torch.randn(2, 3, 5, 7), tags)
        >>> read.shape, context.filled.tolist()
        (torch.Size([2, 16, 5, 7]), [True, True, False])
    """

    reference: Tensor
    filled: Tensor

    def __init__(self, in_channels: int, num_classes: int, key_channels: int = 256, reference_grid: int = 14) -> None:
        super().__init__()
        if reference_grid < 0:
            raise ArgumentError("reference_grid", reference_grid, "give 0 or more cells along each side")
        self.context_channels = in_channels
        self.reference_grid = reference_grid
        self.query = nn.Linear(in_channels, key_channels, bias=False)
        self.key = nn.Linear(in_channels, key_channels, bias=False)
        with torch.no_grad():  # Equal at first, so that cells attend to what resembles them, not to anything.
            self.key.weight.copy_(self.query.weight)
        self.register_buffer("reference", torch.zeros(num_classes, reference_grid**2, in_channels))
        self.register_buffer("filled", torch.zeros(num_classes, dtype=torch.bool))

    def forward(self, features: Tensor, coarse: Tensor, tags: Tensor | None = None) -> Tensor:
        """See `ContextModule.forward`; in training with `tags` the store takes in the images."""
        cells = features.flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, HW, C)
        present = present_classes(coarse, tags)
        if self.training:
            partners = choose_partners(present)
            context = attend(self.query(cells), self.key(cells)[partners], cells[partners])
            if tags is not None and self.reference_grid:
                self._remember(features, present)
        else:
            own = [self._read_store(image, classes) for image, classes in zip(cells, present, strict=True)]
            context = torch.stack(own)
        return context.transpose(1, 2).reshape(features.shape)  # (B, HW, C) -> (B, C, H, W)

    def _read_store(self, cells: Tensor, present: Tensor) -> Tensor:
        """Context `(HW, C)` of one image, its cells `(HW, C)`, its classes `(L,)`."""
        stored = self.reference[present & self.filled].flatten(0, 1)  # (classes, R, C) -> (classes * R, C)
        source = stored.to(cells.dtype) if len(stored) else cells
        return attend(self.query(cells)[None], self.key(source)[None], source[None])[0]

    @torch.no_grad()
    def _remember(self, features: Tensor, present: Tensor) -> None:
        """Keep cells of the last image of the batch that has a class, for every such class."""
        side = self.reference_grid
        cells = F.interpolate(features.to(self.reference.dtype), (side, side), mode="nearest-exact").flatten(2)
        # An overflow of mixed precision costs one step; in the store it would spoil what is predicted.
        usable = present & cells.isfinite().flatten(1).all(dim=1)[:, None]  # (B, L)
        numbers = torch.arange(1, len(cells) + 1, device=cells.device)[:, None] * usable
        latest = numbers.amax(dim=0)  # (L,), 0 where no image has the class
        classes = torch.nonzero(latest)[:, 0]
        self.reference[classes] = cells.transpose(1, 2)[latest[classes] - 1]  # (B, C, R) -> (B, R, C)
        self.filled[classes] = True


def choose_partners(tags: Tensor) -> Tensor:
    """For each image the one of the batch that shares most tags with it.

    Among equals it is the next one in the batch, the first following the last; so partners vary, and the same batch
    always gives the same ones. An image that shares no tag with any other is its own partner.

    Args:
        tags: `(B, L)`, 0 or 1.

    Returns:
        `(B,)` int64, indices into the batch.

    Example:
        >>> choose_partners(torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 1], [1, 1, 0]])).tolist()
        [3, 3, 2, 0]
    """
    size, present = len(tags), tags > 0
    shared = (present[:, None] & present[None]).sum(dim=2)  # (B, B)
    shared.fill_diagonal_(0)
    place = torch.arange(size, device=tags.device)
    distance = (place[None] - place[:, None]) % size  # 0 on the diagonal only
    return (shared * size - distance).argmax(dim=1)


class DoubleAttention(ContextModule):
    """The double attention block of A2-Nets: `Z = [A softmax_p(B)^T] softmax_n(V)`.

    `A`, `B` and `V` are 1x1 convolutions of the features. First attention: each of `N` descriptors is a mean of `A`
    over the positions p, weighted by softmax over them. Second: each pixel mixes the descriptors, weighted by softmax
    over them. Chen et al., NeurIPS 2018, arXiv 1810.11579, without the last convolution and the residual:
    the second CAM head reads features and context side by side and is linear itself.

    No convolution has a bias: on B it would drop out of the softmax, on A it would add the same to every cell. Neither
    classes nor tags are looked at.

    Args:
        in_channels: channels of the features.
        channels: of `A`, thus of the context.
        descriptors: `N`; 256 is about as many as a pixel has prototypes to read from (20 x 10 + 64 on VOC 2012).

    Example:
        >>> import torch
        >>> context = DoubleAttention(in_channels=16, channels=6, descriptors=4)
        >>> context(torch.randn(2, 16, 5, 7)).shape
        torch.Size([2, 6, 5, 7])
    """

    def __init__(self, in_channels: int, channels: int = 256, descriptors: int = 256) -> None:
        super().__init__()
        self.context_channels = channels
        self.content = nn.Conv2d(in_channels, channels, 1, bias=False)  # A
        self.gathering = nn.Conv2d(in_channels, descriptors, 1, bias=False)  # B
        self.distribution = nn.Conv2d(in_channels, descriptors, 1, bias=False)  # V

    def forward(self, features: Tensor, coarse: Tensor | None = None, tags: Tensor | None = None) -> Tensor:
        """See `ContextModule.forward`."""
        batch, _, height, width = features.shape
        descriptors = gather(self.gathering(features), self.content(features))  # (B, N, channels)
        shares = self.distribution(features).flatten(2).float().softmax(dim=1)  # (B, N, H, W) -> (B, N, HW)
        context: Tensor = descriptors.transpose(1, 2) @ shares  # (B, channels, HW)
        return context.reshape(batch, -1, height, width)


class ObjectContext(ContextModule):
    """Object-contextual representations: pixels attend to soft regions of the classes in their own image.

    Region of class k: softmax of the coarse map over the positions, `m_k`. Its representation:
    `f_k = sum_i m_ki x_i`. Context of pixel i: `rho(sum_k softmax_k(phi(x_i) psi(f_k) / sqrt(d)) delta(f_k))`, with
    phi, psi, delta and rho a linear layer, normalisation and ReLU each. OCR: Yuan et al., ECCV 2020, arXiv 1909.11065,
    with the CAM in place of the supervised coarse segmentation, and without the 3x3 convolution to 512 channels in
    front, which alone would cost 9.4 M parameters.

    The normalisation is a LayerNorm over the channels, not a BatchNorm: regions are few in a batch, and with it
    training and prediction compute the same.

    Absent classes have a region as well, where their map is highest: OCR reads all, and by default so do pixels here.
    CAMs have no map of the background, which is a class like others to OCR; minus the highest of the maps stands in.
    Without it, in an image with one tag and `tags_only`, all pixels would read the same.

    Args:
        in_channels: channels of the features.
        key_channels: `d`, also the channels of the context.
        tags_only: whether pixels read only the regions of the tags, or of the probable classes where tags are unknown.
            Who may read nothing gets `rho(0)`.
        background: whether the background is a region too; every pixel may read it.

    Example:
        >>> context = ObjectContext(in_channels=16, key_channels=4)
        >>> context(torch.randn(2, 16, 5, 7), torch.randn(2, 3, 5, 7)).shape
        torch.Size([2, 4, 5, 7])
    """

    def __init__(
        self, in_channels: int, key_channels: int = 256, tags_only: bool = False, background: bool = True
    ) -> None:
        super().__init__()
        self.context_channels = key_channels
        self.tags_only = tags_only
        self.background = background
        self.pixel_query = _transform(in_channels, key_channels)  # phi
        self.region_key = _transform(in_channels, key_channels)  # psi
        self.region_value = _transform(in_channels, key_channels)  # delta
        self.output = _transform(key_channels, key_channels)  # rho

    def forward(self, features: Tensor, coarse: Tensor, tags: Tensor | None = None) -> Tensor:
        """See `ContextModule.forward`."""
        batch, _, height, width = features.shape
        readable = present_classes(coarse, tags) if self.tags_only else None
        maps = coarse.float()
        if self.background:
            maps, readable = _with_background(maps, readable)
        regions = gather(maps, features).to(features.dtype)  # (B, K, C)
        cells = features.flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, HW, C)
        read = attend(self.pixel_query(cells), self.region_key(regions), self.region_value(regions), readable)
        context: Tensor = self.output(read).transpose(1, 2)  # (B, HW, d) -> (B, d, HW)
        return context.reshape(batch, -1, height, width)


def _transform(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels_in, channels_out, bias=False), nn.LayerNorm(channels_out), nn.ReLU())


def _with_background(maps: Tensor, readable: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The maps with that of the background as last, `(B, L + 1, H, W)`, and it among what may be read."""
    shown = maps
    if readable is not None:
        shown = maps.masked_fill(~readable[:, :, None, None], torch.finfo(maps.dtype).min)
        readable = F.pad(readable, (0, 1), value=True)
    return torch.cat([maps, -shown.amax(dim=1, keepdim=True)], dim=1), readable


def present_classes(coarse: Tensor, tags: Tensor | None) -> Tensor:
    """Which classes an image has, `(B, L)` boolean: its tags or, where unknown, the probable ones by `coarse`."""
    return image_logits(coarse) > 0 if tags is None else tags > 0


def attend(queries: Tensor, keys: Tensor, values: Tensor, readable: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention: `softmax(Q K^T / sqrt(d)) V`, the softmax in single precision.

    Args:
        queries: `(B, N, d)`.
        keys: `(B, M, d)`.
        values: `(B, M, v)`.
        readable: boolean `(B, M)`, false where nothing may be read; who may read nothing gets 0. `None`: all.

    Returns:
        `(B, N, v)`.
    """
    # A product of two rows of half precision may exceed what half precision holds.
    with torch.autocast(queries.device.type, enabled=False):
        logits = queries.float() * queries.shape[2] ** -0.5 @ keys.float().transpose(1, 2)  # (B, N, M)
        if readable is not None:
            logits = logits.masked_fill(~readable[:, None], torch.finfo(logits.dtype).min)
        attention = logits.softmax(dim=2)
        if readable is not None:
            attention = attention * readable[:, None]
    read: Tensor = attention.to(values.dtype) @ values
    return read


def gather(logits: Tensor, features: Tensor) -> Tensor:
    """Means of features, weighted by softmax over all positions of the image, in single precision.

    Args:
        logits: `(B, N, H, W)`, one map for each mean.
        features: `(B, C, H, W)`.

    Returns:
        `(B, N, C)` float32.
    """
    # Weights of many cells are small numbers, of which half precision keeps few digits.
    with torch.autocast(features.device.type, enabled=False):
        weights = logits.flatten(2).float().softmax(dim=2)  # (B, N, H, W) -> (B, N, HW)
        means: Tensor = weights @ features.flatten(2).float().transpose(1, 2)  # (B, N, HW) (B, HW, C) -> (B, N, C)
        return means
