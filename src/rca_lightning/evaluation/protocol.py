"""Protocol of a score: what it rests on, so that two scores can be compared, or cannot."""

from __future__ import annotations

import functools
import importlib.metadata
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rca_lightning.arguments import check_arguments
from rca_lightning.evaluation.image_counts import ids_digest
from rca_lightning.io.download import file_sha256
from rca_lightning.version import __version__

ThresholdSource = Literal["given", "default", "auto", "masks"]
"""How a background threshold was chosen: typed in, the default of the kind of maps, from the maps alone, on masks."""

TagsOnRecord = Literal["image", "predicted", "mixed"]
"""Whose tags were used: true ones, predicted ones, or true ones where a photograph has some and predicted ones else."""

TAGS_IN_WORDS: dict[str | None, str] = {
    "image": "true tags", "predicted": "predicted tags", "mixed": "true tags of some",
}  # fmt: skip

_PACKAGES = {
    "torch": ("torch",),
    "lightning": ("lightning",),
    "numpy": ("numpy",),
    "faiss": ("faiss-cpu", "faiss-gpu", "faiss"),
}
_PATIENCE = 10.0  # seconds for git, which may wait for a network file system
_VIEWS = ("scales", "flip", "max_side")
_PROPAGATION = ("propagation_steps", "propagation_power", "propagation_affinity")
_OF_BACKGROUND = ("background_threshold", "power", "low", "high", "saliency_threshold")
_BY_MASKS: dict[ThresholdSource | None, bool | None] = {"masks": True, "given": None}


@check_arguments
def make_protocol(
    *,
    split: str,
    ids: Sequence[str],
    supervision: Mapping[str, Any],
    settings: Mapping[str, Any],
    threshold: ThresholdSource | None = None,
    threshold_split: str | None = None,
    refine: Sequence[str] = (),
    checkpoint: Mapping[str, Any] | None = None,
    weights: Mapping[str, Any] | None = None,
    background: Mapping[str, Any] | None = None,
    tag_threshold: Mapping[str, Any] | None = None,
    map_kind: str | None = None,
) -> dict[str, Any]:
    """Lists what a score rests on, as JSON values without a path or a name of a machine.

    Args:
        split: name of the split.
        ids: names of the scored images.
        supervision: what was known beside the images; see `supervision_used`.
        settings: arguments of the module, of which views, map and CRF are taken.
        threshold: how the background threshold was chosen; `None` for label images of a network, which need none.
        threshold_split: whose masks it was chosen on, if on any.
        refine: refinements in their order, beside the CRF of a segmentation network.
        checkpoint: name and SHA-256 of the checkpoint, see `describe_file`.
        weights: the same of the weights that its training began with; `None` if unknown.
        background: how background is told from classes ("background", default "fixed") and its numbers by name;
            `None` for label images of a network, which draws it as a class.
        tag_threshold: of predicted tags, see `tag_threshold_used`; `None` where true tags or none were used.
        map_kind: what the class maps are, such as "propagated CAM"; `None` for label images of a network.
    """
    crf = bool(settings.get("crf")) or "dense_crf" in refine
    chosen = f"masks of {threshold_split}" if threshold == "masks" else threshold
    return {
        **describe_software(),
        "checkpoint": None if checkpoint is None else dict(checkpoint),
        "weights": None if weights is None else dict(weights),
        "split": {"name": split, "images": len(ids), "ids_sha256": ids_digest(ids)},
        "supervision": dict(supervision),
        "threshold": chosen,
        "background": None if background is None else _describe_background(background, threshold),
        "tag_threshold": None if tag_threshold is None else dict(tag_threshold),
        **{name: _plain(settings.get(name)) for name in _VIEWS},
        "final_map": settings.get("final_map"),
        "maps": None if map_kind is None else {"kind": map_kind, **{name: settings.get(name) for name in _PROPAGATION}},
        "crf": crf,
        "refine": list(refine),
    }


