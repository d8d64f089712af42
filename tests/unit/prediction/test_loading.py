"""`rca_lightning.load`: the numbers of `rca predict`, whatever form a photograph has, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.frozen_fits import data as frozen_data
from tests.frozen_fits import fit as frozen_fit
from tests.frozen_fits import frozen, generated
from tests.prediction_runs import with_prototypes
from tests.quiet_trainer import quiet_trainer

import rca_lightning
from rca_lightning import (
    AffinityModule,
    FeatureCacheCallback,
    FrozenSegmentationModule,
    MaskWriter,
    OneStageModule,
    PseudoLabelWriter,
    RCAModule,
    SegmentationModule,
    WSSSDataModule,
)
from rca_lightning.errors import ArgumentError, DamagedError, DataError, DatasetNotFoundError, WeightsError

NAMES = ["circle", "square", "triangle", "ring", "cross", "star"]
SMALL = {"backbone": "resnet14", "weights": "none"}


def save(module, path: Path) -> Path:
    trainer = quiet_trainer(path.parent)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """One photograph of each kind that the data module turns, scales or converts."""
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    smooth = Image.fromarray(random.integers(0, 256, (6, 7, 3), dtype=np.uint8)).resize((52, 40))
    (folder / "images").mkdir()
    images = folder / "images"
    smooth.save(images / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth.save(images / "turned.jpg", exif=exif)
    smooth.convert("CMYK").save(images / "cmyk.jpg")
    Image.fromarray(np.asarray(smooth.convert("L")).astype(np.uint16) * 257).save(images / "deep.png")
    smooth.convert("P").save(images / "palette.png")
    (folder / "classes.txt").write_text("\n".join(NAMES))
    (folder / "tags.csv").write_text(
        "image,tags\n" + "".join(f"{name},circle;star\n" for name in ("plain", "turned", "cmyk", "deep", "palette"))
    )
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    built = {
        "localize": with_prototypes(RCAModule(6, NAMES, **SMALL, num_prototypes=2, backbone_mode="trained")),
        "segment": SegmentationModule(6, NAMES, **SMALL, head="deeplabv2"),
        "one_stage": OneStageModule(6, NAMES, **SMALL, num_prototypes=2, output_stride=8),
        "affinity": AffinityModule(6, NAMES, **SMALL),
    }
    for parameter in built["segment"].network.head.parameters():
        parameter.data.normal_(std=0.1)  # as built, all labels are about equal
    for parameter in built["one_stage"].teacher.parameters():
        parameter.data.mul_(1.5)
    found = {name: save(module, folder / f"{name}.ckpt") for name, module in built.items()}
    root = generated(folder / "images")
    _, trainer = frozen_fit(root, folder / "first", frozen(output_stride=16), limit_val_batches=0)
    trainer.save_checkpoint(found.setdefault("frozen", folder / "frozen.ckpt"))
    module = FrozenSegmentationModule(6, first_stage=str(found["frozen"]))
    trainer = quiet_trainer(
        folder, max_epochs=1, num_sanity_val_steps=0, limit_val_batches=0,
        callbacks=[FeatureCacheCallback(str(folder / "features"))],
    )  # fmt: skip
    trainer.fit(module, datamodule=frozen_data(root))
    trainer.save_checkpoint(found.setdefault("segment_frozen", folder / "segment_frozen.ckpt"))
    return found


TASKS = ("localize", "frozen", "segment", "segment_frozen", "one_stage")
KINDS = {"localize": RCAModule, "frozen": RCAModule, "segment": SegmentationModule,
         "segment_frozen": FrozenSegmentationModule, "one_stage": OneStageModule}  # fmt: skip


@pytest.mark.parametrize("tagged", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_numbers_are_those_of_prediction_by_a_trainer(tmp_path, photographs, checkpoints, task, tagged):
    loaded = rca_lightning.load(checkpoints[task], device="cpu")
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(loaded.class_names))
    shown = [loaded.class_names[0], loaded.class_names[5]]
    (tmp_path / "tags.csv").write_text((photographs / "tags.csv").read_text().replace("circle;star", ";".join(shown)))
    unknown = "predicted" if task in ("localize", "frozen") else "none"
    module = KINDS[task].load_from_checkpoint(
        checkpoints[task], map_location="cpu", predict_tags="image" if tagged else unknown
    )
    data = WSSSDataModule(
        "folder", photographs, class_file=str(classes), tags_file=str(tmp_path / "tags.csv"), num_workers=0
    )
    localizes = KINDS[task] is RCAModule
    writer = (PseudoLabelWriter if localizes else MaskWriter)(str(tmp_path / "out"))
    quiet_trainer(tmp_path, callbacks=[writer]).predict(module, datamodule=data, return_predictions=False)

    results = loaded.predict(photographs / "images", shown if tagged else None)
    assert [result.image_id for result in results] == ["cmyk", "deep", "palette", "plain", "turned"]
    values = set()
    for result in results:
        folder = tmp_path / "out" / ("pseudo_labels" if localizes else "masks")
        expected = np.array(Image.open(folder / f"{result.image_id}.png"))
        np.testing.assert_array_equal(result.mask, expected)
        assert (
            result.mask.shape == ((52, 40) if result.image_id == "turned" else (40, 52)) == result.photograph.shape[:2]
        )
        assert result.classes == [loaded.class_names[value - 1] for value in np.unique(expected) if value]
        values |= set(np.unique(expected))
        if localizes:
            with np.load(tmp_path / "out" / "cams" / f"{result.image_id}.npz", allow_pickle=False) as stored:
                assert [loaded.class_names[index] for index in stored["classes"]] == list(result.maps)
                found = np.stack([one.astype(np.float16) for one in result.maps.values()])
                np.testing.assert_array_equal(found, stored["maps"])
        else:
            note = float(Image.open(folder / f"{result.image_id}.png").info["confidence"])
            assert result.confidence == pytest.approx(note, abs=1e-5)
            total = sum(result.maps.values(), np.zeros(result.mask.shape))  # 0 where all is background
            assert total.max() <= 1 + 1e-5
            assert set(result.classes) <= set(result.maps)
    assert len(values) > 1 or task == "one_stage"  # masks of one value would all be equal


def test_every_form_of_a_photograph_gives_one_mask(photographs, checkpoints):
    loaded = rca_lightning.load(str(checkpoints["localize"]))
    path = photographs / "images" / "plain.png"
    expected = loaded.predict(path, "circle")
    assert isinstance(expected, rca_lightning.PredictedMask)
    array = np.array(Image.open(path))
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for photograph in (str(path), Image.open(path), array, array / 255.0, tensor, tensor / 255, tensor.double() / 255):
        result = loaded.predict(photograph, ["circle"])
        np.testing.assert_array_equal(result.mask, expected.mask)
        np.testing.assert_array_equal(result.maps["circle"], expected.maps["circle"])
    for several in ([path, array], np.stack([array, array]), torch.stack([tensor, tensor])):
        first, second = loaded.predict(several, {"0": ["circle"], "1": ["circle"], "plain": ["circle"]})
        np.testing.assert_array_equal(first.mask, expected.mask)
        np.testing.assert_array_equal(second.mask, expected.mask)
        assert second.image_id == "1"
    assert loaded.predict([]) == []


@pytest.mark.parametrize("name", ["turned.jpg", "cmyk.jpg", "deep.png", "palette.png"])
def test_pil_images_are_turned_and_converted_as_files_are(photographs, checkpoints, name):
    loaded = rca_lightning.load(checkpoints["segment"])
    path = photographs / "images" / name
    of_file, of_pil = loaded.predict(path), loaded.predict(Image.open(path))
    np.testing.assert_array_equal(of_pil.photograph, of_file.photograph)
    np.testing.assert_array_equal(of_pil.mask, of_file.mask)
    assert of_pil.image_id == path.stem


def test_threshold_draws_anew_from_the_same_maps(photographs, checkpoints):
    loaded = rca_lightning.load(checkpoints["localize"])
    result = loaded.predict(photographs / "images" / "plain.png", ["circle", "star"])
    for threshold in (0.0, 0.4, 0.9):
        strength = np.stack([result.maps["circle"], result.maps["star"]])
        expected = np.where(strength.max(0) > np.float32(threshold), np.array([1, 6])[strength.argmax(0)], 0)
        again = result.with_threshold(threshold)
        np.testing.assert_array_equal(again.mask, expected)
        assert again.threshold == threshold
        direct = loaded.predict(photographs / "images" / "plain.png", ["circle", "star"], threshold=threshold)
        np.testing.assert_array_equal(direct.mask, expected)
    with pytest.raises(ArgumentError, match="threshold=2"):
        result.with_threshold(2)
    segmenter = rca_lightning.load(checkpoints["segment"])
    with pytest.raises(ArgumentError, match="leave it out"):
        segmenter.predict(photographs / "images" / "plain.png", threshold=0.5)
    with pytest.raises(ArgumentError, match="leave it out"):
        segmenter.predict(photographs / "images" / "plain.png").with_threshold(0.5)


def test_refinements_are_those_of_the_writer(tmp_path, photographs, checkpoints):
    loaded = rca_lightning.load(checkpoints["localize"])
    module = RCAModule.load_from_checkpoint(checkpoints["localize"], map_location="cpu", predict_tags="image")
    writer = PseudoLabelWriter(str(tmp_path / "out"), refine=("random_walk", "pamr"), workers=0)
    data = WSSSDataModule("folder", photographs, num_workers=0)
    quiet_trainer(tmp_path, callbacks=[writer]).predict(module, datamodule=data, return_predictions=False)
    result = loaded.predict(photographs / "images" / "plain.png", ["circle", "star"], refine=["random_walk", "pamr"])
    expected = np.array(Image.open(tmp_path / "out" / "pseudo_labels" / "plain.png"))
    np.testing.assert_array_equal(result.mask, expected)
    with pytest.raises(ArgumentError, match="affinity"):
        loaded.predict(photographs / "images" / "plain.png", refine=["affinity"])


def test_results_are_stored_and_shown(tmp_path, photographs, checkpoints):
    result = rca_lightning.load(checkpoints["localize"]).predict(photographs / "images" / "plain.png", ["circle"])
    assert result.save(tmp_path / "masks") == tmp_path / "masks" / "plain.png"
    with Image.open(tmp_path / "masks" / "plain.png") as stored:
        assert stored.mode == "P"
        np.testing.assert_array_equal(np.array(stored), result.mask)
    with np.load(result.save(tmp_path / "plain.npz"), allow_pickle=False) as stored:
        assert (stored["classes"].tolist(), stored["names"].tolist()) == ([0], ["circle"])
        np.testing.assert_array_equal(stored["maps"][0], result.maps["circle"].astype(np.float16))
    with Image.open(result.save(tmp_path / "plain.jpg")) as stored:
        assert (stored.format, stored.size) == ("JPEG", (52, 40))
    assert result._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"
    outside = result.mask == 0
    np.testing.assert_array_equal(np.array(result.overlay())[outside], result.photograph[outside])
    assert result.overlay("maps").size == (52, 40)
    with pytest.raises(ArgumentError, match=r"a\.txt"):
        result.save(tmp_path / "a.txt")


def test_what_cannot_be_used_is_one_clear_line(tmp_path, photographs, checkpoints):
    with pytest.raises(ArgumentError, match=r"path='.*none\.ckpt': there is no such file"):
        rca_lightning.load(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(DamagedError, match=r"text\.ckpt"):
        rca_lightning.load(tmp_path / "text.ckpt")
    torch.save({"state_dict": {"a": torch.zeros(1)}, "pytorch-lightning_version": "2.6"}, tmp_path / "other.ckpt")
    for path in (tmp_path / "other.ckpt", checkpoints["affinity"]):
        with pytest.raises(WeightsError, match="draws no masks; give a checkpoint of rca fit --task localize"):
            rca_lightning.load(path)
    with pytest.raises(ArgumentError, match="device='tpu9'"):
        rca_lightning.load(checkpoints["localize"], device="tpu9")
    loaded = rca_lightning.load(checkpoints["localize"])
    with pytest.raises(DataError, match="unknown tag 'circel'; did you mean 'circle'"):
        loaded.predict(photographs / "images" / "plain.png", ["circel"])
    with pytest.raises(DatasetNotFoundError, match=r"gone\.jpg"):
        loaded.predict(photographs / "images" / "gone.jpg")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image in it"):
        loaded.predict(tmp_path / "empty")
    (tmp_path / "cut.jpg").write_bytes((photographs / "images" / "cmyk.jpg").read_bytes()[:300])
    with pytest.raises(DataError, match=r"cut\.jpg"):
        loaded.predict(tmp_path / "cut.jpg")
    with pytest.raises(ArgumentError, match="not normalised"):
        loaded.predict(torch.randn(3, 20, 20))
    for wrong in (np.zeros((20, 20, 2), np.uint8), np.zeros((20, 20, 3), np.int64), torch.zeros(20, 20, 3), 5):
        with pytest.raises(ArgumentError, match="photograph="):
            loaded.predict(wrong)
    with pytest.raises(ArgumentError, match="no pixel"):
        loaded.predict(np.zeros((0, 20, 3), np.uint8))
