"""Scores merged over proposals, against plain loops in float64, and files of proposals, sound and wrong."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from rca_lightning.errors import ArgumentError, DataError, DatasetNotFoundError, MissingExtraError
from rca_lightning.pseudo_labels import refinement
from rca_lightning.pseudo_labels.generator import PseudoLabelGenerator
from rca_lightning.pseudo_labels.proposals import (
    ProposalFolder,
    Proposals,
    check_proposals,
    describe_proposals,
    merge_over_masks,
    merge_over_segments,
    read_proposals,
    superpixels,
)
from rca_lightning.pseudo_labels.refinement import refine_scores
from rca_lightning.rca.inference import ClassMaps

with_superpixels = pytest.mark.skipif(
    importlib.util.find_spec("skimage") is None, reason="scikit-image (extra 'superpixels') is not installed"
)
SIZE = (12, 17)


def random_scores(count: int = 3) -> torch.Tensor:
    return torch.rand(count, *SIZE, generator=torch.Generator().manual_seed(count))


def random_segments() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).choice([0, 1, 7, 65_000, 4_000_000_000], SIZE))


def merged_by_loops(scores: np.ndarray, segments: np.ndarray) -> np.ndarray:
    merged = scores.astype(np.float64).copy()
    for value in set(segments.ravel().tolist()) - {0}:
        pixels = [(r, c) for r in range(SIZE[0]) for c in range(SIZE[1]) if segments[r, c] == value]
        for channel in range(len(scores)):
            mean = sum(float(scores[channel, r, c]) for r, c in pixels) / len(pixels)
            for r, c in pixels:
                merged[channel, r, c] = mean
    return merged


def test_merged_scores_are_means_over_segments():
    scores, segments = random_scores(), random_segments()
    found = merge_over_segments(scores, segments)
    np.testing.assert_allclose(found.numpy(), merged_by_loops(scores.numpy(), segments.numpy()), atol=1e-7)
    assert found.dtype == torch.float32
    again = merge_over_segments(found, segments)
    torch.testing.assert_close(again, found)
    assert torch.equal(merge_over_segments(scores, torch.zeros(SIZE, dtype=torch.int64)), scores)


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        (torch.zeros(5, 5, dtype=torch.int64), "give \\(H, W\\) integers"),
        (torch.zeros(SIZE), "float32"),
        (torch.full(SIZE, -1), "segments=-1: give 0 for no segment"),
    ],
)
def test_segments_that_do_not_fit_are_refused(segments, message):
    with pytest.raises(ArgumentError, match=message):
        merge_over_segments(random_scores(), segments)


def rle(region: np.ndarray, *, compressed: bool) -> dict:
    from pycocotools import mask as coco_mask

    if compressed:
        code = coco_mask.encode(np.asfortranarray(region.astype(np.uint8)))
        return {"size": list(region.shape), "counts": code["counts"].decode()}
    counts, value = [0], 0
    for pixel in region.T.ravel():  # down the columns
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(region.shape), "counts": counts}


def overlapping() -> list[np.ndarray]:
    """A part, its object, another that crosses it, an empty mask, and the whole photograph."""
    masks = [np.zeros(SIZE, dtype=bool) for _ in range(5)]
    masks[0][2:5, 2:6] = True
    masks[1][1:9, 1:10] = True
    masks[2][6:11, 8:16] = True
    masks[4][:] = True
    return masks


def mean_of_masks_by_loops(scores: np.ndarray, masks: list[np.ndarray]) -> np.ndarray:
    """Each pixel has the means of the masks that cover it, weighted by one over the root of their pixels; float64."""
    merged = scores.astype(np.float64).copy()
    means = [scores.astype(np.float64)[:, mask].mean(axis=1) if mask.any() else None for mask in masks]
    for r in range(SIZE[0]):
        for c in range(SIZE[1]):
            covering = [number for number, mask in enumerate(masks) if mask[r, c]]
            weights = [1 / np.sqrt(masks[number].sum()) for number in covering]
            if covering:
                sums = sum(weight * means[number] for weight, number in zip(weights, covering, strict=True))
                merged[:, r, c] = sums / sum(weights)
    return merged


def test_scores_merged_over_masks_that_overlap_are_weighted_means():
    scores = random_scores()
    for count in (0, 1, 3, 5):
        masks = overlapping()[:count]
        found = merge_over_masks(scores, iter(torch.from_numpy(mask) for mask in masks))
        np.testing.assert_allclose(found.numpy(), mean_of_masks_by_loops(scores.numpy(), masks), atol=1e-7)
        assert found.dtype == scores.dtype
        assert 0 <= float(found.min()) <= float(found.max()) <= 1
    segments = random_segments()
    masks = [segments == value for value in segments.unique() if value]
    torch.testing.assert_close(merge_over_masks(scores, iter(masks)), merge_over_segments(scores, segments))


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("count", [0, 3, 5])
def test_masks_of_a_file_are_merged_over(tmp_path, compressed, wrapped, count):
    masks, scores = overlapping()[:count], random_scores()
    content = [{"segmentation": rle(mask, compressed=compressed), "area": 1, "predicted_iou": 0.9} for mask in masks]
    (tmp_path / "a.json").write_text(json.dumps({"image": {}, "annotations": content} if wrapped else content))
    found = read_proposals(tmp_path / "a.json", size=SIZE).merge(scores)
    np.testing.assert_allclose(found.numpy(), mean_of_masks_by_loops(scores.numpy(), masks), atol=1e-7)


def test_segments_of_an_image_are_its_numbers(tmp_path):
    values = np.random.default_rng(1).integers(0, 300, SIZE)
    for name, image in {
        "wide": Image.fromarray(values.astype(np.uint16)),
        "grey": Image.fromarray((values % 256).astype(np.uint8)),
        "palette": Image.fromarray((values % 9).astype(np.uint8)).convert("P"),
    }.items():
        image.save(tmp_path / f"{name}.png")
        found = read_proposals(tmp_path / f"{name}.png", size=SIZE)
        np.testing.assert_array_equal(found.segments.numpy(), np.asarray(image))


GOOD = {"size": list(SIZE), "counts": [SIZE[0] * SIZE[1]]}
WRONG = {
    "no JSON": ("{", "not JSON"),
    "nested without end": ("[" * 100_000, "not JSON"),
    "an object of another kind": ('{"masks": []}', "no list of masks, and no object with one as annotations"),
    "a number": ("3", "no list of masks"),
    "no segmentation": ('[{"bbox": [0, 0, 1, 1]}]', "mask 1 has no segmentation"),
    "polygons": ('[{"segmentation": [[0, 0, 1, 1, 0, 1]]}]', "mask 1 has no segmentation in COCO's run-length code"),
    "another size": (json.dumps([{"segmentation": GOOD | {"size": [17, 12]}}]), r"of size \[17, 12\], but the photogr"),
    "no size": ('[{"segmentation": {"counts": [204]}}]', "of size None"),
    "runs that are too long": (json.dumps([{"segmentation": GOOD | {"counts": [10**9]}}]), "mask 1: run leng"),
    "runs that are no numbers": (json.dumps([{"segmentation": GOOD | {"counts": ["a"]}}]), "cannot be read"),
    "text that is no code": (json.dumps([{"segmentation": GOOD | {"counts": "\x00"}}]), "run lengths cannot be read"),
    "more masks than any": (json.dumps([0] * 20_001), "20001 masks, more than 20000"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_masks_are_one_line(name, tmp_path):
    content, message = WRONG[name]
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_proposals(tmp_path / "a.json", size=SIZE)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "a.json") in str(caught.value)


def test_wrong_images_are_one_line(tmp_path):
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="a colour image"):
        read_proposals(tmp_path / "a.png", size=SIZE)
    Image.new("L", (3, 3)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"of size \[3, 3\], but the photograph has \[12, 17\] pixels"):
        read_proposals(tmp_path / "a.png", size=SIZE)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="not an image"):
        read_proposals(tmp_path / "a.png", size=SIZE)


def test_a_folder_finds_counts_and_tells_its_files_apart(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r"proposals_dir=.*no such folder"):
        ProposalFolder(tmp_path / "none")
    with pytest.raises(DataError, match=r"no file <id>\.json or <id>\.png"):
        ProposalFolder(tmp_path)
    (tmp_path / "a.json").write_text("[]")
    Image.new("L", SIZE[::-1]).save(tmp_path / "b.png")
    folder = ProposalFolder(tmp_path)
    assert folder.summary() is None
    assert folder.file("a") == tmp_path / "a.json"
    assert folder.file("../a") is folder.file("c") is None
    assert folder.summary().startswith("2 photographs have no proposals in")
    before = folder.digest()
    assert before == ProposalFolder(tmp_path).digest()
    (tmp_path / "a.json").write_text("[ ]")
    assert ProposalFolder(tmp_path).digest() != before
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(DataError, match=r"b\.json and b\.png would share the id"):
        ProposalFolder(tmp_path)


def test_a_folder_that_nothing_reads_is_refused_and_settings_say_who_proposes(tmp_path):
    with pytest.raises(ArgumentError, match="proposals_dir='masks': nothing reads it"):
        check_proposals(["pamr"], "masks")
    check_proposals(["proposals"], "masks")
    (tmp_path / "a.json").write_text("[]")
    folder = ProposalFolder(tmp_path)
    assert describe_proposals(["pamr"], None) == {}, "folders of before stay in use"
    assert describe_proposals(["proposals"], None) == {"proposals": "superpixels"}
    assert describe_proposals(["proposals"], folder) == {"proposals": folder.digest()}
    assert PseudoLabelGenerator(refine=("pamr",), proposer="files").describe() == {
        "background": "fixed", "background_threshold": 0.2, "refine": ["pamr"],
    }  # fmt: skip


def seeds_and_picture() -> tuple[ClassMaps, torch.Tensor]:
    maps = random_scores(2)
    return ClassMaps(maps, torch.tensor([1, 4]), torch.ones(5)), random_scores(3)


@pytest.mark.parametrize("background", ["fixed", "two_thresholds"])
def test_labels_are_drawn_from_merged_scores(tmp_path, background):
    """Without another step by a plain loop: the class with the highest mean, where it exceeds the background."""
    masks = overlapping()[:3]
    (tmp_path / "a.json").write_text(json.dumps([{"segmentation": rle(mask, compressed=True)} for mask in masks]))
    seeds, picture = seeds_and_picture()
    generator = PseudoLabelGenerator(
        background=background, background_threshold=0.5, low=0.45, high=0.55, refine=("proposals",), proposer="files"
    )
    assert generator.is_slow
    intermediate = generator.score(seeds, picture, proposals=tmp_path / "a.json")
    assert intermediate.steps == ("proposals",)
    label = generator.draw(intermediate)
    merged = mean_of_masks_by_loops(seeds.maps.numpy(), masks)
    low, high = (0.5, 0.5) if background == "fixed" else (0.45, 0.55)
    for r in range(SIZE[0]):
        for c in range(SIZE[1]):
            best = int(merged[:, r, c].argmax())
            value = merged[best, r, c]
            expected = [2, 5][best] if value > high else (0 if value <= low else 255)
            assert int(label[r, c]) == expected
    without = PseudoLabelGenerator(background=background, background_threshold=0.5, low=0.45, high=0.55)
    unmerged = without.draw(without.score(seeds, picture))
    assert not torch.equal(label, unmerged)
    nothing = generator.score(seeds, picture)
    assert nothing.steps == ()
    assert torch.equal(generator.draw(nothing), unmerged), "a photograph without a file keeps its scores"


def test_proposals_are_a_step_among_others(tmp_path, monkeypatch):
    monkeypatch.setattr(refinement, "dense_crf", lambda scores, images, **_: scores * images.mean(1, keepdim=True))
    scores, picture, segments = random_scores(), random_scores(3), random_segments()
    proposals = Proposals(SIZE, segments)
    found = refine_scores(scores, picture, ["proposals", "dense_crf"], proposals=proposals)
    torch.testing.assert_close(found, merge_over_segments(scores, segments) * picture.mean(0))
    found = refine_scores(scores, picture, ["dense_crf", "proposals"], proposals=proposals)
    torch.testing.assert_close(found, merge_over_segments(scores * picture.mean(0), segments))
    seeds, picture = seeds_and_picture()
    generator = PseudoLabelGenerator(refine=("pamr", "proposals", "pamr"), proposer="files")
    Image.fromarray(segments.numpy().clip(0, 200).astype(np.uint8)).save(tmp_path / "a.png")
    intermediate = generator.score(seeds, picture, proposals=tmp_path / "a.png")
    assert intermediate.steps == ("proposals", "pamr")
    assert generator.score(seeds, picture).steps == ()
    one = torch.cat([torch.full((1, *SIZE), 0.2), seeds.maps])
    proposals = Proposals(SIZE, segments.clamp(0, 200))
    expected = refine_scores(one, picture, ["pamr", "proposals", "pamr"], proposals=proposals)
    assert torch.equal(generator.draw(intermediate) > 0, expected[1:].amax(0) > expected[0])


def test_on_a_coarser_grid_proposals_are_those_of_the_nearest_pixels():
    scores, picture = random_scores()[:, :, :16], random_scores(3)[:, :, :16]
    segments = torch.arange(3 * 4).reshape(3, 4).repeat_interleave(4, 0).repeat_interleave(4, 1) + 4_000_000_000
    half = F.avg_pool2d(scores[None], 2)[0]
    expected = F.avg_pool2d(scores[None], 4)[0].repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(Proposals((12, 16), segments).merge(half), expected)
    from pycocotools import mask as coco_mask

    codes = [
        coco_mask.encode(np.asfortranarray((segments == value).numpy().astype(np.uint8))) for value in segments.unique()
    ]
    torch.testing.assert_close(Proposals((12, 16), None, tuple(codes)).merge(half), expected)
    found = refine_scores(scores, picture, ["proposals"], proposals=Proposals((12, 16), segments), stride=2)
    smaller = F.interpolate(scores[None], (6, 8), mode="bilinear", antialias=True)[0]
    means = smaller.unflatten(1, (3, 2)).unflatten(3, (4, 2)).mean(dim=(2, 4)).repeat_interleave(2, 1)
    enlarged = F.interpolate(means.repeat_interleave(2, 2)[None], (12, 16), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(found, enlarged)


@with_superpixels
def test_superpixels_keep_to_edges_and_number_from_one():
    picture = torch.zeros(3, 60, 90)
    picture[0, :, 37:] = 1
    picture[1, 20:40] = 0.5
    found = superpixels(picture)
    assert found.segments.shape == (60, 90)
    assert found.segments.dtype == torch.int64
    assert int(found.segments.min()) == 1
    left, right = set(found.segments[:, :35].unique().tolist()), set(found.segments[:, 39:].unique().tolist())
    assert left
    assert not left & right
    assert torch.equal(found.segments, superpixels(picture).segments), "the same each time"
    counts = torch.bincount(superpixels(torch.rand(3, 60, 90)).segments.flatten())[1:]
    assert int(counts.min()) >= 50
    assert len(superpixels(torch.rand(3, 2, 2)).segments.unique()) == 1


@with_superpixels
def test_without_a_folder_superpixels_are_merged():
    scores, picture = random_scores(), random_scores(3).round()
    found = refine_scores(scores, picture, ["proposals"])
    expected = merged_by_loops(scores.numpy(), superpixels(picture).segments.numpy())
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-7)
    generator = PseudoLabelGenerator(refine=("proposals",))
    generator.check_packages()
    seeds, picture = seeds_and_picture()
    assert generator.draw(generator.score(seeds, picture)).shape == SIZE


def test_the_extra_is_named_before_anything_is_written(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(MissingExtraError, match=r"rca-lightning\[superpixels\]"):
        PseudoLabelGenerator(refine=("proposals",)).check_packages()
    PseudoLabelGenerator(refine=("proposals",), proposer="files").check_packages()
    with pytest.raises(MissingExtraError, match="refine=proposals"):
        superpixels(torch.zeros(3, 4, 4))


def test_paths_of_files_are_plain(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.json").mkdir()
    with pytest.raises(DataError, match="not a regular file"):
        read_proposals(tmp_path / "folder" / "a.json", size=SIZE)
