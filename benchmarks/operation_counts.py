"""How many operations the parts of RCA take, from their sizes alone."""

from __future__ import annotations

import math

import torch
from measure.flops import count_flops

from rca_lightning import RCAModule

_ITERATIONS = 20  # of the clustering


def network_flops(module: RCAModule, side: int) -> int:
    """Operations of the network's forward and backward pass for one image, counted without computing anything."""
    module = module.to("meta").train()
    # Two, for what a network does to a batch.
    images = torch.empty(2, 3, side, side, device="meta")
    tags = torch.empty(2, module.hparams["num_classes"], device="meta")

    def step() -> None:
        maps = module(images, tags)
        total = maps.coarse.sum() + maps.embeddings.sum()
        (total if maps.refined is None else total + maps.refined.sum()).backward()

    return count_flops(step) // 2


def contrast_flops(regions: int, bank: int, channels: int) -> int:
    """Operations of the contrast of regions with `bank` slots: similarities, and their gradient for the regions."""
    return 2 * 2 * regions * bank * channels


def kmeans_flops(points: int, clusters: int, channels: int, iterations: int = _ITERATIONS) -> int:
    """Operations of `kmeans` of a class without an early end: seeds, distances and means, and the last assignment."""
    candidates = 2 + int(math.log(clusters))  # for each further seed
    seeding = 2 * points * channels * (1 + (clusters - 1) * candidates)
    return seeding + 2 * points * clusters * channels * (2 * iterations + 1)


def kmeans_passes(clusters: int, iterations: int = _ITERATIONS) -> int:
    """How often `kmeans` reads every point: for each seed, twice an iteration, and at the end."""
    return clusters + 2 * iterations + 1