def supervision_used(
    *,
    tags: str | None,
    settings: Mapping[str, Any],
    training: Mapping[str, bool] | None = None,
    saliency: bool = False,
    proposals: bool = False,
) -> dict[str, Any]:
    """Lists what was known of the images beside their pixels.

    Args:
        tags: "image", "predicted", or "mixed" where photographs without tags are among them; `None`: none were given.
        settings: arguments of the module, which say whether its first head reads prompts.
        training: "seed_dir" and "masks", whether the training began with maps of another model, and was trained on
            the masks of the data set; `None` if unknown, as of checkpoints of older versions.
        saliency: whether saliency maps told the background.
        proposals: whether labels were merged over regions from files of a proposer.
    """
    first = settings.get("first_stage")  # of a classifier behind it
    prompts = [part.get("num_prompts") for part in (settings, first) if isinstance(part, Mapping)]
    return {
        "tags": tags,
        "saliency": saliency,
        "prompts": any(prompts),
        "proposals": proposals,
        "seed_dir": None if training is None else training["seed_dir"],
        "masks": None if training is None else training["masks"],
    }


def _describe_background(background: Mapping[str, Any], threshold: ThresholdSource | None) -> dict[str, Any]:
    """How the background was told: None for a number that it does not read, and for whether masks chose a given one."""
    kind = background.get("background", "fixed")
    numbers = {name: background.get(name) for name in _OF_BACKGROUND}
    return {"kind": kind, **numbers, "by_masks": _BY_MASKS.get(threshold, False)}


@check_arguments
def tag_threshold_used(
    tags: TagsOnRecord | None, *, given: float | None, calibrated: bool, default: float
) -> dict[str, Any] | None:
    """Says how the probability was chosen above which a tag is predicted.

    Args:
        tags: whose tags were used; of true ones there is no threshold.
        given: the number that the user has given, if any.
        calibrated: whether there is one for each class, fitted to tags of photographs without a mask.
        default: what holds where it is neither given nor calibrated.

    Returns:
        "chosen": "given", "calibrated" or "default"; and "value", `None` where each class has its own.
    """
    if tags not in ("predicted", "mixed"):
        return None
    if given is not None:
        return {"chosen": "given", "value": given}
    return {"chosen": "calibrated", "value": None} if calibrated else {"chosen": "default", "value": default}


@check_arguments
def tags_used(tags: Literal["image", "predicted"], known: Iterable[bool]) -> TagsOnRecord:
    """Whose tags were used of photographs of which some have none: theirs are predicted.

    Args:
        tags: "image": true tags wherever there are some.
        known: of each photograph, whether it has tags.

    Returns:
        "mixed" if both were.

    Example:
        >>> tags_used("image", [True, False]), tags_used("image", [True, True])
        ('mixed', 'image')
    """
    if tags == "predicted":
        return tags
    found = set(known)
    return "mixed" if len(found) == 2 else "predicted" if found == {False} else "image"


def describe_file(path: str | Path | None) -> dict[str, str | None] | None:
    """Name and SHA-256 of a file; `None` without one, and no digest for a checkpoint that is a folder."""
    if path is None:
        return None
    file = Path(path)
    try:
        known = file.stat()
        whole = file.is_file()
        return {"file": file.name, "sha256": _digest(file, known.st_size, known.st_mtime_ns) if whole else None}
    except OSError:
        return {"file": file.name, "sha256": None}


@functools.lru_cache(maxsize=64)
def _digest(file: Path, size: int, modified: int) -> str:
    """SHA-256 of a file, read once as long as its size and time stay; checkpoints are large."""
    return file_sha256(file)


def describe_software() -> dict[str, Any]:
    """Versions of what computed the score, and the commit of this library where it runs from a checkout."""
    versions: dict[str, str | None] = {"rca_lightning": __version__}
    for name, distributions in _PACKAGES.items():
        versions[name] = next(filter(None, map(_version, distributions)), None)
    return {"versions": versions, "commit": _own_commit()}


@functools.cache
def _own_commit() -> str | None:
    """Commit of the code that runs, which is that of the first time it is asked for."""
    return library_commit()


def library_commit(package: Path | None = None) -> str | None:
    """Git commit of the checkout that the library runs from, with "-dirty" if files were changed since.

    Args:
        package: folder of the library; default this one.

    Returns:
        40 hexadecimal digits; `None` where the library is installed, or git is not.
    """
    package = Path(__file__).resolve().parents[1] if package is None else package
    root = package.parents[1]
    # Not the commit of another project, in whose folder the library was installed.
    if package.parent.name != "src" or not (root / ".git").exists():
        return None
    words = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
