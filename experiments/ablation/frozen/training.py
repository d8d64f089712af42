"""RCA behind a frozen network: the library's own module and callback in Lightning's Trainer."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from frozen.backbone import CachedBackbone
from frozen.features import CachedSplit
from frozen.windows import window_loader

from rca_lightning import RCAModule, RegionMemoryCallback
from rca_lightning.io.atomic import write_atomically


def frozen_module(settings: dict[str, Any], split: CachedSplit) -> RCAModule:
    """The module of a row with the cached features in place of its backbone, and the trained first head.

    Raises:
        ArgumentError: the row wants more stages than were kept.
    """
    arguments = {**settings["model"], "weights": "none", "frozen_stages": 0}
    module = RCAModule(**{**arguments, "num_classes": len(split.class_names), "class_names": split.class_names})
    network = module.network
    network.backbone = CachedBackbone(split.widths, network.backbone.output_stride)
    network.backbone.stage_channels(network.embedding_stages)  # refuses more than were kept
    network.coarse_head.load_state_dict(split.head)
    return module


def train(settings: dict[str, Any], split: CachedSplit, *, seed: int, path: Path) -> None:
    """Fill the memory, cluster, train what is behind the backbone; keep what `rca fit` would keep, without the bank.

    Args:
        settings: of the row, as the parser of `rca` understands them.
        split: the images to train on.
        seed: of everything, the clustering included.
        path: where the checkpoint goes.
    """
    L.seed_everything(seed, verbose=False)
    module = frozen_module(settings, split)
    memory = RegionMemoryCallback(**{**settings["memory"], "seed": seed})
    trainer, data = settings["trainer"], settings["data"]
    loader = window_loader(
        split, cells=data["crop_size"] // module.network.backbone.output_stride, batch_size=data["batch_size"]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning would rather have workers and a validation
        L.Trainer(
            max_epochs=trainer["max_epochs"],
            accelerator=trainer["accelerator"],
            devices=1,
            precision=trainer["precision"],
            callbacks=[memory],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(module, loader)
    saved = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "callbacks": {"RegionMemoryCallback": _without_bank(memory.state_dict())},
    }
    write_atomically(path, lambda file: torch.save(saved, file))


def trained_module(settings: dict[str, Any], split: CachedSplit, path: Path) -> RCAModule:
    """What `train` left, with the settings of a row that may read it otherwise."""
    module = frozen_module(settings, split)
    module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
    return module.eval()


def _without_bank(state: dict[str, Any]) -> dict[str, Any]:
    """Counts and diagnostics: the embeddings would take 100 MB a row."""
    counts = {key: value for key, value in state.get("memory", {}).items() if key == "counts"}
    return {"memory": counts, "diagnostics": state.get("diagnostics", {})} if state else {}
