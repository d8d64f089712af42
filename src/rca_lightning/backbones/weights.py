"""Loads weights from files of tensors, without running code from the file."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rca_lightning.backbones.base import CLASSIFIER_PREFIXES, PaddingMode
from rca_lightning.backbones.registry import WEIGHTS_NAMES, StrideIn, find_weights
from rca_lightning.backbones.resnet import BOTTLENECK_NAMES
from rca_lightning.errors import ArgumentError, RCAError, WeightsError, first_other_class, require_extra
from rca_lightning.io.download import check_sha256, fetch, file_sha256
from rca_lightning.io.tensor_file import TorchScriptError, is_whole, load_tensors, plain_name

logger = logging.getLogger(__name__)

# Of its weights in a checkpoint of `rca fit`; the second in one of a boundary network. A model of timm lies deeper.
BACKBONE_PREFIXES = (
    "network.backbone.model.",
    "network.pyramid.backbone.model.",
    "network.backbone.",
    "network.pyramid.backbone.",
)
CAM_HEAD_PREFIX = "network.coarse_head."
PCA_PREFIX = "network.pca."
# What a network starts with, each of use with the ones before alone.
_START = {"projection": PCA_PREFIX, "CAM head": CAM_HEAD_PREFIX, "prototypes": "network.aggregation."}
LISTED = 20


def load_weights(
    module: nn.Module,
    source: str,
    *,
    sha256: str | None = None,
    ignore_prefixes: tuple[str, ...] = CLASSIFIER_PREFIXES,
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
) -> None:
    """Loads weights into a network, all of them or none, as float32. No code in the file is run.

    Args:
        module: the network; changed in place.
        source: `"none"` (nothing happens), the path of a `.pth` or `.pt` file holding a dictionary of tensors (or a
            dictionary with such a one under `state_dict` or `model`), the path of a `.safetensors` file, or an http(s)
            URL of one of them. Of a checkpoint of `rca fit` the backbone is taken. Downloads are kept in the folder
            that the environment variable `RCA_CACHE` names, `~/.cache/rca_lightning` by default.
        sha256: checksum of the file as 64 hexadecimal digits; needed for a URL, checked for a path too if given.
        ignore_prefixes: keys beginning with one of these are passed over, missing or surplus: the classifier.
            `num_batches_tracked` may be missing too.
        convert: renames the tensors of a published file, see `Backbone.convert_weights`; None: they have the names of
            the network.

    Raises:
        ArgumentError: if `sha256` is malformed, or is missing for a URL.
        WeightsError: if the file is missing or a folder, cannot be downloaded, has another checksum, holds anything
            else than finite tensors, or its keys or shapes are not those of the network.
        MissingExtraError: for a `.safetensors` file without the package safetensors.

    Example:
        >>> network = torch.nn.Linear(2, 1)
        >>> load_weights(network, "none")
    """
    if source == "none":
        return
    path = _locate(source, sha256)
    content = _tensors(path, _content(path))
    content = next((part for prefix in BACKBONE_PREFIXES if (part := _part(content, prefix))), content)
    needed = {key: value for key, value in module.state_dict().items() if not key.startswith(ignore_prefixes)}
    state = _read_part(content, ignore_prefixes)
    if convert is not None and any(_problems(needed, state)):  # names of the network itself are not converted
        state = _nearer(needed, _converted(content, convert, path, ignore_prefixes), state)
    if problems := "; ".join(_problems(needed, state)):
        raise WeightsError(
            f"{path} does not fit {type(module).__name__}: {problems}. "
            "Give the weights of this very network, or 'none' to start from random ones."
        )
    module.load_state_dict(state, strict=False)


def _read_part(content: Mapping[str, Tensor], ignore_prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors of a file that a network reads."""
    return {key: value for key, value in content.items() if not key.startswith(ignore_prefixes)}


def _converted(
    content: dict[str, Tensor],
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    path: Path,
    ignore_prefixes: tuple[str, ...],
) -> dict[str, Tensor]:
    try:
        return _read_part(convert(dict(content)), ignore_prefixes)
    except Exception as error:  # of another package, which may raise anything of tensors of another network
        raise WeightsError(
            f"{path} cannot be converted for this network ({type(error).__name__}: {error}). "
            "Give the weights of this very network, or 'none' to start from random ones."
        ) from error


