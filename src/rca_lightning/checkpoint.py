"""Is a file a checkpoint of `rca fit`, and does it fit the network that is to take it?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rca_lightning.errors import ArgumentError, WeightsError

_KEYWORDS = ("last", "best", "hpc")  # names that Lightning looks up itself
_SHOWN = 3


def check_checkpoint(path: str) -> None:
    """Refuse what is not a checkpoint before anything is built; see `read_checkpoint`.

    Args:
        path: what stands behind `--ckpt_path`; words and folders that Lightning looks up itself pass.
    """
    if path in _KEYWORDS or path.startswith("registry") or Path(path).is_dir():
        return
    read_checkpoint(path, map_location="meta")  # no tensor is read


def read_checkpoint(path: str | Path, map_location: str = "cpu") -> dict[str, Any]:
    """Read a checkpoint of `rca fit`; only tensors and plain values are unpickled.

    Raises:
        ArgumentError: if there is no such file.
        WeightsError: if the file is damaged, holds more than tensors, or is not a checkpoint of Lightning.
    """
    shown = str(path)
    if not Path(path).is_file():
        raise ArgumentError("ckpt_path", shown, "there is no such file; give a checkpoint of rca fit, or 'last'")
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # pickle, zip and torch each have errors of their own for a damaged or hostile file
        raise WeightsError(
            f"ckpt_path={shown!r} was not loaded: damaged, or more than tensors in it; give a checkpoint of rca fit"
        ) from error
    if not isinstance(content, Mapping) or not {"state_dict", "pytorch-lightning_version"} <= content.keys():
        raise WeightsError(
            f"ckpt_path={shown!r} is no checkpoint of rca fit; weights of a backbone alone go into --model.weights"
        )
    return dict(content)


def check_fit(found: Mapping[str, Tensor], needed: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> None:
    """Refuse the tensors of a checkpoint that another network wrote.

    Args:
        found: `state_dict` of the checkpoint.
        needed: `state_dict` of the network.
        arguments: `hyper_parameters` of the checkpoint, by which the message says what it is of.

    Raises:
        WeightsError: if names or shapes differ.
    """
    differences = [f"{name} is missing" for name in needed if name not in found]
    differences += [f"{name} is surplus" for name in found if name not in needed]
    differences += [
        f"{name} {tuple(found[name].shape)} instead of {tuple(value.shape)}"
        for name, value in needed.items()
        if name in found and found[name].shape != value.shape
    ]
    if differences:
        more = f" and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise WeightsError(
            f"the checkpoint is of another network (backbone={arguments.get('backbone')!r}, "
            f"num_classes={arguments.get('num_classes')!r}): {'; '.join(differences[:_SHOWN])}{more}. "
            "Leave out the arguments that change the network, or give the checkpoint of this one"
        )
