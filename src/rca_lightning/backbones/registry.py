"""Published weights of the backbones by name: address, checksum, input convention, licence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rca_lightning.errors import ArgumentError, WeightsError
from rca_lightning.io.download import cache_folder, check_sha256, fetch

WEIGHTS_NAMES = ("imagenet",)
_FOLDER = "https://download.pytorch.org/models/"


@dataclass(frozen=True)
class PublishedWeights:
    """Weights that somebody publishes for one backbone.

    All are for RGB in 0..1, less ImageNet's mean and divided by its deviation.

    Attributes:
        backbone: name of the backbone.
        url: where the file is.
        sha256: checksum of the file, 64 hexadecimal digits.
        name: what `weights` is given for them.
        stride_in: the convolution of a bottleneck that has the stride.
        licence: of the publisher's repository.
        source: the publisher.
    """

    backbone: str
    url: str
    sha256: str
    name: str = "imagenet"
    stride_in: str = "3x3"
    licence: str = "BSD-3-Clause"
    source: str = "https://github.com/pytorch/vision"

    @property
    def path(self) -> Path:
        """Where a file put by hand into the cache folder is looked for."""
        return cache_folder() / self.url.rsplit("/", 1)[-1]


REGISTRY = (
    PublishedWeights(
        "resnet18",
        f"{_FOLDER}resnet18-f37072fd.pth",
        "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
    ),
    PublishedWeights(
        "resnet34",
        f"{_FOLDER}resnet34-b627a593.pth",
        "b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f",
    ),
    PublishedWeights(
        "resnet50",
        f"{_FOLDER}resnet50-0676ba61.pth",
        "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
    ),
    PublishedWeights(
        "resnet101",
        f"{_FOLDER}resnet101-63fe2227.pth",
        "63fe2227b86e8f1f2063f43a75c84d195911b6a0eace650907dd3dc62dd49a0a",
    ),
    PublishedWeights(
        "vgg16",
        f"{_FOLDER}vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    ),
)
UNPUBLISHED = ("resnet14", "resnet38d")  # no address that is confirmed


def published_file(backbone: str, name: str, *, stride_in: str = "3x3") -> Path:
    """Find the file of weights by name: in the cache folder, else by download.

    Raises:
        ArgumentError: if nothing of this name is known for the backbone, or it has its strides elsewhere.
        WeightsError: if it cannot be downloaded or has another checksum.
    """
    entry = next((entry for entry in REGISTRY if (entry.backbone, entry.name) == (backbone, name)), None)
    if entry is None:
        known = ", ".join(entry.backbone for entry in REGISTRY if entry.name == name)
        remedy = f"none are known for {backbone}; give a local file (--model.weights FILE), or take one of {known}"
        raise ArgumentError("weights", name, remedy)
    if stride_in != entry.stride_in:
        raise ArgumentError("stride_in", stride_in, f"weights={name!r} has it in {entry.stride_in!r}; give that")
    if entry.path.is_file():
        check_sha256(entry.path, entry.sha256)
        return entry.path
    try:
        return fetch(entry.url, sha256=entry.sha256)
    except WeightsError as error:
        reason = error.__cause__ or error
        raise WeightsError(
            f"weights={name!r}: {entry.url} cannot be downloaded ({reason}). "
            f"Put the file at {entry.path}, or give a local file (--model.weights FILE)"
        ) from error
