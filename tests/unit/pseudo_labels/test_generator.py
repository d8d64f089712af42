"""PseudoLabelGenerator: its two halves together make what all refinements make at once."""

from __future__ import annotations

import dataclasses
import pickle
import sys

import pytest
import torch

from rca_lightning.errors import ArgumentError, MissingExtraError
from rca_lightning.pseudo_labels import refinement
from rca_lightning.pseudo_labels.affinity import walk_class_maps
from rca_lightning.pseudo_labels.generator import IntermediateLabel, PseudoLabelGenerator
from rca_lightning.pseudo_labels.labels import background_score, label_scores
from rca_lightning.pseudo_labels.refinement import refine_scores
from rca_lightning.rca.inference import ClassMaps

CLASSES = torch.tensor([3, 11])
BACKGROUNDS = ("fixed", "power", "saliency", "two_thresholds")
SETTINGS = {"background_threshold": 0.45, "power": 3.0, "low": 0.3, "high": 0.6, "saliency_threshold": 0.4}
H, W = 8, 12


def random_seeds() -> ClassMaps:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(2, H, W, generator=generator)
    return ClassMaps(maps, CLASSES, torch.rand(20, generator=generator), torch.randn(5, 2, 3, generator=generator))


def random_picture() -> torch.Tensor:
    return torch.rand(3, H, W, generator=torch.Generator().manual_seed(1))


def random_saliency() -> torch.Tensor:
    return torch.rand(H, W, generator=torch.Generator().manual_seed(2))


