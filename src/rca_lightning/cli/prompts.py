"""The command `rca prompts`: text embeddings of classes, for a head that nobody has to train."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rca_lightning.cli.console import load
from rca_lightning.data.classes import COCO_CLASSES, VOC_CLASSES, read_class_file
from rca_lightning.io.atomic import check_writable

_NAMED = {"voc2012": VOC_CLASSES, "coco": COCO_CLASSES}


def main(words: Sequence[str]) -> None:
    """Writes the text embeddings of classes and of the background, and prints one line about them.

    Args:
        words: what stands after `rca prompts`.

    Raises:
        RCAError: for arguments and files that cannot be used, or without open_clip.
        SystemExit: for words that cannot be parsed, and after `--help`.
    """
    given = _parser().parse_args(list(words))
    names = _NAMED.get(given.classes) or read_class_file(Path(given.classes))
    check_writable("out", given.out.parent)
    # torch takes seconds to be imported: only for words that can be used.
    prompts = load("rca_lightning.backbones.prompts")
    texts = prompts.read_prompt_texts(given.prompts)
    weights = None if given.weights == "none" else given.weights
    embeddings = prompts.embed_prompts(names, texts, model=given.model, weights=weights)
    embeddings.write(given.out, background_names=texts.background)
    print(f"text embeddings of {len(names)} classes and {len(texts.background)} of the background: {given.out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rca prompts",
        description="Text embeddings of classes by a language-image model (extra clip), for rca fit --model.prompts. "
        "Nothing is downloaded.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--classes", required=True, metavar="FILE", help=f"classes, one a line; or {' or '.join(_NAMED)}")
    add("--out", required=True, type=Path, metavar="FILE", help="npz file to write")
    add("--weights", required=True, metavar="FILE", help="both towers, as open_clip has them; none for random ones")
    add("--model", default="ViT-B-16-quickgelu", help="of open_clip (default: %(default)s, OpenAI's ViT-B/16)")
    add("--prompts", type=Path, metavar="FILE", help="YAML with templates, synonyms, background in place of ours")
    return parser
