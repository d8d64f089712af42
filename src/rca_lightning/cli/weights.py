"""The command `rca weights`: lists, downloads and verifies published weights of the backbones."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from rca_lightning.backbones.registry import REGISTRY, UNPUBLISHED, PublishedWeights, find_weights, weights_file
from rca_lightning.errors import WeightsError
from rca_lightning.io.download import cache_folder, check_sha256, file_sha256


def main(words: Sequence[str]) -> None:
    """Lists, downloads or verifies published weights.

    Args:
        words: what stands after `rca weights`.

    Raises:
        RCAError: for weights that are not known, cannot be downloaded or have another checksum.
        SystemExit: for words that cannot be parsed, and after `--help`.
    """
    given = _parser().parse_args(list(words))
    if given.action == "list":
        print("\n".join(_table()))
        return
    entries = [find_weights(name) for name in given.backbone]
    if given.action == "fetch":
        for entry in entries:
            print(f"{entry.backbone}: {weights_file(entry)}", flush=True)
    elif given.file is not None:
        _verify_file(given.file, entries)
    else:
        _verify_cache(entries)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rca weights",
        description="Published weights by name, as --model.weights imagenet takes them. They are kept in the folder "
        "that the environment variable RCA_CACHE names, ~/.cache/rca_lightning by default.",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="{list,fetch,verify}")
    about = "Lists address, licence and input convention of each, and whether it is in the cache folder."
    actions.add_parser("list", help="address, licence, input convention", description=about, allow_abbrev=False)
    about = "Downloads weights into the cache folder, verifies them and prints where they are."
    fetch = actions.add_parser("fetch", help="download into the cache folder", description=about, allow_abbrev=False)
    fetch.add_argument("backbone", nargs="+", help="such as resnet50")
    about = "Compares files with the SHA-256 of the published ones. Nothing is downloaded."
    verify = actions.add_parser(
        "verify", help="compare files with their SHA-256", description=about, allow_abbrev=False
    )
    verify.add_argument("backbone", nargs="*", help="such as resnet50 (default: all that are in the cache folder)")
    verify.add_argument("--file", type=Path, help="a file elsewhere, instead of the cache folder")
    return parser


def _table() -> Iterator[str]:
    rows = [("backbone", "weights", "stride_in", "licence", "cached", "address")]
    for entry in REGISTRY:
        cached = "yes" if entry.path.is_file() else "no"
        rows.append((entry.backbone, entry.name, entry.stride_in, entry.licence, cached, entry.url))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    yield ""
    for channels, mean, std in sorted({(entry.channels, entry.mean, entry.std) for entry in REGISTRY}):
        yield f"images: {channels} in 0..1, less {mean}, divided by {std}; the library does it"
    yield f"licence: of {', '.join(sorted({entry.source for entry in REGISTRY}))}; ImageNet has terms of its own"
    yield f"none known: {', '.join(UNPUBLISHED)}; give a local file as weights"
    yield f"cache folder: {cache_folder()} (environment variable RCA_CACHE)"


def _verify_file(path: Path, entries: list[PublishedWeights]) -> None:
    if not path.is_file():
        raise WeightsError(f"file={str(path)!r}: there is no such file; give the path of a weights file")
    digest = file_sha256(path)
    found = next((entry for entry in entries or REGISTRY if entry.sha256 == digest), None)
    if found is None:
        meant = ", ".join(entry.backbone for entry in entries) or "any backbone"
        raise WeightsError(
            f"file={str(path)!r} has the SHA-256 {digest}, which no published weights of {meant} have: "
            "it is damaged, or another file (rca weights list has the addresses)"
        )
    print(f"verified: {path} is {found.name} of {found.backbone}")


def _verify_cache(entries: list[PublishedWeights]) -> None:
    found = entries or [entry for entry in REGISTRY if entry.path.is_file()]
    if not found:
        print(f"nothing to verify in {cache_folder()}; rca weights fetch BACKBONE downloads")
    problems = []
    for entry in found:
        if not entry.path.is_file():
            problems.append(f"there is no {entry.path}; get it by rca weights fetch {entry.backbone}")
            continue
        try:
            check_sha256(entry.path, entry.sha256)
        except WeightsError as error:
            problems.append(f"{error}: remove it, then rca weights fetch {entry.backbone}")
        else:
            print(f"verified: {entry.path} is {entry.name} of {entry.backbone}")
    if problems:
        raise WeightsError("; ".join(problems))