def whole(generator: PseudoLabelGenerator, seeds: ClassMaps | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The label, and the evidence of the first half."""
    intermediate = generator.score(seeds or random_seeds(), random_picture(), random_saliency())
    return generator.draw(intermediate), intermediate.evidence


def lighten(maps: torch.Tensor, images: torch.Tensor, **_: float) -> torch.Tensor:
    """Stands for the CRF: any function of maps and images that no other step undoes."""
    return (0.25 * maps + 0.75 * images.mean(1, keepdim=True)) * maps.sqrt()


def refine(names: tuple[str, ...], *, background: str = "fixed", threshold: float = 0.4) -> torch.Tensor:
    """Scores of the random photograph after these steps at once."""
    seeds = random_seeds()
    score = background_score(seeds.maps, background=background, threshold=threshold, power=3)
    scores = torch.cat([score[None], seeds.maps])
    return refine_scores(scores, random_picture(), names, features=seeds.features)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_evidence_without_steps_is_the_higher_background_and_the_maps(background):
    label, evidence = whole(PseudoLabelGenerator(background=background, **SETTINGS))
    seeds = random_seeds()
    assert label.dtype == torch.uint8
    assert {4, 12} <= set(label.unique().tolist())
    score = {"fixed": 0.45, "power": (1 - seeds.maps.amax(0)) ** 3}.get(background, 0.6)
    assert torch.equal(evidence, torch.cat([torch.as_tensor(score).expand(1, H, W), seeds.maps]))


@pytest.mark.parametrize("background", ["fixed", "power"])
def test_with_steps_the_refined_scores_compete(background):
    steps = ("random_walk", "pamr")
    label, evidence = whole(PseudoLabelGenerator(background=background, refine=steps, **SETTINGS))
    expected = refine(steps, background=background, threshold=0.45)
    assert torch.equal(evidence, expected)
    assert torch.equal(label, label_scores(expected, CLASSES))
    assert not torch.equal(label, whole(PseudoLabelGenerator(background=background, **SETTINGS))[0])


@pytest.mark.parametrize("background", ["saliency", "two_thresholds"])
def test_two_background_scores_refine_each_of_them(background, monkeypatch):
    monkeypatch.setattr(refinement, "dense_crf", lighten)  # unlike PAMR it moves a fixed background
    label, evidence = whole(PseudoLabelGenerator(background=background, refine=("pamr", "dense_crf"), **SETTINGS))
    refined = {level: refine(("pamr", "dense_crf"), threshold=level) for level in (0.3, 0.6)}
    weak, strong = (label_scores(refined[level], CLASSES).tolist() for level in (0.3, 0.6))
    salient = (random_saliency() > 0.4).tolist()
    for row in range(H):
        for column in range(W):
            low, high = weak[row][column], strong[row][column]
            if background == "two_thresholds":
                expected = high if high > 0 else 255 if low > 0 else 0
            elif salient[row][column]:
                expected = low if low > 0 else 255
            else:
                expected = 255 if high > 0 else 0
            assert label[row, column] == expected
    assert {0, 255} < set(label.unique().tolist())
    assert torch.equal(evidence, refine(("pamr",), threshold=0.6))


def test_the_crf_and_what_follows_wait_for_the_second_half(monkeypatch):
    monkeypatch.setattr(refinement, "dense_crf", lighten)
    generator = PseudoLabelGenerator(background_threshold=0.4, refine=("pamr", "dense_crf", "pamr"))
    intermediate = generator.score(random_seeds(), random_picture())
    assert generator.is_slow
    assert intermediate.steps == ("dense_crf", "pamr")
    assert torch.equal(intermediate.evidence, refine(("pamr",)))
    label = generator.draw(intermediate)
    assert torch.equal(label, label_scores(refine(("pamr", "dense_crf", "pamr")), CLASSES))
    for fewer in (("pamr",), ("pamr", "dense_crf"), ("dense_crf", "pamr")):
        assert not torch.equal(label, label_scores(refine(fewer), CLASSES))


def test_a_walk_behind_the_crf_has_its_features(monkeypatch):
    monkeypatch.setattr(refinement, "dense_crf", lighten)
    seeds = random_seeds()
    label, evidence = whole(PseudoLabelGenerator(background_threshold=0.4, refine=("dense_crf", "random_walk")))
    assert torch.equal(label, label_scores(refine(("dense_crf", "random_walk")), CLASSES))
    assert not torch.equal(label, label_scores(lighten(evidence[None], random_picture()[None])[0], CLASSES))
    assert torch.equal(evidence[1:], seeds.maps)


@pytest.mark.parametrize("steps", [(), ("pamr",), ("random_walk", "pamr")])
def test_nothing_waits_without_the_crf(steps):
    generator = PseudoLabelGenerator(refine=steps)
    intermediate = generator.score(random_seeds(), random_picture(), random_saliency())
    assert not generator.is_slow
    assert intermediate.steps == ()
    assert intermediate.features is None
    assert intermediate.salient is None
    assert generator.needs_features == ("random_walk" in steps)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_the_first_half_travels_as_arrays(background, monkeypatch):
    monkeypatch.setattr(refinement, "dense_crf", lighten)
    generator = PseudoLabelGenerator(background=background, refine=("dense_crf", "random_walk"), **SETTINGS)
    intermediate = generator.score(random_seeds(), random_picture(), random_saliency())
    values = [getattr(intermediate, field.name) for field in dataclasses.fields(IntermediateLabel)]
    assert not any(isinstance(value, torch.Tensor) for value in [*values, *intermediate.scores])
    arrived, there = pickle.loads(pickle.dumps((intermediate, generator)))
    assert torch.equal(there.draw(arrived), generator.draw(intermediate))
    assert torch.equal(arrived.evidence, intermediate.evidence)


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("steps", [(), ("random_walk", "pamr")])
def test_a_photograph_without_classes(background, steps):
    empty = dataclasses.replace(random_seeds(), maps=torch.zeros(0, H, W), classes=torch.zeros(0, dtype=torch.int64))
    label, evidence = whole(PseudoLabelGenerator(background=background, refine=steps, **SETTINGS), empty)
    assert evidence.shape == (1, H, W)
    salient = (random_saliency() > 0.4) & (background == "saliency")
    assert torch.equal(label, torch.where(salient, 255, 0).to(torch.uint8))


@pytest.mark.parametrize(
    ("background", "expected"),
    [
        ("fixed", {"background_threshold": 0.45}),
        ("power", {"power": 3.0}),
        ("two_thresholds", {"low": 0.3, "high": 0.6}),
        ("saliency", {"low": 0.3, "high": 0.6, "saliency_threshold": 0.4}),
    ],
)
def test_description_names_what_the_background_reads(background, expected):
    found = PseudoLabelGenerator(background=background, refine=("pamr",), **SETTINGS).describe()
    assert found == {"background": background, **expected, "refine": ["pamr"]}


def test_missing_crf_is_told_before_it_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    PseudoLabelGenerator(refine=("random_walk", "pamr")).check_packages()
    with pytest.raises(MissingExtraError, match=r"needed for refine=dense_crf .*rca-lightning\[crf\]"):
        PseudoLabelGenerator(refine=("pamr", "dense_crf")).check_packages()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"background": "otsu"}, "^background='otsu': give one of fixed, power, saliency, two_thresholds"),
        ({"background_threshold": -0.1}, "^background_threshold=-0.1"),
        ({"background_threshold": float("nan")}, "^background_threshold=nan"),
        ({"power": 0.0}, "^power=0.0"),
        ({"low": 1.5}, "^low=1.5"),
        ({"high": -1.0}, "^high=-1.0"),
        ({"saliency_threshold": 2.0}, "^saliency_threshold=2.0"),
        ({"background": "two_thresholds", "low": 0.5, "high": 0.4}, "^low=0.5: give at most high=0.4"),
        ({"background": "saliency", "low": 0.5, "high": 0.4}, "^low=0.5: give at most high=0.4"),
        ({"refine": ("pamr", "median")}, "^refine='median': give one of random_walk, pamr, dense_crf"),
    ],
)
def test_refused_settings(options, message):
    with pytest.raises(ArgumentError, match=message):
        PseudoLabelGenerator(**options)


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("later", [(), ("dense_crf", "random_walk"), ("pamr",)])
def test_affinity_walks_the_class_maps_before_the_background_joins(background, later, monkeypatch):
    monkeypatch.setattr(refinement, "dense_crf", lighten)
    boundary = torch.rand(4, 6, generator=torch.Generator().manual_seed(5))
    seeds = random_seeds()
    seeds.maps[:, :, :5] = 0
    generator = PseudoLabelGenerator(background=background, refine=("affinity", *later), **SETTINGS)
    intermediate = generator.score(seeds, random_picture(), random_saliency(), boundary=boundary)
    walked = dataclasses.replace(seeds, maps=walk_class_maps(seeds.maps, boundary))
    assert not torch.equal(walked.maps, seeds.maps)
    plain = PseudoLabelGenerator(background=background, refine=later, **SETTINGS)
    expected = plain.score(walked, random_picture(), random_saliency())
    assert torch.equal(intermediate.evidence, expected.evidence)
    assert intermediate.steps == expected.steps
    assert torch.equal(generator.draw(intermediate), plain.draw(expected))
    assert generator.needs_boundary
    assert not plain.needs_boundary


def test_affinity_is_refused_after_another_step_and_without_a_boundary():
    with pytest.raises(ArgumentError, match=r"^refine=\['pamr', 'affinity'\]: 'affinity': .*give \['affinity', ...\]"):
        PseudoLabelGenerator(refine=("pamr", "affinity"))
    with pytest.raises(ArgumentError, match=r"^refine=\['affinity', 'affinity'\]"):
        PseudoLabelGenerator(refine=("affinity", "affinity"))
    with pytest.raises(ArgumentError, match=r"^boundary=None: 'affinity' needs the boundary map"):
        PseudoLabelGenerator(refine=("affinity",)).score(random_seeds(), random_picture())
    with pytest.raises(ArgumentError, match=r"^names=\['affinity'\]: these scores have a background"):
        refine_scores(torch.zeros(2, H, W), random_picture(), ("affinity",))


def test_thresholds_that_a_background_does_not_read_may_be_any():
    assert PseudoLabelGenerator(background="power", low=0.5, high=0.4).describe()["background"] == "power"


@pytest.mark.parametrize(
    ("seeds", "given", "message"),
    [
        ({"maps": torch.full((2, H, W), float("nan"))}, {}, f"^maps='{2 * H * W} of {2 * H * W} values NaN"),
        ({"maps": torch.full((2, H, W), 1.5)}, {}, "^maps='values from 1.5 to 1.5'"),
        ({"maps": torch.zeros(2, H, W + 1)}, {}, r"^picture=\(3, 8, 12\): the maps are 8 x 13"),
        ({}, {"picture": torch.zeros(1, H, W)}, r"^picture=\(1, 8, 12\): give 3 colours"),
        ({}, {"picture": torch.full((3, H, W), 255.0)}, "^picture='values from 255 to 255'"),
        ({}, {"saliency": None}, "^saliency=None: background='saliency' needs"),
        ({}, {"saliency": torch.zeros(H, W + 1)}, r"^saliency=\(8, 13\): the maps are 8 x 12"),
        ({}, {"saliency": torch.full((H, W), 255.0)}, "^saliency='values from 255 to 255'"),
        ({"features": None}, {}, "^features=None: 'random_walk' needs the features"),
    ],
)
def test_refused_photographs(seeds, given, message):
    """All in the first half: an error of a worker comes several photographs later."""
    generator = PseudoLabelGenerator(background="saliency", refine=("dense_crf", "random_walk"))
    arguments = {"picture": random_picture(), "saliency": random_saliency()} | given
    with pytest.raises(ArgumentError, match=message):
        generator.score(dataclasses.replace(random_seeds(), **seeds), **arguments)


def test_large_photographs_are_refined_at_a_bounded_size(monkeypatch):
    monkeypatch.setattr("rca_lightning.pseudo_labels.refinement.MAX_SIDE", 16)
    seen = []

    def step(scores, images):
        seen.append((tuple(scores.shape[2:]), tuple(images.shape[2:])))
        return scores

    monkeypatch.setattr("rca_lightning.pseudo_labels.refinement.pamr", step)
    rows = torch.linspace(0, 1, 40)[:, None].expand(40, 20)
    seeds = ClassMaps(rows[None].contiguous(), torch.tensor([3]), torch.ones(20))
    generator = PseudoLabelGenerator(background_threshold=0.5, refine=("pamr",))
    intermediate = generator.score(seeds, torch.rand(3, 40, 20))
    label = generator.draw(intermediate)
    assert seen == [((16, 8), (16, 8))]
    assert label.shape == (40, 20)
    assert torch.equal(label, torch.where(rows > 0.5, 4, 0).to(torch.uint8))
    assert intermediate.evidence[1].sub(rows).abs().max() < 0.05
