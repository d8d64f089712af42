"""Published weights of the backbones by name: address, checksum, input convention, licence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rca_lightning.arguments import check_arguments
from rca_lightning.constants import IMAGENET_MEAN, IMAGENET_STD
from rca_lightning.errors import ArgumentError, OutputError, WeightsError
from rca_lightning.io.download import cache_folder, check_sha256, fetch

WEIGHTS_NAMES = ("imagenet",)
StrideIn = Literal["3x3", "1x1"]
"""The convolution of a bottleneck that has the stride: that of weights decides, 1x1 those of ResNet v1."""

_FOLDER = "https://download.pytorch.org/models/"


@check_arguments
@dataclass(frozen=True)
class PublishedWeights:
    """Weights that somebody publishes for one backbone.

    Attributes:
        backbone: name of the backbone.
        url: where the file is.
        sha256: checksum of the file, 64 hexadecimal digits.
        name: what `weights` is given for them.
        stride_in: the convolution of a bottleneck that has the stride.
        channels: their order in the images.
        mean: of each channel, subtracted from images in 0..1.
        std: of each channel, which images are divided by.
        licence: of the publisher's repository.
        source: the publisher.
    """

    backbone: str
    url: str
    sha256: str
    name: str = "imagenet"
    stride_in: StrideIn = "3x3"
    channels: Literal["RGB", "BGR"] = "RGB"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    licence: str = "BSD-3-Clause"
    source: str = "https://github.com/pytorch/vision"

    @property
    def path(self) -> Path:
        """Where the file is in the cache folder, downloaded or put there by hand."""
        return cache_folder() / self.url.rsplit("/", 1)[-1]


# torchvision's IMAGENET1K_V1. A file's name has the first eight digits of its checksum.
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
# Of resnet14 none are known. Those of resnet38d are a file of MXNet without a checksum.
UNPUBLISHED = ("resnet14", "resnet38d")


def find_weights(backbone: str, name: str = "imagenet") -> PublishedWeights:
    """Look published weights up.

    Raises:
        ArgumentError: if none of this name are known for the backbone.

    Example:
        >>> find_weights("resnet50").stride_in
        '3x3'
    """
    for entry in REGISTRY:
        if (entry.backbone, entry.name) == (backbone, name):
            return entry
    known = ", ".join(entry.backbone for entry in REGISTRY if entry.name == name)
    remedy = f"none are known for {backbone}; give a local file as weights, or take one of {known}"
    raise ArgumentError("weights", name, remedy)


def weights_file(entry: PublishedWeights) -> Path:
    """Find the file of published weights: in the cache folder, else by download.

    Raises:
        WeightsError: if it cannot be downloaded, or the one in the cache folder has another checksum.
        OutputError: if the cache folder takes no files.
    """
    if entry.path.is_file():
        try:
            check_sha256(entry.path, entry.sha256)
        except WeightsError as error:  # somebody may have put it there by hand, so it is not replaced
            raise WeightsError(f"{error}, or remove this one and it is downloaded") from error
        return entry.path
    otherwise = "give a local file as weights"
    try:
        return fetch(entry.url, sha256=entry.sha256, name=entry.path.name)
    except OutputError as error:
        raise OutputError(f"{error}, or {otherwise}") from error
    except WeightsError as error:
        reason = error.__cause__ or error
        raise WeightsError(
            f"weights={entry.name!r}: {entry.url} cannot be downloaded ({reason}). "
            f"Put the file at {entry.path}, or {otherwise}"
        ) from error
