"""Samples of random pixels, as the data module hands them out."""

from __future__ import annotations

import torch

from rca_lightning.data.sample import Sample


def tagged_images(*ids: str, height: int, width: int) -> list[Sample]:
    """One sample an id, two classes: all have the first, every other one the second as well."""
    generator = torch.Generator().manual_seed(0)
    return [
        Sample(
            image=torch.randn(3, height, width, generator=generator),
            tags=torch.tensor([1.0, float(index % 2)]),
            image_id=image_id,
            original_size=torch.tensor([height, width]),
        )
        for index, image_id in enumerate(ids)
    ]