def _nearer(needed: Mapping[str, Tensor], *states: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first of those states whose names differ least from those that are needed."""
    return min(states, key=lambda state: len(needed.keys() ^ state.keys()))


def load_cam_head(
    head: nn.Module, source: str, *, sha256: str | None = None, class_names: Sequence[str] | None = None
) -> bool:
    """Loads the CAM head, if the file is a checkpoint of the first stage with the same classes and features.

    Args:
        head: a `CAMHead`; changed in place.
        source: as for `load_weights`.
        sha256: as for `load_weights`.
        class_names: of the channels of the head; `None` if unknown. A head of others, or of another order, is not
            loaded.

    Returns:
        Whether it was loaded. The head of a checkpoint with a frozen backbone reads principal components of several
        stages and is not; that is logged.
    """
    if source in ("none", *WEIGHTS_NAMES):
        return False
    path = _locate(source, sha256)
    content = _content(path)
    state = _part(_tensors(path, content), CAM_HEAD_PREFIX)
    if state and any(key.startswith(PCA_PREFIX) for key in _tensors(path, content)):
        logger.info("tag_weight: the tag head begins anew; the CAM head of %s reads principal components", path)
        return False
    taken = bool(state) and not any(_problems(head.state_dict(), state)) and not _other_classes(content, class_names)
    if taken:
        head.load_state_dict(state)
    return taken


def pca_arguments(source: str, *, sha256: str | None = None) -> dict[str, Any] | None:
    """Arguments that a network needs to have the PCA of a checkpoint: `embedding_dim` and `embedding_stages`.

    Args:
        source: as for `load_weights`; no tensor of it is read.
        sha256: as for `load_weights`.

    Returns:
        The arguments; `None` if the file is no checkpoint of `rca fit` with a PCA.
    """
    if source in ("none", *WEIGHTS_NAMES) or source.endswith(".safetensors"):
        return None
    content = _content(_locate(source, sha256), map_location="meta")
    state = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    weight = state.get(f"{PCA_PREFIX}weight") if isinstance(state, Mapping) else None
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        return None
    stages = _arguments(content).get("embedding_stages")
    return {"embedding_dim": len(weight), "embedding_stages": stages if isinstance(stages, int) else None}


def load_frozen_start(
    network: nn.Module, source: str, *, sha256: str | None = None, class_names: Sequence[str] | None = None
) -> None:
    """Loads PCA, CAM head and prototypes of a checkpoint with a frozen backbone; maps are then those of the checkpoint.

    What does not fit, and what reads it, is left as it is. One line says what is taken.

    Args:
        network: an `RCANetwork`; changed in place.
        source: as for `load_weights`; of any other file nothing is taken.
        sha256: as for `load_weights`.
        class_names: of this network; `None` if unknown. Head and prototypes of others are not taken.
    """
    if pca_arguments(source, sha256=sha256) is None:
        return
    path = _locate(source, sha256)
    content = _content(path)
    tensors = _tensors(path, content)
    taken: list[str] = ["backbone"]
    anew: list[str] = []
    reason = "" if getattr(network, "pca", None) is not None else "its projection is not that of this network"
    for name, prefix in _START.items():
        part = getattr(network, prefix.split(".")[1])
        if part is None:
            continue
        state = _part(tensors, prefix)
        reason = reason or next(_problems(part.state_dict(), state), "")
        reason = reason or ("" if prefix == PCA_PREFIX else _other_classes(content, class_names))
        if not reason:
            part.load_state_dict(state)
        (anew if reason else taken).append(name)
    left = f"; anew: {', '.join(anew)} ({reason})" if anew else ""
    logger.info("weights: taken from %s: %s%s", path, ", ".join(taken), left)


def _arguments(content: Any) -> Mapping[str, Any]:
    """Arguments of the module of a checkpoint; none of another file."""
    arguments = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    return arguments if isinstance(arguments, Mapping) else {}


def _other_classes(content: Any, class_names: Sequence[str] | None) -> str:
    """The first class that differs from those of a checkpoint; empty if none does or they are unknown."""
    stored = _arguments(content).get("class_names")
    difference = first_other_class(stored, class_names) if isinstance(stored, list) else None
    return "class {} is {!r} there, {!r} here".format(*difference) if difference else ""


def trained_padding(source: str | None, *, sha256: str | None = None) -> PaddingMode:
    """What the convolutions of weights saw beyond the border when they were trained; see `Backbone.pad_convolutions`.

    Args:
        source: as for `load_weights`; `None` as `"none"`.
        sha256: as for `load_weights`.

    Returns:
        "replicate" for a checkpoint of `rca fit` that was trained so; else "zeros".
    """
    return "replicate" if _trained_with(source, sha256).get("padding_mode") == "replicate" else "zeros"


def trained_stride(source: str | None, *, backbone: str, sha256: str | None = None) -> StrideIn:
    """Which convolution of a bottleneck had the stride when weights were trained; see `ResNet`.

    Args:
        source: as for `load_weights`, or one of `WEIGHTS_NAMES`; `None` as `"none"`.
        backbone: name of the backbone that they are for.
        sha256: as for `load_weights`.

    Returns:
        What the registry says of published weights, what a checkpoint of `rca fit` says of its own; else "3x3".

    Raises:
        ArgumentError: if no published weights of this name are known for the backbone.
    """
    if source in WEIGHTS_NAMES:
        return find_weights(backbone, source).stride_in
    if backbone not in BOTTLENECK_NAMES:
        return "3x3"
    return "1x1" if _trained_with(source, sha256).get("stride_in") == "1x1" else "3x3"


def record_weights(source: str | None, *, backbone: str, sha256: str | None = None) -> dict[str, str | None] | None:
    """Name and SHA-256 of weights, to be kept with what is trained from them; no path.

    Args:
        source: as for `load_weights`, or one of `WEIGHTS_NAMES`.
        backbone: name of the backbone that they are for.
        sha256: as for `load_weights`.

    Returns:
        "file" and "sha256"; `None` for no weights.
    """
    if source in (None, "none"):
        return None
    if source in WEIGHTS_NAMES:
        published = find_weights(backbone, source)
        return {"file": published.path.name, "sha256": published.sha256}
    path = _locate(str(source), sha256)
    return {"file": path.name, "sha256": file_sha256(path)}


def _trained_with(source: str | None, sha256: str | None) -> Mapping[str, Any]:
    """Arguments of the module of a checkpoint; none of any other source. No tensor of it is read."""
    if source is None or source in ("none", *WEIGHTS_NAMES) or source.endswith(".safetensors"):
        return {}
    return _arguments(_content(_locate(source, sha256), map_location="meta"))


def _locate(source: str, sha256: str | None) -> Path:
    """The local file a source stands for, its checksum verified."""
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ArgumentError("sha256", sha256, "give 64 hexadecimal digits, as `sha256sum FILE` prints them")
    if source.startswith(("http://", "https://")):
        return fetch(source, sha256=sha256)
    path = Path(source).expanduser()
    if path.is_dir():
        raise WeightsError(f"weights={source!r}: this is a folder; give the path of the weights file in it")
    if not path.is_file():
        raise WeightsError(
            f"weights={source!r}: there is no such file; give 'imagenet', the path of a weights file, a URL or 'none'"
        )
    if sha256 is not None:
        check_sha256(path, sha256)
    return path


def _content(path: Path, map_location: str = "cpu") -> Any:
    """What a file holds."""
    try:
        return _unpack(path, map_location)
    except RCAError:
        raise
    except TorchScriptError as error:
        raise WeightsError(
            f"{path} was not loaded: it is a TorchScript program, as those of OpenAI's CLIP, and would be run. "
            "Where you trust it, save its tensors alone: torch.save(torch.jit.load(path).state_dict(), other_path)"
        ) from error
    except Exception as error:  # pickle, zip and torch each have errors of their own for a damaged or hostile file
        raise WeightsError(
            f"{path} was not loaded: it is damaged, or holds more than tensors, which could run code. "
            "Save the state dictionary alone: torch.save(network.state_dict(), path)."
        ) from error


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    """The tensors among the content of a file by name, floating point ones as float32."""
    for name in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}; a dictionary of tensors is needed")
    strange = [str(key) for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if strange:
        raise WeightsError(
            f"{path}: {_listing('entries that are not tensors', strange)}; save the state dictionary alone"
        )
    spread = [str(key) for key, value in content.items() if not is_whole(value)]
    if spread:
        raise WeightsError(
            f"{path}: {_listing('tensors without the numbers that their shape says', spread)}; give sound weights"
        )
    return {plain_name(key): value.float() if value.is_floating_point() else value for key, value in content.items()}


def _unpack(path: Path, map_location: str) -> Any:
    if path.suffix == ".safetensors":
        reader = require_extra("safetensors.torch", extra="timm", needed_for="reading .safetensors files")
        return reader.load_file(path)
    return load_tensors(path, map_location=map_location)


def _part(content: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights under a prefix, without it; those of a part of the network in a checkpoint of `rca fit`."""
    return {key.removeprefix(prefix): value for key, value in content.items() if key.startswith(prefix)}


def _problems(needed: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Iterator[str]:
    """What keeps tensors from being the weights that a network needs; nothing where they fit."""
    shared = [key for key in needed if key in state]
    of_another_shape = [key for key in shared if state[key].shape != needed[key].shape]
    shapes = [f"{key} {tuple(state[key].shape)} instead of {tuple(needed[key].shape)}" for key in of_another_shape]
    floating = [key for key in shared if needed[key].is_floating_point()]
    problems = {
        "missing keys": [key for key in needed if key not in state and not key.endswith("num_batches_tracked")],
        "surplus keys": [key for key in state if key not in needed],
        "other shapes": shapes,
        "not floating point": [f"{key} {state[key].dtype}" for key in floating if not state[key].is_floating_point()],
        "NaN or infinite values": [key for key in shared if not bool(torch.isfinite(state[key]).all())],
    }
    yield from (_listing(title, names) for title, names in problems.items() if names)


def _listing(title: str, names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{title} ({len(names)}): {', '.join(names[:LISTED])}{more}"
