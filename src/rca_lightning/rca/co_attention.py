"""Context from the pixels of another image that shares a tag."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rca_lightning.errors import ArgumentError
from rca_lightning.rca.context import ContextModule, attend, present_classes


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
