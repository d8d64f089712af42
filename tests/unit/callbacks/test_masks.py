"""Masks of the second stage: files, layouts, COCO results, and a folder that is resumed."""

from __future__ import annotations

import json
from collections.abc import Container
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from tests.folder_contents import file_bytes, file_names
from tests.quiet_trainer import quiet_trainer
from tests.tagged_images import tagged_images
from torch.utils.data import DataLoader

from rca_lightning.callbacks.mask_writer import MaskWriter
from rca_lightning.data.classes import COCO_CLASSES, voc_palette
from rca_lightning.data.sample import collate
from rca_lightning.data.visualization import denormalise, overlay_mask
from rca_lightning.errors import ArgumentError, DataError, OutputError
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.modules.segmentation_module import SegmentationModule
from rca_lightning.submission.coco import check_coco
from rca_lightning.submission.voc import check_voc

H, W = 32, 40


class Painter(SegmentationModule):
    """Draws what can be told from the photograph: its bright and its dark pixels."""

    def __init__(self, num_classes: int = 2, class_names: list[str] | None = None) -> None:
        super().__init__(num_classes, class_names, backbone="resnet14", flip=False)
        self.painted: list[str] = []

    def predict_step(self, batch, batch_idx):
        self.painted.extend(batch["image_id"])
        return [
            {
                "image_id": image_id,
                "labels": labels_of(image, len(self.class_names)),
                "confidence": confidence_of(image),
            }
            for image_id, image in zip(batch["image_id"], batch["image"], strict=True)
        ]


def labels_of(image: torch.Tensor, last: int = 2) -> torch.Tensor:
    bright = image.mean(0)
    return (bright > 0.5).to(torch.uint8) + last * (bright < -0.5).to(torch.uint8)


def confidence_of(image: torch.Tensor) -> float:
    return float(image.abs().mean().clamp(max=1))


class Photographs(L.LightningDataModule):
    """The part of a data module that prediction asks for."""

    def __init__(self, *ids: str) -> None:
        super().__init__()
        self.samples, self.left_out = tagged_images(*ids, height=H, width=W), set()
        self.predict_records = [SimpleNamespace(image_id=image_id) for image_id in ids]

    def leave_out_of_prediction(self, image_ids: Container[str]) -> None:
        self.left_out = {sample["image_id"] for sample in self.samples if sample["image_id"] in image_ids}

    def predict_dataloader(self) -> DataLoader:
        rest = [sample for sample in self.samples if sample["image_id"] not in self.left_out]
        return DataLoader(rest or self.samples[:1], batch_size=2, collate_fn=collate)


def predict(writer: MaskWriter, *ids: str, module: SegmentationModule | None = None) -> list[str]:
    """Return the images the module was asked for."""
    torch.manual_seed(0)
    module = module or Painter()
    module.painted.clear()
    trainer = quiet_trainer(writer.output_dir, callbacks=[writer])
    trainer.predict(module, datamodule=Photographs(*ids), return_predictions=False)
    return module.painted


def image_of(image_id: str, *ids: str) -> torch.Tensor:
    return next(s["image"] for s in tagged_images(*ids, height=H, width=W) if s["image_id"] == image_id)


def test_masks_are_palette_images_in_the_size_of_the_photograph(tmp_path):
    assert predict(MaskWriter(str(tmp_path)), "a", "b.1", "c") == ["a", "b.1", "c"]
    assert file_names(tmp_path) == ["masks/a.png", "masks/b.1.png", "masks/c.png", "predict.json"]
    for image_id in ("a", "b.1", "c"):
        with Image.open(tmp_path / "masks" / f"{image_id}.png") as picture:
            assert (picture.format, picture.mode, picture.size) == ("PNG", "P", (W, H))
            assert picture.getpalette()[:63] == voc_palette(21).flatten().tolist()
            labels = labels_of(image_of(image_id, "a", "b.1", "c")).numpy()
            assert np.array_equal(np.asarray(picture), labels)
            assert set(labels.flat) == {0, 1, 2}


def test_layout_of_the_voc_server_passes_the_check(tmp_path):
    ids = ["2007_000001", "2007_000002"]
    root = tmp_path / "VOC2012" / "JPEGImages"
    root.mkdir(parents=True)
    for image_id in ids:
        Image.new("RGB", (W, H)).save(root / f"{image_id}.jpg")
    predict(MaskWriter(str(tmp_path / "out"), layout="voc2012"), *ids)
    folder = "results/VOC2012/Segmentation/comp6_test_cls"
    assert file_names(tmp_path / "out") == ["predict.json", *(f"{folder}/{image_id}.png" for image_id in ids)]
    assert check_voc(tmp_path / "out", ids, tmp_path / "VOC2012").values == (0, 1, 2)


