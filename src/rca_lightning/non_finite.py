"""Where in a training step the first number that is not finite came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rca_lightning.data.sample import Batch
from rca_lightning.models.running_statistics import learns_statistics

_SHOWN = 64  # ids of a batch that are written out
_DATA = "mend or leave out the photograph"
_MEMORY = "start from a checkpoint with a sound memory"
_TRAINING = "lower lr, or give trainer.precision bf16-mixed or 32-true where it is 16-mixed"


@dataclass(frozen=True)
class NonFinite:
    """What is not finite in a step.

    Attributes:
        first: the earliest of it in the order of computation.
        others: the rest of it, in that order.
        culprits: images of which `first` is not finite; none if its rows are not images.
        batch: all images of the batch.
        remedy: what helps.
        place: of `first` in the order of computation.
    """

    first: str
    others: tuple[str, ...]
    culprits: tuple[str, ...]
    batch: tuple[str, ...]
    remedy: str
    place: int

    def __str__(self) -> str:
        of = f" of {_listed(self.culprits)}" if self.culprits else ""
        then = f", then {', '.join(self.others)}" if self.others else ""
        return f"{self.first}{of} not finite{then}, in the batch of {_listed(self.batch)}"


def find_non_finite(batch: Batch, evidence: Mapping[str, Tensor]) -> NonFinite | None:
    """The first of the pixels and tags of a batch, and of what was computed of them, that is not finite.

    Args:
        batch: `image` `(B, 3, H, W)`, `tags` `(B, L)`, `image_id`.
        evidence: tensors by name, in the order of computation; those of `B` rows have one an image.

    Returns:
        What was found; `None` if all of it is finite.
    """
    remedies = {"pixels": _DATA, "tags": _DATA, "memory": _MEMORY}
    steps = {"pixels": batch["image"], "tags": batch["tags"], **evidence}
    broken = [name for name, value in steps.items() if not bool(torch.isfinite(value).all())]
    if not broken:
        return None
    ids, first = tuple(batch["image_id"]), broken[0]
    remedy, place = remedies.get(first, _TRAINING), list(steps).index(first)
    return NonFinite(first, tuple(broken[1:]), _culprits(steps[first], ids), ids, remedy, place)


def broken_weight(module: nn.Module) -> str | None:
    """Name of the first weight that is not finite, running statistics that are being learned aside."""
    for prefix, part in module.named_modules():
        own = list(part.named_parameters(recurse=False))
        if not learns_statistics(part):
            own += part.named_buffers(recurse=False)
        for name, value in own:
            if not bool(torch.isfinite(value).all()):
                return f"{prefix}.{name}" if prefix else name
    return None


def _culprits(value: Tensor, ids: tuple[str, ...]) -> tuple[str, ...]:
    if value.ndim < 2 or len(value) != len(ids):
        return ()
    of_image = (~torch.isfinite(value)).flatten(1).any(dim=1).tolist()
    return tuple(image_id for image_id, found in zip(ids, of_image, strict=True) if found)


def _listed(ids: tuple[str, ...]) -> str:
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(repr(image_id) for image_id in ids[:_SHOWN]) + more
