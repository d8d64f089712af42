"""Embeddings of class names by the text tower of a language-image model: made once, kept in an npz file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from rca_lightning.arguments import check_arguments
from rca_lightning.errors import ArgumentError, DataError, WeightsError, require_extra
from rca_lightning.io.atomic import output_errors, write_atomically
from rca_lightning.io.listing import require_regular_file
from rca_lightning.io.npz import read_npz
from rca_lightning.io.tensor_file import load_tensors

_log = logging.getLogger(__name__)

_PARTS = ("templates", "synonyms", "background")
_MOST_PROMPTS, _MOST_NUMBERS = 4096, 2**24
_BATCH = 256  # texts a step
_REMEDY = "make it by rca prompts, or with arrays `embeddings` (P, D) and `names` (P,) of text"


@dataclass(frozen=True)
class PromptTexts:
    """What is asked of each class.

    Attributes:
        templates: sentences with one `{}` for the name.
        synonyms: words that stand for a class in place of its name.
        background: names of what is behind the objects.
    """

    templates: tuple[str, ...]
    synonyms: dict[str, tuple[str, ...]]
    background: tuple[str, ...]

    def of(self, name: str) -> list[str]:
        """Sentences of a class or of a part of the background.

        Example:
            >>> PromptTexts(("a photo of a {}.",), {"tv": ("television", "screen")}, ()).of("tv")
            ['a photo of a television.', 'a photo of a screen.']
        """
        words = self.synonyms.get(name, (name.replace("_", " "),))
        return [template.replace("{}", word) for word in words for template in self.templates]


def read_prompt_texts(path: Path | None = None) -> PromptTexts:
    """Read templates, synonyms and background from YAML; what the file leaves out is taken from the library's own.

    Args:
        path: the file; None for the library's own.

    Raises:
        DatasetNotFoundError: no such file.
        DataError: it is no YAML, has other parts, or a template has not one `{}`.
    """
    own = yaml.safe_load(resources.files(__package__).joinpath("prompts.yaml").read_text(encoding="utf-8"))
    given: Any = {}
    if path is not None:
        require_regular_file(path, remedy="give a YAML file with templates, synonyms and background")
        try:
            given = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: no YAML ({' '.join(str(error).split())}); correct it") from error
    if not isinstance(given, dict) or set(given) - set(_PARTS):
        found = ", ".join(map(str, given)) if isinstance(given, dict) else type(given).__name__
        raise DataError(f"{path}: has {found}; the parts are {', '.join(_PARTS)}")
    content = own | given
    templates, background = (_words(content[name], f"{path}: {name}") for name in ("templates", "background"))
    for template in templates:
        if template.count("{}") != 1:
            raise DataError(f"{path}: template {template!r}; write one {{}} where the name of the class goes")
    if not templates:
        raise DataError(f"{path}: templates is empty; write at least '{{}}'")
    synonyms = content["synonyms"]
    if not isinstance(synonyms, dict):
        raise DataError(f"{path}: synonyms is no mapping; write a line a class, such as 'tv: [television, screen]'")
    of_class = {str(name): _words(words, f"{path}: synonyms of {name}") for name, words in synonyms.items()}
    for name, words in of_class.items():
        if not words:
            raise DataError(f"{path}: synonyms of {name!r} is empty; write a word, or leave the line out")
    return PromptTexts(templates, of_class, background)


def _words(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) and word.strip() for word in value):
        raise DataError(f"{where} is no list of texts; write [word, word], numbers and yes or no in quotes")
    return tuple(value)


@dataclass(frozen=True)
class TextEmbeddings:
    """Unit vectors of L classes, and of the background behind them.

    Attributes:
        classes: `(L, D)` float32.
        background: `(G, D)` float32; G may be 0.
        class_names: names of the L classes.
        source: which model made them.
    """

    classes: Tensor
    background: Tensor
    class_names: tuple[str, ...]
    source: str = "unknown"

    def write(self, path: Path, *, background_names: Sequence[str]) -> None:
        """Write an npz file that `read_text_embeddings` reads, whole or not at all.

        Raises:
            OutputError: the file cannot be written.
        """
        arrays = {
            "embeddings": torch.cat([self.classes, self.background]).numpy(),
            "names": np.array([*self.class_names, *background_names]),
            "source": np.array(self.source),
        }
        with output_errors("out", path):
            write_atomically(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def read_text_embeddings(path: Path, class_names: Sequence[str]) -> TextEmbeddings:
    """Read text embeddings of any model: arrays `embeddings` `(P, D)` and `names` `(P,)`.

    Rows whose names are classes are those of the classes, in the order of `class_names`; all others are background.

    Args:
        path: the npz file; nothing of it is unpickled.
        class_names: the classes.

    Raises:
        DatasetNotFoundError: no such file.
        DataError: damaged, of another form, not finite, or without a row for a class.
    """
    arrays = read_npz(path, {"embeddings": _MOST_NUMBERS, "names": _MOST_PROMPTS}, remedy=_REMEDY, texts=("names",))
    embeddings, names = torch.from_numpy(arrays["embeddings"]).float(), [str(name) for name in arrays["names"].flat]
    if embeddings.ndim != 2 or len(embeddings) != len(names):
        shape = tuple(embeddings.shape)
        raise DataError(f"{path}: embeddings of shape {shape} and {len(names)} names; give one row a name; {_REMEDY}")
    if not torch.isfinite(embeddings).all() or not embeddings.square().sum(dim=1).all():
        raise DataError(f"{path}: an embedding is zero or not finite; {_REMEDY}")
    rows = {name: row for row, name in enumerate(names)}
    if len(rows) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}: {twice!r} stands there more than once; keep one row")
    missing = [name for name in class_names if name not in rows]
    if missing:
        raise DataError(f"{path}: no embedding of the class {missing[0]!r}; make the file with --classes of this data")
    own = [rows[name] for name in class_names]
    rest = [row for name, row in rows.items() if name not in set(class_names)]
    embeddings = F.normalize(embeddings, dim=1)
    return TextEmbeddings(embeddings[own], embeddings[rest], tuple(class_names))


def count_text_embeddings(path: Path) -> int:
    """Count the rows of a file that `read_text_embeddings` reads.

    Raises:
        DatasetNotFoundError: no such file.
        DataError: damaged or of another form.
    """
    return int(read_npz(path, {"names": _MOST_PROMPTS}, remedy=_REMEDY, texts=("names",))["names"].size)


@torch.no_grad()
def mean_embeddings(encode: Callable[[list[str]], Tensor], texts: PromptTexts, names: Sequence[str]) -> Tensor:
    """Mean direction of the sentences of each name.

    Args:
        encode: gives `(T, D)` for T sentences.
        texts: the sentences.
        names: of classes or parts of the background.

    Returns:
        `(len(names), D)` float32 of length 1.
    """
    means = []
    for name in names:
        sentences = texts.of(name)
        parts = [encode(sentences[start : start + _BATCH]) for start in range(0, len(sentences), _BATCH)]
        means.append(F.normalize(torch.cat(parts).float(), dim=1).mean(dim=0))
    return F.normalize(torch.stack(means), dim=1) if means else torch.zeros(0, 0)


@check_arguments
def embed_prompts(
    class_names: Sequence[str],
    texts: PromptTexts,
    *,
    model: str = "ViT-B-16-quickgelu",
    weights: str | Path | None,
) -> TextEmbeddings:
    """Embed classes and background with the text tower of a model of open_clip (extra `clip`).

    Args:
        class_names: the classes.
        texts: what is asked.
        model: name in `open_clip.list_models()`. OpenAI's weights want the names that end in `-quickgelu`.
        weights: file of both towers in the form of open_clip: .safetensors, or .pt with tensors only. None: random
            ones, to try the path.

    Raises:
        MissingExtraError: without open_clip.
        ArgumentError: for a model that open_clip does not know.
        WeightsError: for a file that is not there, is no file of tensors, or of another model.
        DataError: for the name of a class that is in the background too.
    """
    open_clip: Any = require_extra("open_clip", extra="clip", needed_for="text embeddings")
    both = set(class_names) & set(texts.background)
    if both:
        raise DataError(f"{min(both)!r} is a class and in the background; take it out of one (--prompts FILE)")
    if model not in open_clip.list_models():
        raise ArgumentError("model", model, "open_clip has no model of this name; see open_clip.list_models()")
    network = open_clip.create_model(model, pretrained=None, load_weights=False).eval()
    if weights is None:
        _log.warning("weights=None: text embeddings of random weights say nothing")
    else:
        _load(open_clip, network, Path(weights))
    tokenizer = open_clip.get_tokenizer(model)
    rows = mean_embeddings(
        lambda lines: network.encode_text(tokenizer(lines)), texts, [*class_names, *texts.background]
    )
    source = f"{model}, {'random weights' if weights is None else Path(weights).name}"
    return TextEmbeddings(rows[: len(class_names)], rows[len(class_names) :], tuple(class_names), source)


def _load(open_clip: Any, network: torch.nn.Module, path: Path) -> None:
    if not path.is_file():
        raise WeightsError(
            f"weights={str(path)!r}: there is no such file; give one of both towers, as open_clip has it"
        )
    try:
        if path.suffix != ".safetensors":
            load_tensors(path, map_location="meta")  # refuses programs and objects, before anything else reads them
        missing = open_clip.load_checkpoint(network, str(path), strict=True, weights_only=True)
    except Exception as error:  # pickle, zip, safetensors and torch each have errors of their own
        reason = " ".join(str(error).split())[:300]
        remedy = "give a .safetensors of open_clip; OpenAI's own .pt are programs and are not run"
        raise WeightsError(f"weights={str(path)!r} cannot be loaded ({reason}); {remedy}") from error
    if getattr(missing, "missing_keys", None):
        raise WeightsError(f"weights={str(path)!r}: without {missing.missing_keys[0]}; give both towers")