@pytest.mark.parametrize("layout", ["masks", "voc2012"])
def test_overlays_are_the_labels_over_the_photograph(tmp_path, layout):
    predict(MaskWriter(str(tmp_path), layout=layout, overlays=True), "a")
    image = image_of("a", "a")
    expected = overlay_mask(denormalise(image), labels_of(image).numpy())
    with Image.open(tmp_path / "overlays" / "a.jpg") as picture:
        assert (picture.format, picture.size) == ("JPEG", (W, H))
        # Random pixels are the worst that JPEG can meet; its average over blocks stays.
        blocks = (np.asarray(picture).astype(float) - expected).reshape(H // 8, 8, W // 8, 8, 3).mean((1, 3))
        assert np.abs(blocks).mean() < 4


def coco_results(folder) -> list[dict]:
    return json.loads((folder / "coco_results.json").read_text())


def test_coco_results_are_the_regions_of_the_masks(tmp_path):
    predict(MaskWriter(str(tmp_path), coco_results=True), "a", "b")
    found = coco_results(tmp_path)
    assert [(entry["image_id"], entry["category_id"]) for entry in found] == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    for entry in found:
        image = image_of(entry["image_id"], "a", "b")
        assert np.array_equal(coco_mask.decode(entry["segmentation"]), labels_of(image) == entry["category_id"])
        assert entry["score"] == pytest.approx(confidence_of(image), rel=1e-5)


def test_coco_results_of_coco_have_its_ids(tmp_path):
    predict(MaskWriter(str(tmp_path), coco_results=True), "000000000139", module=Painter(80, list(COCO_CLASSES)))
    assert {(entry["image_id"], entry["category_id"]) for entry in coco_results(tmp_path)} == {(139, 1), (139, 90)}
    annotations = tmp_path / "image_info.json"
    images = [{"id": 139, "height": H, "width": W}]
    annotations.write_text(json.dumps({"images": images, "categories": [{"id": 1}, {"id": 90}]}))
    assert check_coco(tmp_path / "coco_results.json", annotations).values == (1, 90)


def test_resumed_run_has_the_results_of_all_images(tmp_path):
    ids = ["a", "b", "c", "d"]
    predict(MaskWriter(str(tmp_path / "once"), coco_results=True), *ids)
    predict(MaskWriter(str(tmp_path / "twice")), *ids)
    for lost in ("b", "d"):
        (tmp_path / "twice" / "masks" / f"{lost}.png").unlink()
    assert predict(MaskWriter(str(tmp_path / "twice"), coco_results=True), *ids) == ["b", "d"]
    assert file_bytes(tmp_path / "twice") == file_bytes(tmp_path / "once")
    (tmp_path / "twice" / "coco_results.json").unlink()
    predict(MaskWriter(str(tmp_path / "twice"), coco_results=True), *ids)
    assert file_bytes(tmp_path / "twice") == file_bytes(tmp_path / "once")


def test_results_hold_the_images_of_the_split_only(tmp_path):
    predict(MaskWriter(str(tmp_path)), "a", "b")
    predict(MaskWriter(str(tmp_path), coco_results=True), "b", "c")
    assert sorted({entry["image_id"] for entry in coco_results(tmp_path)}) == ["b", "c"]


def test_without_a_data_module_all_masks_there_are_in_the_results(tmp_path):
    predict(MaskWriter(str(tmp_path)), "a")
    trainer = quiet_trainer(tmp_path, callbacks=[MaskWriter(str(tmp_path), coco_results=True)])
    loader = DataLoader(tagged_images("b", height=H, width=W), collate_fn=collate)
    torch.manual_seed(0)
    trainer.predict(Painter(), loader, return_predictions=False)
    assert sorted({entry["image_id"] for entry in coco_results(tmp_path)}) == ["a", "b"]


@pytest.mark.parametrize("options", [{"coco_results": True}, {"existing": "overwrite"}])
def test_results_out_of_date_do_not_outlive_the_start(tmp_path, monkeypatch, options):
    predict(MaskWriter(str(tmp_path), coco_results=True), "a")
    writer = MaskWriter(str(tmp_path), **options)
    monkeypatch.setattr(writer, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        predict(writer, "b")
    assert not (tmp_path / "coco_results.json").exists()


def test_results_of_other_runs_stay_unless_masks_change(tmp_path):
    predict(MaskWriter(str(tmp_path), coco_results=True), "a")
    before = file_bytes(tmp_path)
    predict(MaskWriter(str(tmp_path)), "a")
    assert file_bytes(tmp_path) == before


def test_masks_of_another_program_are_named(tmp_path):
    predict(MaskWriter(str(tmp_path), coco_results=True), "b")
    (tmp_path / "coco_results.json").unlink()
    Image.new("P", (W, H)).save(tmp_path / "masks" / "a.png")
    with pytest.raises(OutputError, match=r"a\.png says no confidence.*delete it"):
        predict(MaskWriter(str(tmp_path), coco_results=True), "a", "b")
    (tmp_path / "masks" / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.png: not an image"):
        predict(MaskWriter(str(tmp_path), coco_results=True), "a", "b")
    assert not (tmp_path / "coco_results.json").exists()


def test_complete_images_are_not_computed_again(tmp_path):
    assert predict(MaskWriter(str(tmp_path)), "a", "b") == ["a", "b"]
    before = file_bytes(tmp_path)
    assert predict(MaskWriter(str(tmp_path)), "a", "b", "c") == ["c"]
    assert {name: content for name, content in file_bytes(tmp_path).items() if name in before} == before
    assert predict(MaskWriter(str(tmp_path), overlays=True), "a", "b", "c") == ["a", "b", "c"]
    assert predict(MaskWriter(str(tmp_path), existing="overwrite"), "a", "b") == ["a", "b"]


def test_settings_of_the_module_are_kept_and_others_refused(tmp_path):
    predict(MaskWriter(str(tmp_path)), "a")
    settings = json.loads((tmp_path / "predict.json").read_text())
    assert (settings["head"], settings["backbone"], settings["crf"]) == ("deeplabv2", "resnet14", False)
    other = Painter()
    other.hparams["scales"] = (0.5, 1.0)
    before = file_bytes(tmp_path)
    with pytest.raises(OutputError, match=r"scales: \[1\.0\] there, \[0\.5, 1\.0\] now"):
        predict(MaskWriter(str(tmp_path)), "b", module=other)
    torch.manual_seed(9)
    with pytest.raises(OutputError, match="weights_digest: "):
        predict(MaskWriter(str(tmp_path)), "b", module=Painter())
    assert file_bytes(tmp_path) == before


@pytest.mark.parametrize("image_id", ["../up", "a/b", ".."])
def test_ids_that_could_leave_the_folder_are_refused(tmp_path, image_id):
    with pytest.raises(OutputError, match="cannot be a file name"):
        predict(MaskWriter(str(tmp_path / "inner"), layout="voc2012"), image_id)
    assert file_names(tmp_path) == ["inner/predict.json"]


def test_two_images_of_one_id_are_refused(tmp_path):
    with pytest.raises(OutputError, match="image_id='a' belongs to two images"):
        predict(MaskWriter(str(tmp_path)), "a", "b", "a")


def test_full_disk_leaves_former_files_whole(tmp_path, monkeypatch):
    predict(MaskWriter(str(tmp_path)), "a")
    before = file_bytes(tmp_path)["masks/a.png"]

    def fail(picture, file, **options):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OutputError, match=r"output_dir=.* cannot be written to \(.*No space left"):
        predict(MaskWriter(str(tmp_path), existing="overwrite"), "a", "b")
    assert file_bytes(tmp_path)["masks/a.png"] == before
    assert file_names(tmp_path) == ["masks/a.png", "predict.json"]


def test_other_modules_and_layouts_are_refused(tmp_path):
    other = RCAModule(num_classes=2, backbone="resnet14", background_prototypes=0)
    other.painted = []
    with pytest.raises(ArgumentError, match="model='RCAModule': MaskWriter writes predictions of SegmentationModule"):
        predict(MaskWriter(str(tmp_path)), "a", module=other)
    with pytest.raises(ArgumentError, match="layout='voc': give one of masks, voc2012"):
        MaskWriter(str(tmp_path), layout="voc")


def test_what_the_real_module_predicts_is_written(tmp_path):
    torch.manual_seed(0)
    module = SegmentationModule(2, backbone="resnet14", flip=False)
    writer = MaskWriter(str(tmp_path), coco_results=True)
    trainer = quiet_trainer(tmp_path, callbacks=[writer])
    (predictions,) = trainer.predict(module, datamodule=Photographs("a", "b"))
    for found in predictions:
        labels = np.asarray(Image.open(tmp_path / "masks" / f"{found['image_id']}.png"))
        assert labels.shape == (H, W)
        assert np.array_equal(labels, found["labels"].numpy())
    scores = {entry["image_id"]: entry["score"] for entry in coco_results(tmp_path)}
    expected = {p["image_id"]: pytest.approx(p["confidence"], rel=1e-5) for p in predictions if p["labels"].any()}
    assert scores == expected
    assert scores
