"""Merges scores over the regions of a proposer: masks of any model, superpixels of a file, or our own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.data.coco_shapes import decode_rle
from rca_lightning.data.images import open_image
from rca_lightning.errors import ArgumentError, DataError, require_extra
from rca_lightning.io.listing import list_by_stem, require_folder, require_regular_file

SCALE = 50.0
"""Of `superpixels`: the larger, the larger they are."""

LEAST_PIXELS = 50
"""Of a superpixel."""

_ENDINGS = frozenset({".json", ".png"})
_MOST = 20_000  # masks of a photograph; automatic masks of SAM are a few hundred
_REMEDY = "make it anew, or take it out of proposals_dir: the scores of its photograph then stay as they are"
_GREY = frozenset({"P", "L", "1", "I"})


def merge_over_segments(scores: Tensor, segments: Tensor) -> Tensor:
    """Gives all pixels of a segment the mean of its scores; pixels in none keep theirs.

    Args:
        scores: `(C, H, W)`, background and classes.
        segments: `(H, W)` integers, 0 or above: 0 in no segment, else which.

    Returns:
        `(C, H, W)`, of the type of the scores.

    Raises:
        ArgumentError: for segments of another size, or negative ones.

    Example:
        >>> scores, segments = torch.tensor([[[0.0, 1.0, 0.25]]]), torch.tensor([[5, 5, 0]])
        >>> merge_over_segments(scores, segments)
        tensor([[[0.5000, 0.5000, 0.2500]]])
    """
    if segments.shape != scores.shape[1:] or segments.is_floating_point():
        raise ArgumentError("segments", f"{tuple(segments.shape)} {segments.dtype}", "give (H, W) integers, as scores")
    if segments.numel() and int(segments.min()) < 0:
        raise ArgumentError("segments", int(segments.min()), "give 0 for no segment, and numbers above")
    known, numbers = torch.unique(segments.to(scores.device), return_inverse=True)  # (N,), (H, W)
    flat, numbers = scores.flatten(1), numbers.flatten()
    sums = flat.new_zeros(len(scores), len(known), dtype=torch.float64).index_add_(1, numbers, flat.double())
    counts = torch.bincount(numbers, minlength=len(known))
    means = (sums / counts).to(scores.dtype)[:, numbers].reshape(scores.shape)
    return torch.where(segments.to(scores.device) == 0, scores, means)


def merge_over_masks(scores: Tensor, masks: Iterator[Tensor]) -> Tensor:
    """Gives each pixel the means of the scores over the masks that cover it; pixels in none keep theirs.

    Of several masks each counts with one over the square root of its pixels: small ones follow edges, large ones know
    the object.

    Args:
        scores: `(C, H, W)`, background and classes.
        masks: each `(H, W)` bool.

    Returns:
        `(C, H, W)`, of the type of the scores.

    Example:
        >>> scores, left = torch.tensor([[[0.0, 1.0, 0.25]]]), torch.tensor([[True, True, False]])
        >>> merge_over_masks(scores, iter([left]))
        tensor([[[0.5000, 0.5000, 0.2500]]])
    """
    values = scores.double()
    sums, total = torch.zeros_like(values), values.new_zeros(values.shape[1:])
    for mask in masks:
        inside = mask.to(values.device)
        pixels = int(inside.sum())
        if pixels:
            sums[:, inside] += values[:, inside].mean(dim=1, keepdim=True) / pixels**0.5
            total[inside] += pixels**-0.5
    return torch.where(total > 0, sums / total.clamp_min(torch.finfo(total.dtype).tiny), values).to(scores.dtype)


@dataclass(frozen=True)
class Proposals:
    """Regions of one photograph: segments, or masks that may overlap.

    Attributes:
        size: height and width of the photograph.
        segments: `(H, W)` integers; see `merge_over_segments`. None if there are masks.
        codes: masks in the run-length code of pycocotools, for masks themselves would fill the memory.
    """

    size: tuple[int, int]
    segments: Tensor | None
    codes: tuple[dict[str, Any], ...] = ()

    def merge(self, scores: Tensor) -> Tensor:
        """Merges scores `(C, h, w)` of the photograph, or of one that was made smaller; see the functions above."""
        size = (scores.shape[1], scores.shape[2])
        if self.segments is not None:
            return merge_over_segments(scores, _resized(self.segments, size))
        return merge_over_masks(scores, (_resized(mask, size) for mask in self._masks()))

    def _masks(self) -> Iterator[Tensor]:
        from pycocotools import mask as coco_mask

        for code in self.codes:
            yield torch.from_numpy(coco_mask.decode(code)).bool()


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(image.shape) == size:
        return image
    # As float64, which holds every number of a segment.
    return F.interpolate(image[None, None].double(), size, mode="nearest-exact")[0, 0].to(image.dtype)


def superpixels(picture: Tensor, *, scale: float = SCALE, least_pixels: int = LEAST_PIXELS) -> Proposals:
    """Divides a photograph into superpixels along its edges, by scikit-image (Felzenszwalb & Huttenlocher, IJCV 2004).

    Args:
        picture: `(3, H, W)` in `[0, 1]`.
        scale: the larger, the larger they are; edges decide how large each is.
        least_pixels: of a superpixel.

    Raises:
        MissingExtraError: without the extra `superpixels`.
    """
    package = require_extra("skimage.segmentation", extra="superpixels", needed_for="refine=proposals without a folder")
    colours = picture.detach().permute(1, 2, 0).cpu().double().numpy()  # (3, H, W) -> (H, W, 3)
    found = package.felzenszwalb(colours, scale=scale, sigma=0.8, min_size=least_pixels, channel_axis=-1)
    segments = torch.from_numpy(np.ascontiguousarray(found, dtype=np.int64)) + 1
    return Proposals((picture.shape[1], picture.shape[2]), segments)


def read_proposals(path: Path, *, size: tuple[int, int]) -> Proposals:
    """Reads the proposals of a photograph.

    Args:
        path: a JSON file: a list of masks, or an object with such a list as `annotations`, each with `segmentation` in
            COCO's run-length code, `{"size": [H, W], "counts": ...}`, compressed or not, as SAM writes them. Or a PNG
            of numbers, palette, 8-bit or 16-bit grey: one number a segment, 0 in none.
        size: height and width of the photograph.

    Raises:
        DatasetNotFoundError: no such file.
        DataError: a file of another kind, damaged, or of another size.
    """
    if path.suffix.lower() == ".json":
        return Proposals(size, None, tuple(_read_codes(path, size)))
    with open_image(path) as image:
        if not (image.mode in _GREY or image.mode.startswith("I;16")):
            raise DataError(f"{path}: a colour image ({image.mode}), not one number a segment; {_REMEDY}")
        segments = np.asarray(image).astype(np.int64)
    if segments.shape != size:
        raise _other_size(path, list(segments.shape), size)
    if segments.size and segments.min() < 0:
        raise DataError(f"{path}: {segments.min()} is no number of a segment; {_REMEDY}")
    return Proposals(size, torch.from_numpy(segments))


def _read_codes(path: Path, size: tuple[int, int]) -> Iterator[dict[str, Any]]:
    from pycocotools import mask as coco_mask

    for number, mask in enumerate(_masks(path), start=1):
        code = mask.get("segmentation") if isinstance(mask, dict) else None
        if not isinstance(code, dict):
            raise DataError(f"{path}: mask {number} has no segmentation in COCO's run-length code; {_REMEDY}")
        if code.get("size") != list(size):
            raise _other_size(path, code.get("size"), size)
        region = decode_rle(code, height=size[0], width=size[1], where=f"{path}, mask {number}")
        yield coco_mask.encode(np.asfortranarray(region, dtype=np.uint8))


def _masks(path: Path) -> list[Any]:
    require_regular_file(path, remedy=_REMEDY)
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise DataError(f"{path}: not JSON ({error}); {_REMEDY}") from error
    masks = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(masks, list):
        raise DataError(f"{path}: no list of masks, and no object with one as annotations; {_REMEDY}")
    if len(masks) > _MOST:
        raise DataError(f"{path}: {len(masks)} masks, more than {_MOST}; {_REMEDY}")
    return masks


def _other_size(path: Path, found: Any, size: tuple[int, int]) -> DataError:
    return DataError(f"{path}: proposals of size {found}, but the photograph has {list(size)} pixels; {_REMEDY}")


class ProposalFolder:
    """Proposals of photographs, `<id>.json` or `<id>.png`; see `read_proposals`.

    Args:
        folder: it.

    Attributes:
        missing: photographs that were asked for and have no file.

    Raises:
        DatasetNotFoundError: no such folder.
        DataError: no file in it, or two of one id.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = require_folder(Path(folder), what="proposals_dir", remedy="give the folder of the proposals")
        self._files = list_by_stem(self.folder, _ENDINGS)
        self.missing = 0
        if not self._files:
            raise DataError(f"proposals_dir={str(folder)!r}: no file <id>.json or <id>.png in it; give another folder")

    def file(self, image_id: str) -> Path | None:
        """The file of a photograph; None without one, which is counted."""
        found = self._files.get(image_id)
        self.missing += found is None
        return found

    def digest(self) -> str:
        """SHA-256 of the names and sizes of the files."""
        digest = hashlib.sha256()
        for image_id, path in self._files.items():
            digest.update(json.dumps([image_id, path.suffix, path.stat().st_size]).encode())
        return digest.hexdigest()

    def summary(self) -> str | None:
        """A line on photographs without proposals; None if there was none."""
        if not self.missing:
            return None
        return f"{self.missing} photographs have no proposals in {self.folder}; their scores were not merged"


def check_proposals(refine: Sequence[str], proposals_dir: str | None) -> None:
    """Refuses a folder of proposals that no refinement reads.

    Raises:
        ArgumentError: naming `proposals_dir`.
    """
    if proposals_dir is not None and "proposals" not in refine:
        remedy = "nothing reads it; give 'proposals' in refine, or leave it out"
        raise ArgumentError("proposals_dir", proposals_dir, remedy)


def describe_proposals(refine: Sequence[str], folder: ProposalFolder | None) -> dict[str, str]:
    """What labels refined by "proposals" depend on, as JSON values; nothing without that refinement."""
    if "proposals" not in refine:
        return {}
    return {"proposals": "superpixels" if folder is None else folder.digest()}
