"""Refinements while predicting: of what they are made, where they run, and that nothing of them stays behind."""

from __future__ import annotations

import importlib.util
import multiprocessing
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from tests.folder_contents import file_bytes, file_names
from tests.prediction_runs import Photographs, predict
from tests.quiet_trainer import quiet_trainer

from rca_lightning.callbacks.pseudo_label_writer import PseudoLabelWriter
from rca_lightning.data.sample import collate
from rca_lightning.data.visualization import denormalise
from rca_lightning.errors import DataError, MissingExtraError, OutputError
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.pseudo_labels import files as label_files
from rca_lightning.pseudo_labels import refinement
from rca_lightning.pseudo_labels.labels import label_scores
from rca_lightning.pseudo_labels.refinement import refine_scores

with_crf = pytest.mark.skipif(
    importlib.util.find_spec("pydensecrf") is None, reason="pydensecrf2 (extra 'crf') is not installed"
)


@pytest.fixture(scope="module")
def module() -> RCAModule:
    torch.manual_seed(3)  # maps that neither are 0 nor full
    return RCAModule(num_classes=2, backbone="resnet14", output_stride=8, flip=False, contrast=False, aggregation=False)


class Recording:
    """A work queue that makes its calls at once and keeps what it was told to do."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def submit(self, function, *arguments) -> None:
        self.told.append(arguments[0])
        function(*arguments)

    def join(self) -> None:
        self.told.append("join")

    def close(self) -> None:
        self.told.append("close")


def labels_on_disk(writer: PseudoLabelWriter) -> dict[str, np.ndarray]:
    return {path.stem: np.asarray(Image.open(path)) for path in writer.output_dir.glob("pseudo_labels/*.png")}


@torch.inference_mode()
def expected_labels(module: RCAModule, data: Photographs, steps: Sequence[str]) -> dict[str, np.ndarray]:
    """The labels of one batch, from the functions for notebooks."""
    batch = collate(data.samples)
    module.eval()
    module.keeps_features = True
    try:
        seeds = module.seeds(batch["image"], batch["tags"])
    finally:
        module.keeps_features = False
    found = {}
    for image_id, image, one in zip(batch["image_id"], batch["image"], seeds, strict=True):
        picture = torch.from_numpy(denormalise(image)).permute(2, 0, 1) / 255
        scores = torch.cat([torch.full((1, *one.maps.shape[1:]), 0.2), one.maps])
        scores = refine_scores(scores, picture, steps, features=one.features)
        found[image_id] = label_scores(scores.clamp(0, 1), one.classes).numpy()
    return found


@pytest.mark.parametrize("steps", [["pamr"], ["random_walk"], ["random_walk", "pamr"]])
def test_labels_are_those_of_the_refined_maps(tmp_path, module, steps):
    writer, data = PseudoLabelWriter(str(tmp_path), refine=steps), Photographs("a", "b")
    predict(module, writer, data)
    found, plain = labels_on_disk(writer), expected_labels(module, data, [])
    for image_id, expected in expected_labels(module, data, steps).items():
        assert np.array_equal(found[image_id], expected)
    assert any((found[image_id] != plain[image_id]).any() for image_id in found)


def test_stored_maps_are_those_before_any_refinement(tmp_path, module):
    for name, steps in (("plain", []), ("refined", ["pamr"])):
        predict(module, PseudoLabelWriter(str(tmp_path / name), refine=steps), Photographs("a"))
    plain, refined = (np.load(tmp_path / name / "cams" / "a.npz") for name in ("plain", "refined"))
    with plain, refined:
        assert np.array_equal(plain["maps"], refined["maps"])
        assert plain["confidence"] != refined["confidence"]


def test_features_are_kept_while_a_writer_needs_them(tmp_path, module, monkeypatch):
    kept = []
    real = RCAModule.predict_step

    def record(self, batch, batch_idx):
        kept.append(self.keeps_features)
        return real(self, batch, batch_idx)

    monkeypatch.setattr(RCAModule, "predict_step", record)
    walking = PseudoLabelWriter(str(tmp_path / "walk"), refine=["random_walk"])
    plain = PseudoLabelWriter(str(tmp_path / "plain"))
    for callbacks in ([plain], [walking, plain], [plain]):
        for writer in callbacks:
            writer.folder.existing = "overwrite"
        quiet_trainer(tmp_path, callbacks=callbacks).predict(
            module, datamodule=Photographs("a"), return_predictions=False
        )
    assert kept == [False, True, False]
    assert file_names(tmp_path / "walk" / "pseudo_labels") == ["a.png"]


def test_the_crf_is_left_to_the_queue_which_is_joined_before_the_summary(tmp_path, module, monkeypatch):
    monkeypatch.setattr(refinement, "dense_crf", lambda maps, images, **_: maps.sqrt())
    monkeypatch.setattr("rca_lightning.pseudo_labels.generator.require_extra", lambda *_, **__: None)
    writer = PseudoLabelWriter(str(tmp_path), refine=["dense_crf"])
    assert (writer._queue.workers, writer._queue.threads) == (2, False)
    assert PseudoLabelWriter(str(tmp_path), refine=["pamr"])._queue.threads
    writer._queue = Recording()
    told_at_the_end = []
    monkeypatch.setattr(writer, "summarise", lambda *_: told_at_the_end.extend(writer._queue.told))
    predict(module, writer, Photographs("a", "b"))
    assert told_at_the_end == ["a", "b", "join"]


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_the_queue_is_closed_when_predicting_fails(tmp_path, module, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(RCAModule, "predict_step", fail)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # Lightning would turn Ctrl-C off for all later tests
    writer = PseudoLabelWriter(str(tmp_path))
    writer._queue = Recording()
    with pytest.raises((RuntimeError, SystemExit)):
        predict(module, writer, Photographs("a"))
    assert writer._queue.told == ["close"]


def test_missing_crf_is_told_before_the_first_image(tmp_path, module, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    monkeypatch.setattr(RCAModule, "predict_step", lambda *_: pytest.fail("an image was predicted"))
    with pytest.raises(MissingExtraError, match=r"rca-lightning\[crf\]"):
        predict(module, PseudoLabelWriter(str(tmp_path / "out"), refine=["pamr", "dense_crf"]), Photographs("a"))
    assert not (tmp_path / "out" / "predict.json").exists()


@with_crf
def test_workers_write_what_the_main_process_would(tmp_path, module):
    ids = ("a", "b", "c", "d", "e")
    for workers in (0, 1):
        writer = PseudoLabelWriter(str(tmp_path / str(workers)), refine=["pamr", "dense_crf"], workers=workers)
        assert predict(module, writer, Photographs(*ids)) == list(ids)
    here, there = (file_bytes(tmp_path / str(workers)) for workers in (0, 1))
    assert here.keys() == there.keys()
    assert [name for name in here if name.endswith(".png")] == [f"pseudo_labels/{name}.png" for name in ids]
    for name, content in here.items():
        if not name.endswith(".npz"):  # archives hold the time
            assert there[name] == content, name
    for image_id in ids:
        with (
            np.load(tmp_path / "0/cams" / f"{image_id}.npz") as one,
            np.load(tmp_path / "1/cams" / f"{image_id}.npz") as other,
        ):
            assert all(np.array_equal(one[name], other[name]) for name in one)
    assert multiprocessing.active_children() == []


@with_crf
def test_error_of_a_worker_stops_the_run_by_its_name(tmp_path, module, monkeypatch):
    writer = PseudoLabelWriter(str(tmp_path / "out"), refine=["dense_crf"], workers=1)
    begin = writer.folder.begin

    def obstruct() -> None:
        begin()
        (tmp_path / "out" / "pseudo_labels" / "a.png").mkdir()  # a folder cannot be replaced by a file

    monkeypatch.setattr(writer.folder, "begin", obstruct)
    with pytest.raises(OutputError, match=r"^output_dir=.*a\.png"):
        predict(module, writer, Photographs("a", "b", "c", "d"))
    assert multiprocessing.active_children() == []
    assert not (tmp_path / "out" / "quality.json").exists()


def test_error_in_the_main_process_stops_the_run_by_its_name(tmp_path, module, monkeypatch):
    def refuse(label, path):
        raise DataError(f"{path}: refused")

    monkeypatch.setattr(label_files, "write_mask_file", refuse)
    with pytest.raises(DataError, match=r"a\.png: refused"):
        predict(module, PseudoLabelWriter(str(tmp_path)), Photographs("a"))
