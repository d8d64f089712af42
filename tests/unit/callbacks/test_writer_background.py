"""Where the writer lets the background begin, and what it keeps of that in its settings."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tests.prediction_runs import Photographs, predict, with_prototypes

from rca_lightning.callbacks.pseudo_label_writer import PseudoLabelWriter
from rca_lightning.data.sample import collate
from rca_lightning.errors import ArgumentError, DataError, OutputError
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.rca.inference import ClassMaps

H, W = 32, 40


@pytest.fixture(scope="module")
def module() -> RCAModule:
    torch.manual_seed(0)
    return with_prototypes(RCAModule(num_classes=2, backbone="resnet14", flip=False, background_prototypes=0))


@pytest.fixture(scope="module")
def cam_module() -> RCAModule:
    return RCAModule(num_classes=2, backbone="resnet14", flip=False, contrast=False, aggregation=False)


def written(writer: PseudoLabelWriter, seeds: ClassMaps, saliency: torch.Tensor | None = None) -> np.ndarray:
    """The label image of one photograph."""
    batch = collate(Photographs("photo").samples)
    if saliency is not None:
        batch["saliency"] = saliency[None]
    writer.write_on_batch_end(None, None, [{"image_id": "photo", "seeds": seeds}], None, batch, 0, 0)
    writer._queue.join()
    return np.asarray(Image.open(writer.output_dir / "pseudo_labels" / "photo.png"))


def random_seeds() -> ClassMaps:
    maps = torch.rand(2, H, W, generator=torch.Generator().manual_seed(0))
    return ClassMaps(maps, torch.tensor([1, 5]), torch.rand(20))


def strongest() -> tuple[np.ndarray, np.ndarray]:
    """Value and label of the strongest map of each pixel."""
    maps = random_seeds().maps.numpy()
    return np.maximum(maps[0], maps[1]), np.where(maps[0] >= maps[1], 2, 6)


@pytest.mark.parametrize("power", [1.0, 4.0])
def test_power_background(tmp_path, power):
    value, label = strongest()
    found = written(PseudoLabelWriter(str(tmp_path), background="power", power=power), random_seeds())
    sure = np.abs(value - (1 - value) ** power) > 1e-5  # the power of a float32 is rounded
    assert np.array_equal(found[sure], np.where(value > (1 - value) ** power, label, 0)[sure])
    assert (found == 0).any()


def test_two_thresholds_leave_a_band(tmp_path):
    value, label = strongest()
    found = written(PseudoLabelWriter(str(tmp_path), background="two_thresholds", low=0.4, high=0.8), random_seeds())
    assert np.array_equal(found, np.where(value > 0.8, label, np.where(value > 0.4, 255, 0)))


def test_saliency_of_the_batch(tmp_path):
    saliency = torch.rand(H, W, generator=torch.Generator().manual_seed(1))
    writer = PseudoLabelWriter(str(tmp_path), background="saliency", low=0.4, high=0.8, saliency_threshold=0.3)
    value, label = strongest()
    expected = np.where(saliency.numpy() > 0.3, np.where(value > 0.4, label, 255), np.where(value > 0.8, 255, 0))
    assert np.array_equal(written(writer, random_seeds(), saliency), expected)
    assert {0, 2, 6, 255} == set(np.unique(expected))


def test_saliency_belongs_to_the_image_of_its_row(tmp_path):
    batch = collate(Photographs("dull", "bright").samples)
    batch["saliency"] = torch.stack([torch.zeros(H, W), torch.ones(H, W)])
    writer = PseudoLabelWriter(str(tmp_path), background="saliency", low=0.0, high=0.8)
    seeds = ClassMaps(torch.full((1, H, W), 0.5), torch.tensor([1]), torch.rand(20))
    prediction = [{"image_id": name, "seeds": seeds} for name in batch["image_id"]]
    writer.write_on_batch_end(None, None, prediction, None, batch, 0, 0)
    writer._queue.join()
    labels = {path.stem: np.unique(np.asarray(Image.open(path))) for path in tmp_path.glob("pseudo_labels/*.png")}
    assert {name: values.tolist() for name, values in labels.items()} == {"dull": [0], "bright": [2]}


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
def test_missing_saliency_names_who_may_lack_it(tmp_path, names):
    writer = PseudoLabelWriter(str(tmp_path), background="saliency")
    batch = collate(Photographs(*names).samples)
    prediction = [{"image_id": name, "seeds": random_seeds()} for name in names]
    who = "a" if len(names) == 1 else "one of a, b"
    with pytest.raises(DataError, match=rf"^no saliency map of {who}, .*--data\.saliency_dir"):
        writer.write_on_batch_end(None, None, prediction, None, batch, 0, 0)
    assert not (tmp_path / "pseudo_labels").exists()


def test_saliency_of_another_size_is_refused(tmp_path):
    writer = PseudoLabelWriter(str(tmp_path), background="saliency")
    with pytest.raises(ArgumentError, match=r"^saliency=\(4, 5\): the maps are 32 x 40"):
        written(writer, random_seeds(), torch.zeros(4, 5))


def test_defaults_suit_the_map_that_is_read(tmp_path, module, cam_module):
    def band(reader: RCAModule, **given: float) -> tuple[float, float]:
        settings = PseudoLabelWriter(str(tmp_path), background="two_thresholds", **given).describe(reader)
        return settings["low"], settings["high"]

    assert band(module) == (0.5, 0.8)
    assert band(cam_module) == (0.05, 0.3)
    # What is given alone may be above the other default of the maps that are not read.
    assert band(module, low=0.6) == (0.6, 0.8)
    assert band(cam_module, high=0.1) == (0.05, 0.1)
    with pytest.raises(ArgumentError, match=r"^low=0\.6: give at most high=0\.3"):
        band(cam_module, low=0.6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"background": "otsu"}, r"^background='otsu'"),
        ({"rule": "power"}, r"^rule='power': renamed in 0\.2; give background="),
        ({"power": -1.0}, r"^power=-1\.0"),
        ({"background_threshold": 1.1}, r"^background_threshold=1\.1: give a number in \[0, 1\]"),
        ({"low": 1.1}, r"^low=1\.1: give a number in \[0, 1\]"),
        ({"high": -0.1}, r"^high=-0\.1: give a number in \[0, 1\]"),
        ({"background": "two_thresholds", "low": 0.6, "high": 0.5}, r"^low=0\.6: give at most high=0\.5"),
        ({"saliency_threshold": 2.0}, r"^saliency_threshold=2\.0"),
        ({"refine": ["pamr", "blur"]}, r"^refine='blur': give one of random_walk"),
        ({"workers": -1}, r"^workers=-1: give 0"),
        ({"refine": ["dense_crf"], "workers": -2}, r"^workers=-2: give 0"),
    ],
)
def test_refused(tmp_path, options, message):
    with pytest.raises(ArgumentError, match=message):
        PseudoLabelWriter(str(tmp_path), **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "expected", "absent"),
    [
        (
            {},
            {"background": "fixed", "background_threshold": 0.7, "refine": []},
            ("power", "low", "saliency_threshold"),
        ),
        (
            {"background": "power", "power": 6.0},
            {"background": "power", "power": 6.0},
            ("background_threshold", "high"),
        ),
        ({"background": "two_thresholds", "high": 0.9}, {"low": 0.5, "high": 0.9}, ("power", "saliency_threshold")),
        ({"background": "saliency"}, {"low": 0.5, "high": 0.8, "saliency_threshold": 0.5}, ("background_threshold",)),
        ({"refine": ["random_walk", "pamr"], "workers": 3}, {"refine": ["random_walk", "pamr"]}, ("workers",)),
    ],
)
def test_settings_name_what_labels_depend_on(tmp_path, module, options, expected, absent):
    found = PseudoLabelWriter(str(tmp_path), **options).describe(module)
    assert {name: found[name] for name in expected} == expected
    assert not set(absent) & set(found)
    json.dumps(found)  # refuses what JSON has no form for


def test_another_background_in_the_same_folder_is_refused(tmp_path, module):
    predict(module, PseudoLabelWriter(str(tmp_path), background="two_thresholds"), Photographs("a"))
    settings = json.loads((tmp_path / "predict.json").read_text())
    assert (settings["background"], settings["low"], settings["high"]) == ("two_thresholds", 0.5, 0.8)
    gone = r"low: 0\.5 there, None now; high: 0\.8 there, None now"
    to_power = rf"\(background: 'two_thresholds' there, 'power' now; power: None there, 8\.0 now; {gone}\)"
    for options, change in (
        ({"background": "power"}, to_power),
        ({"background": "two_thresholds", "high": 0.9}, r"\(high: 0\.8 there, 0\.9 now\)"),
        ({"background": "two_thresholds", "refine": ["pamr"]}, r"\(refine: \[\] there, \['pamr'\] now\)"),
    ):
        with pytest.raises(OutputError, match=change):
            predict(module, PseudoLabelWriter(str(tmp_path), **options), Photographs("a", "b"))
    assert predict(module, PseudoLabelWriter(str(tmp_path), background="two_thresholds"), Photographs("a", "b")) == [
        "b"
    ]
