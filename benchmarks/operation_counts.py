"""How many operations the parts of RCA take, from their sizes alone."""

from __future__ import annotations

import math

import torch
from measure.flops import count_flops

from rca_lightning import RCAModule

_ITERATIONS = 20  # of the clustering


def network_flops(module: RCAModule, side: int, *, tags_per_image: int = 1) -> int:
    """Operations of the network's forward and backward pass for one image, with all prototypes there."""
    module.train()
    if module.network.aggregation is not None:
        module.network.aggregation.valid.fill_(True)
    images, tags = torch.zeros(1, 3, side, side), torch.zeros(1, module.hparams["num_classes"])
    tags[:, :tags_per_image] = 1

    def step() -> None:
        maps = module(images, tags)
        total = maps.coarse.sum() + maps.embeddings.sum()
        (total if maps.refined is None else total + maps.refined.sum()).backward()

    return count_flops(step)


def contrast_flops(regions: int, bank: int, channels: int) -> int:
    """Operations of the contrast of regions with `bank` slots: similarities, and their gradient for the regions.

    Where the memory is read in blocks, the slots of a region's own class are read again: count them twice.
    """
    return 2 * 2 * regions * bank * channels


def kmeans_flops(points: int, clusters: int, channels: int, iterations: int = _ITERATIONS) -> int:
    """Operations of `kmeans` of a class on a GPU, where means are products, without an early end."""
    candidates = 2 + int(math.log(clusters))  # for each further seed
    seeding = 2 * points * channels * (1 + (clusters - 1) * candidates)
    return seeding + 2 * points * clusters * channels * (2 * iterations + 1)


def kmeans_passes(clusters: int, iterations: int = _ITERATIONS) -> int:
    """How often `kmeans` reads every point: for each seed, twice an iteration, and at the end."""
    return clusters + 2 * iterations + 1
