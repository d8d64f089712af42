"""Which arguments of a module a checkpoint keeps, and what they may be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rca_lightning.backbones.prompts import count_text_embeddings
from rca_lightning.backbones.weights import pca_arguments, trained_padding, trained_stride
from rca_lightning.errors import ArgumentError
from rca_lightning.rca.inference import check_views
from rca_lightning.rca.propagation import check_propagation

# Where weights came from says nothing once there is a checkpoint, and the path may not exist elsewhere.
_NOT_KEPT = ("self", "__class__", "weights", "weights_sha256", "prompts")
_MOST_CLASSES = 1_000_000  # a checkpoint that says more is damaged
_SHARES = (
    "region_threshold",
    "background_threshold",
    "attention_region_threshold",
    "attention_background_threshold",
    "confidence",
)
# Defaults behind a trained and a frozen backbone.
_BY_MODE: dict[str, tuple[Any, Any]] = {
    "beta": (1.0, 0.0),
    "channels_last": (False, True),
    "warmup_epochs": (2, 1),
    "confidence": (0.5, 0.0),
    "attention_region_threshold": (0.5, 0.7),
    "attention_background_threshold": (0.05, 0.15),
}


def shared_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that belong into a checkpoint, once those that every module has are known to make sense.

    Args:
        arguments: `locals()` of `__init__` of `RCAModule` or `SegmentationModule`.

    Raises:
        ArgumentError: for the first value out of its range.
    """
    kept = {name: value for name, value in arguments.items() if name not in _NOT_KEPT}
    if kept["num_classes"] < 1:
        raise ArgumentError("num_classes", kept["num_classes"], "give the number of foreground classes")
    if kept["num_classes"] > _MOST_CLASSES:
        raise ArgumentError("num_classes", kept["num_classes"], f"give at most {_MOST_CLASSES}")
    names = kept["class_names"]
    if names is not None and len(names) != kept["num_classes"]:
        raise ArgumentError("class_names", names, f"give {kept['num_classes']} names, one a class")
    check_views(kept["scales"], kept["max_side"])
    weights, sha256 = arguments["weights"], arguments["weights_sha256"]
    if kept["padding_mode"] is None:
        kept["padding_mode"] = trained_padding(weights, sha256=sha256)
    if kept["stride_in"] is None:
        kept["stride_in"] = trained_stride(weights, backbone=kept["backbone"], sha256=sha256)
    return kept


def checked_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that belong into a checkpoint, once they are known to make sense together.

    Args:
        arguments: `locals()` of `RCAModule.__init__`.

    Raises:
        ArgumentError: for the first value out of its range.
    """
    kept = shared_arguments(arguments)
    if kept["backbone_mode"] is None:
        kept["backbone_mode"] = "trained" if arguments["weights"] in (None, "none") else "frozen"
    frozen = kept["backbone_mode"] == "frozen"
    for name, (if_trained, if_frozen) in _BY_MODE.items():
        if kept[name] is None:
            kept[name] = if_frozen if frozen else if_trained
    if kept["contrast"] is None:
        kept["contrast"] = kept["aggregation"] or not frozen
    if frozen and kept["contrast"] and not kept["aggregation"]:
        raise ArgumentError("contrast", True, "behind a frozen backbone it trains the prototypes of aggregation=True")
    if frozen and kept["beta"]:
        remedy = "behind a frozen backbone it has nothing to train; leave it out, or give backbone_mode='trained'"
        raise ArgumentError("beta", kept["beta"], remedy)
    prompts = arguments.get("prompts")
    if prompts is not None:
        if not frozen:
            remedy = "its head is not trained; give backbone_mode='frozen', or leave it out"
            raise ArgumentError("prompts", prompts, remedy)
        kept["num_prompts"] = count_text_embeddings(Path(prompts))
    check_propagation(kept["propagation_power"], kept["propagation_steps"])
    if kept["propagation_affinity"] != "cosine" and kept["propagation_steps"] == 0:
        remedy = "nothing is propagated with propagation_steps=0; give steps, or leave it out"
        raise ArgumentError("propagation_affinity", kept["propagation_affinity"], remedy)
    for name in _SHARES:
        if not 0 <= kept[name] <= 1:
            raise ArgumentError(name, kept[name], "give a number in [0, 1]")
    for name in ("seed_threshold", "tag_threshold"):
        if kept[name] not in (None, "auto") and not 0 <= kept[name] <= 1:
            raise ArgumentError(name, kept[name], "give a number in [0, 1], or null")
    if kept["embedding_stages"] is not None and kept["embedding_stages"] < 1:
        raise ArgumentError("embedding_stages", kept["embedding_stages"], "give 1 or more, or null")
    for name in ("alpha", "beta", "warmup_epochs"):
        if kept[name] < 0:
            raise ArgumentError(name, kept[name], "give 0 or more")
    if kept["contrast"] and kept["positives"] == "prototypes" and not kept["aggregation"]:
        raise ArgumentError("positives", "prototypes", "there are none without aggregation=True")
    if kept["aggregation"] and kept["beta"] == 0 and kept["final_map"] in {"refined", "mean"}:
        remedy = f"give a weight above 0, or final_map='attention': {kept['final_map']!r} needs the second head"
        raise ArgumentError("beta", 0, remedy)
    return kept | _projection_arguments(kept, arguments["weights"], arguments["weights_sha256"])


def _projection_arguments(kept: Mapping[str, Any], weights: str | None, sha256: str | None) -> dict[str, Any]:
    """Which projection there is, and those of its arguments that come with the weights."""
    if kept["backbone_mode"] == "frozen":
        if kept["projection"] == "learned":
            remedy = "behind a frozen backbone nothing learns it; leave it out, or give backbone_mode='trained'"
            raise ArgumentError("projection", "learned", remedy)
        return {"projection": "pca"}
    start = None if weights is None or kept["projection"] == "learned" else pca_arguments(weights, sha256=sha256)
    if start is None:
        return {"projection": kept["projection"] or "learned"}
    stages = start["embedding_stages"] or 2  # which a network has without a number
    if kept["embedding_dim"] not in (None, start["embedding_dim"]) or kept["embedding_stages"] not in (None, stages):
        return {"projection": kept["projection"] or "learned"}
    return {**start, "embedding_stages": kept["embedding_stages"] or start["embedding_stages"], "projection": "pca"}
