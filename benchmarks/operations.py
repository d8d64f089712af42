"""Target 2: RCA's own operations against the same mathematics in deliberately naive loops over regions and classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from measure.result import Result
from measure.timing import as_rows, in_turns, ratio
from torch import Tensor

from rca_lightning.rca.aggregation import SemanticAggregation
from rca_lightning.rca.contrast import region_contrast_loss
from rca_lightning.rca.memory_bank import RegionMemory, encode_ids
from rca_lightning.rca.regions import pool_regions, pseudo_regions

_LIMIT = 10.0
_TEMPERATURE = 0.1
_ATTENTION_TEMPERATURE = 0.05


@dataclass(frozen=True)
class OperationSize:
    """Batch, features and memory; `ranks` processes give their regions to one memory."""

    batch: int = 8
    classes: int = 20
    channels: int = 512
    side: int = 46
    slots: int = 500
    prototypes: int = 10
    ranks: int = 1


class Inputs:
    """Random features, maps, tags, a full memory and prototypes; the same for both ways."""

    def __init__(self, size: OperationSize) -> None:
        generator = torch.Generator().manual_seed(0)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        random = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
        self.size = size
        self.features = random(size.batch, size.channels, size.side, size.side).to(device).requires_grad_()
        self.maps = random(size.batch, size.classes, size.side, size.side).to(device)
        self.tags = torch.zeros(size.batch, size.classes, device=device)
        for row in range(size.batch):
            self.tags[row, torch.randperm(size.classes, generator=generator)[: 1 + row % 3]] = 1
        self.memory = RegionMemory(size.classes, size.slots, size.channels)
        self.memory.embeddings = F.normalize(random(*self.memory.embeddings.shape), dim=2)
        self.memory.counts.fill_(size.slots)
        self.memory.to(device)
        # Written to in each run; the memory that is read stays the same.
        self.written = RegionMemory(size.classes, size.slots, size.channels).to(device)
        self.queues = [torch.zeros(size.slots, size.channels, device=device) for _ in range(size.classes)]
        rows = size.classes * size.prototypes
        self.prototypes = F.normalize(random(rows, size.channels), dim=1).to(device)
        self.reader = SemanticAggregation(
            size.channels, size.classes, size.prototypes, temperature=_ATTENTION_TEMPERATURE
        ).to(device)
        self.reader.write(self.prototypes, torch.ones(rows, dtype=torch.bool, device=device))
        self.ids = encode_ids([f"image_{row}" for row in range(size.batch)]).to(device)


def run(*, quick: bool = False, rounds: int = 5) -> Result:
    """Both ways in turns, forward and backward, and what they differ by."""
    size = OperationSize(batch=2, classes=4, channels=16, side=8, slots=10, prototypes=3) if quick else OperationSize()
    inputs = Inputs(size)
    apart = difference(inputs)
    times = in_turns({"library": lambda: library(inputs), "loops": lambda: loops(inputs)}, rounds=rounds)
    shape = f"{size.batch} x {size.channels} x {size.side} x {size.side}, {size.classes} classes x {size.slots} slots"
    result = Result("operations", f"regions, contrast, aggregation, memory: {shape}", as_rows(times, "library"))
    result.at_least("loops over library", ratio(times["loops"], times["library"]), 0.0 if quick else _LIMIT)
    result.at_most("largest relative difference of loss and gradient", apart, 1e-3)
    return result


def library(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The operations as the module calls them; loss, and gradient of the features."""
    regions = pool_regions(inputs.features, pseudo_regions(inputs.maps, inputs.tags))
    absent = inputs.tags[regions.images] <= 0
    loss = region_contrast_loss(
        regions.embeddings, regions.labels, absent, inputs.memory.embeddings, inputs.memory.valid, _TEMPERATURE
    )
    read = inputs.reader(inputs.features)
    (gradient,) = torch.autograd.grad(loss + read.context.square().mean(), inputs.features)
    # Every rank writes the regions of all of them; here those of the others are copies of its own.
    embeddings, ids = regions.embeddings.detach(), inputs.ids[regions.images]
    arrived = [part.repeat(inputs.size.ranks, *[1] * (part.ndim - 1)) for part in (embeddings, regions.labels, ids)]
    inputs.written.enqueue(*arrived, step=1)
    return loss.detach(), gradient


def loops(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The same as one would write it down from the paper: image by image, class by class, region by region."""
    embeddings, labels, images = _regions_by_loop(inputs)
    losses = [
        _contrast_by_loop(inputs, F.normalize(embedding, dim=0), label, image)
        for embedding, label, image in zip(embeddings, labels, images, strict=True)
    ]
    loss = torch.stack(losses).mean()
    contexts = [_aggregation_by_loop(inputs, image) for image in range(inputs.size.batch)]
    (gradient,) = torch.autograd.grad(loss + torch.stack(contexts).square().mean(), inputs.features)
    for embedding, label in zip(embeddings, labels, strict=True):
        newest = F.normalize(embedding.detach(), dim=0)[None]
        inputs.queues[label] = torch.cat([inputs.queues[label][1:], newest])
    return loss.detach(), gradient


def _regions_by_loop(inputs: Inputs) -> tuple[list[Tensor], list[int], list[int]]:
    embeddings, labels, images = [], [], []
    for image in range(inputs.size.batch):
        for label in range(inputs.size.classes):
            if inputs.tags[image, label] > 0:
                activation = inputs.maps[image, label]
                scaled = (activation - activation.min()) / (activation.max() - activation.min())
                mask = (scaled > 0.5).float()
                embeddings.append((inputs.features[image] * mask).sum((1, 2)) / mask.sum())
                labels.append(label)
                images.append(image)
    return embeddings, labels, images


def _contrast_by_loop(inputs: Inputs, query: Tensor, label: int, image: int) -> Tensor:
    # Queues of their own, joined for every region, as when each class has a buffer.
    queues = [inputs.memory.embeddings[row] for row in range(inputs.size.classes)]
    others = [queues[row] for row in range(inputs.size.classes) if inputs.tags[image, row] == 0]
    negatives = (torch.cat(others) @ query / _TEMPERATURE).exp().sum()
    terms = []
    for positive in queues[label]:
        attracted = (positive @ query / _TEMPERATURE).exp()
        terms.append(-(attracted / (attracted + negatives)).log())
    return torch.stack(terms).mean()


def _aggregation_by_loop(inputs: Inputs, image: int) -> Tensor:
    pixels = inputs.features[image].flatten(1).T  # (D, H, W) -> (HW, D)
    directions = F.normalize(pixels, dim=1)
    similarity = [directions @ prototype for prototype in inputs.prototypes]
    attention = (torch.stack(similarity, dim=1) / _ATTENTION_TEMPERATURE).softmax(1)
    context = torch.zeros_like(pixels)
    for column, prototype in enumerate(inputs.prototypes):
        context = context + attention[:, column, None] * prototype
    return context.T.reshape(inputs.features[image].shape)  # (HW, D) -> (D, H, W)


def difference(inputs: Inputs) -> float:
    """How far the two ways are apart, relative to the largest value."""
    worst = 0.0
    for one, other in zip(library(inputs), loops(inputs), strict=True):
        worst = max(worst, float((one - other).abs().max() / other.abs().max()))
    return worst
