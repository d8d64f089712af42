"""Contrast of prototypes with single cells: what k-means has begun is trained to tell the classes apart.

K-means places the prototypes of a class where its regions are, without a look at the other classes. Behind a frozen
backbone the embeddings cannot make room, so the prototypes move: InfoNCE of cells against them, the contrast of RCA
(section 3.3) with the prototypes in place of the memory. Robust soft learning vector quantisation (Seo and Obermayer,
2003) is the same loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.arguments import check_arguments
from rca_lightning.errors import ArgumentError
from rca_lightning.rca.cam import max_normalise
from rca_lightning.rca.regions import RegionRule, Regions, background_regions, pseudo_regions

CELLS = 30
"""Most cells of a class, or of the background, that one view gives."""

EPOCHS = 2
LEARNING_RATE = 0.02
BATCH = 2048


@check_arguments
@torch.no_grad()
def select_cells(
    embeddings: Tensor,
    cam: Tensor,
    tags: Tensor,
    *,
    threshold: float = 0.7,
    rule: RegionRule = "fixed",
    background_threshold: float = 0.15,
    count: int = CELLS,
) -> Regions:
    """Cells that belong clearly to one tagged class or to the background, evenly spread over those that do.

    Args:
        embeddings: `(B, D, H, W)`.
        cam: maps that they are cut from, `(B, L, H, W)`.
        tags: `(B, L)`, 0 or 1.
        threshold: see `pseudo_regions`; a cell of the regions of two classes goes to the one that activates it more,
            each measured by its own peak.
        rule: see `pseudo_regions`.
        background_threshold: see `background_regions`.
        count: most cells of a class of an image.

    Returns:
        Regions of one cell each; those of the background have label `L`. Images in order, classes in order.

    Example:
        >>> cam = torch.tensor([[[[1.0, 0.9, 0.5, 0.0]]]])
        >>> cells = select_cells(torch.arange(4.0).view(1, 1, 1, 4), cam, torch.ones(1, 1))
        >>> cells.embeddings.flatten().tolist(), cells.labels.tolist()
        ([0.0, 1.0, 3.0], [0, 0, 1])
    """
    if count < 1:
        raise ArgumentError("count", count, "give at least 1")
    classes = pseudo_regions(cam, tags, threshold, rule)
    strength = max_normalise(cam.float()).masked_fill(~classes, -1)
    strongest = F.one_hot(strength.argmax(dim=1), cam.shape[1]).movedim(3, 1).bool()
    background = background_regions(cam, tags, background_threshold, grid=1)
    masks = torch.cat([classes & strongest, background & ~classes.any(dim=1, keepdim=True)], dim=1).flatten(2)
    found = torch.nonzero(masks.any(dim=2))  # (R, 2): image and class
    chosen = []
    for image, label in found.tolist():
        cells = torch.nonzero(masks[image, label])[:, 0]
        spread = torch.linspace(0, len(cells) - 1, min(count, len(cells)), device=cells.device).long()
        chosen.append(cells[spread])
    lengths = torch.tensor([len(cells) for cells in chosen], dtype=torch.int64, device=found.device)
    images, labels = found.repeat_interleave(lengths, dim=0).unbind(1)
    rows = embeddings.flatten(2).movedim(1, 2)  # (B, D, H, W) -> (B, HW, D)
    empty = torch.zeros(0, dtype=torch.int64, device=found.device)
    return Regions(rows[images, torch.cat([empty, *chosen])].float(), labels, images)


@check_arguments
@torch.no_grad()
def contrast_prototypes(
    prototypes: Tensor,
    owners: Tensor,
    cells: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.05,
    epochs: int = EPOCHS,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
) -> tuple[Tensor, float]:
    r"""Train prototypes so that each cell reads those of its own class: equation (11) of docs/method.md.

    For a cell `z` of class `l` the loss is
    `-log( sum over q of l of exp(z q / t) / sum over all q of exp(z q / t) )`, so a cell picks the prototypes of its
    class that are near, and is pushed away from every prototype of every other class, tagged or not. Adam takes steps
    of 2048 cells in an order of the seed; after each step prototypes are scaled to unit length in the loss.

    Args:
        prototypes: `(Q, D)`, not zero.
        owners: `(Q,)` int64, class of each.
        cells: `(M, D)` in any precision; scaled to unit length here. They may be on another device.
        labels: `(M,)` int64, class of each cell. Cells of a class without a prototype are left out.
        temperature: `t`, above 0: that of the attention that reads the prototypes.
        epochs: passes over the cells.
        learning_rate: of Adam.
        seed: of the order of cells.

    Returns:
        Prototypes `(Q, D)` of unit length, and the mean loss of the last epoch; those given and 0 without cells.

    Raises:
        ArgumentError: for a temperature or learning rate that is not above 0.

    Example:
        >>> start = torch.nn.functional.normalize(torch.tensor([[1.0, 0.2], [1.0, -0.2]]), dim=1)
        >>> cells, labels = torch.tensor([[1.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1])
        >>> moved, loss = contrast_prototypes(start, torch.tensor([0, 1]), cells, labels, epochs=50)
        >>> bool(loss < 0.1), (moved @ torch.nn.functional.normalize(cells, dim=1).T).argmax(dim=0).tolist()
        (True, [0, 1])
    """
    for name, value in (("temperature", temperature), ("learning_rate", learning_rate)):
        if value <= 0:
            raise ArgumentError(name, value, "give a number above 0")
    unit = F.normalize(prototypes.detach().float(), dim=1)
    rows = torch.nonzero(torch.isin(labels, owners.to(labels.device)))[:, 0]
    if not len(rows):
        return unit, 0.0
    moving = unit.clone().requires_grad_()
    optimizer = torch.optim.Adam([moving], lr=learning_rate)
    order, loss = torch.Generator().manual_seed(seed), 0.0
    for _ in range(epochs):
        loss = 0.0
        for batch in torch.split(rows[torch.randperm(len(rows), generator=order).to(rows.device)], BATCH):
            read = F.normalize(cells[batch].to(unit.device).float(), dim=1)
            own = owners[None] == labels[batch].to(unit.device)[:, None]
            of_batch, moving.grad = _loss_and_gradient(moving.detach(), read, own, temperature)
            optimizer.step()
            loss += of_batch * len(batch) / len(rows)
    return F.normalize(moving.detach(), dim=1), loss


def _loss_and_gradient(vectors: Tensor, read: Tensor, own: Tensor, temperature: float) -> tuple[float, Tensor]:
    """The mean loss and its gradient in the vectors, in half the time of automatic differentiation.

    Args:
        vectors: `(Q, D)`, scaled to unit length for the loss.
        read: `(M, D)`, unit length.
        own: `(M, Q)` boolean, prototypes of the class of a cell; at least one each.
        temperature: of the softmax.
    """
    unit = F.normalize(vectors, dim=1)
    logits = read @ unit.T / temperature  # (M, Q)
    every = logits.softmax(dim=1)
    mine = logits.masked_fill_(~own, -torch.inf)
    peak = mine.amax(dim=1, keepdim=True)
    share = mine.sub_(peak).exp_()  # of each own prototype, before it is divided by their sum
    total = share.sum(dim=1, keepdim=True)
    # The loss is log(sum over all / sum over own); any own prototype tells the sum over all, the nearest best.
    nearest = every.gather(1, share.argmax(dim=1, keepdim=True)).clamp_min(torch.finfo(every.dtype).tiny)
    loss = -(total * nearest).log().mean()
    pull = every.sub_(share.div_(total)).T @ read / (len(read) * temperature)  # (Q, D)
    tangent = pull - (pull * unit).sum(dim=1, keepdim=True) * unit
    return float(loss), tangent / vectors.norm(dim=1, keepdim=True)
