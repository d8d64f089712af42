"""`rca predict` into a folder that is new, half done, complete or of another model."""

from __future__ import annotations

import errno
import json

import numpy as np
import pytest
import torch
from tests.folder_contents import file_bytes, file_names
from tests.prediction_runs import Counting, Photographs, predict, with_prototypes
from tests.quiet_trainer import quiet_trainer

from rca_lightning.callbacks.pseudo_label_writer import PseudoLabelWriter
from rca_lightning.errors import OutputError
from rca_lightning.io import atomic
from rca_lightning.modules.rca_module import RCAModule


@pytest.fixture(scope="module")
def module() -> RCAModule:
    torch.manual_seed(0)
    return RCAModule(num_classes=2, backbone="resnet18", output_stride=8, flip=False, background_prototypes=0)


def test_prediction_writes_every_image_and_its_settings(tmp_path, module):
    assert predict(module, PseudoLabelWriter(str(tmp_path), background_threshold=0.3), Photographs("a", "b", "c"))
    names = [f"{folder}.{ending}" for folder, ending in (("cams/{}", "npz"), ("pseudo_labels/{}", "png"))]
    assert file_names(tmp_path) == sorted(
        [name.format(i) for name in names for i in "abc"] + ["predict.json", "quality.json"]
    )
    with np.load(tmp_path / "cams" / "b.npz", allow_pickle=False) as found:
        image = Photographs("a", "b").samples[1]
        module.eval()
        expected = module.seeds(image["image"][None], image["tags"][None])[0]
        assert np.allclose(found["maps"], expected.maps.numpy(), atol=2e-3)
        assert found["classes"].tolist() == [0, 1]
    settings = json.loads((tmp_path / "predict.json").read_text())
    assert settings["background_threshold"] == 0.3
    assert (settings["num_classes"], settings["backbone"], settings["flip"]) == (2, "resnet18", False)


@pytest.mark.parametrize(
    ("options", "given", "expected"),
    [
        ({"aggregation": True}, None, 0.7),
        ({"aggregation": True, "final_map": "coarse"}, None, 0.3),
        ({"aggregation": False, "contrast": False}, None, 0.3),
        ({"aggregation": False, "contrast": False, "propagation_steps": 0}, None, 0.15),
        ({"aggregation": True}, 0.2, 0.2),
    ],
)
def test_threshold_suits_the_map_unless_given(tmp_path, options, given, expected):
    module = RCAModule(num_classes=2, backbone="resnet14", flip=False, background_prototypes=0, **options)
    module = with_prototypes(module) if options["aggregation"] else module
    predict(module, PseudoLabelWriter(str(tmp_path), background_threshold=given), Photographs("a"))
    assert json.loads((tmp_path / "predict.json").read_text())["background_threshold"] == expected


def test_maps_without_any_prototype_have_the_threshold_of_cams(tmp_path):
    module = RCAModule(num_classes=2, backbone="resnet14", flip=False)
    predict(module, PseudoLabelWriter(str(tmp_path)), Photographs("a"))
    settings = json.loads((tmp_path / "predict.json").read_text())
    assert (settings["background_threshold"], settings["reads_attention"]) == (0.3, False)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"aggregation": True}, "propagated RCA attention"),
        ({"aggregation": True, "propagation_steps": 0}, "RCA attention"),
        ({"aggregation": True, "final_map": "refined", "propagation_steps": 0}, "refined CAM"),
        ({"aggregation": True, "final_map": "mean"}, "propagated mean of CAM and refined CAM"),
        ({"aggregation": True, "final_map": "coarse"}, "propagated CAM"),
        ({"aggregation": False, "contrast": False}, "propagated CAM"),
        ({"aggregation": False, "contrast": False, "propagation_steps": 0}, "CAM"),
    ],
)
def test_settings_tell_the_kind_of_the_maps(tmp_path, options, kind):
    module = RCAModule(num_classes=2, backbone="resnet14", flip=False, background_prototypes=0, **options)
    module = with_prototypes(module) if options["aggregation"] else module
    predict(module, PseudoLabelWriter(str(tmp_path)), Photographs("a"))
    settings = json.loads((tmp_path / "predict.json").read_text())
    assert settings["map_kind"] == kind
    assert settings["propagation_steps"] == options.get("propagation_steps", 1)
    assert (settings["propagation_power"], settings["propagation_affinity"]) == (2.0, "cosine")
    assert settings["checkpoint_sha256"] is None  # no checkpoint was given


def test_a_folder_of_maps_that_were_propagated_otherwise_is_refused(tmp_path, module):
    predict(module, PseudoLabelWriter(str(tmp_path)), Photographs("a"))
    module.hparams["propagation_steps"] = 0
    with pytest.raises(OutputError, match="propagation_steps: 1 there, 0 now"):
        predict(module, PseudoLabelWriter(str(tmp_path)), Photographs("a", "b"))


def test_complete_images_are_not_computed_again(tmp_path, module):
    assert predict(module, PseudoLabelWriter(str(tmp_path)), Photographs("a", "b.1")) == ["a", "b.1"]
    before = file_bytes(tmp_path)
    assert predict(module, PseudoLabelWriter(str(tmp_path)), Photographs("a", "b.1", "c")) == ["c"]
    after = file_bytes(tmp_path)
    del before["quality.json"]  # counts all images
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 3


@pytest.mark.parametrize("lost", ["cams/a.npz", "pseudo_labels/a.png", "overlays/a.jpg"])
def test_half_written_images_are_done_again(tmp_path, module, lost):
    predict(module, PseudoLabelWriter(str(tmp_path), overlays=True), Photographs("a", "b"))
    (tmp_path / lost).unlink()
    assert predict(module, PseudoLabelWriter(str(tmp_path), overlays=True), Photographs("a", "b")) == ["a"]
    assert (tmp_path / lost).is_file()


def test_overlays_asked_for_later_are_added(tmp_path, module):
    predict(module, PseudoLabelWriter(str(tmp_path)), Photographs("a"))
    assert predict(module, PseudoLabelWriter(str(tmp_path), overlays=True), Photographs("a")) == ["a"]
    assert (tmp_path / "overlays" / "a.jpg").is_file()


def test_overwrite_computes_everything(tmp_path, module):
    predict(module, PseudoLabelWriter(str(tmp_path), background_threshold=0.2), Photographs("a", "b"))
    writer = PseudoLabelWriter(str(tmp_path), background_threshold=0.9, existing="overwrite")
    assert predict(module, writer, Photographs("a", "b")) == ["a", "b"]
    assert json.loads((tmp_path / "predict.json").read_text())["background_threshold"] == 0.9


def test_folder_of_another_setting_is_refused_by_name(tmp_path, module):
    predict(module, PseudoLabelWriter(str(tmp_path), background_threshold=0.2), Photographs("a"))
    before = file_bytes(tmp_path)
    with pytest.raises(OutputError) as caught:
        predict(module, PseudoLabelWriter(str(tmp_path), background_threshold=0.4), Photographs("a", "b"))
    text = str(caught.value)
    assert "background_threshold: 0.2 there, 0.4 now" in text
    assert "weights_digest" not in text
    assert str(tmp_path) in text
    assert "existing='overwrite'" in text
    assert file_bytes(tmp_path) == before


def test_folder_of_another_model_is_refused(tmp_path, module):
    predict(module, PseudoLabelWriter(str(tmp_path)), Photographs("a"))
    torch.manual_seed(1)
    other = RCAModule(num_classes=2, backbone="resnet18", output_stride=8, scales=(1.0, 2.0), background_prototypes=0)
    with pytest.raises(OutputError, match=r"weights_digest: .*scales: \[1\.0\] there, \[1\.0, 2\.0\] now; flip"):
        predict(other, PseudoLabelWriter(str(tmp_path)), Photographs("a", "b"))


def test_overwriting_cut_short_is_remembered(tmp_path, module, monkeypatch):
    predict(module, PseudoLabelWriter(str(tmp_path), background_threshold=0.2), Photographs("a", "b"))
    writer = PseudoLabelWriter(str(tmp_path), background_threshold=0.9, existing="overwrite")
    monkeypatch.setattr(writer, "write", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        predict(module, writer, Photographs("a", "b"))
    with pytest.raises(OutputError, match="overwriting: True there, False now"):
        predict(module, PseudoLabelWriter(str(tmp_path), background_threshold=0.9), Photographs("a", "b", "c"))


@pytest.mark.parametrize("text", ["{half", "[]"])
def test_unreadable_settings_are_named(tmp_path, module, text):
    (tmp_path / "predict.json").write_text(text)
    with pytest.raises(OutputError, match=r"predict\.json.*delete it, or give existing='overwrite'"):
        predict(module, PseudoLabelWriter(str(tmp_path)), Photographs("a"))


@pytest.mark.parametrize("existing", ["skip", "overwrite"])
@pytest.mark.parametrize("occupied", ["file", "results/cams", "results/pseudo_labels", "results/overlays"])
def test_file_where_a_folder_must_be_is_named_before_predicting(tmp_path, module, occupied, existing):
    path = tmp_path / occupied
    path.parent.mkdir(exist_ok=True)
    path.write_text("in the way")
    folder = tmp_path / "file" / "below" if occupied == "file" else tmp_path / "results"
    writer = PseudoLabelWriter(str(folder), overlays=True, existing=existing)
    monitor = Counting()
    trainer = quiet_trainer(tmp_path, callbacks=[writer, monitor])
    with pytest.raises(OutputError, match=rf"^output_dir='{folder}' cannot be written to .*; give a folder where"):
        trainer.predict(module, datamodule=Photographs("a"), return_predictions=False)
    assert monitor.seen == []
    assert path.read_text() == "in the way"


def test_folder_that_takes_no_files_is_named_before_predicting(tmp_path, module, monkeypatch):
    def refuse(dir):
        raise OSError(errno.EROFS, "Read-only file system", str(dir))

    monkeypatch.setattr(atomic.tempfile, "TemporaryFile", refuse)
    with pytest.raises(OutputError, match=r"output_dir='.*out' cannot be written to \(.*Read-only file system"):
        predict(module, PseudoLabelWriter(str(tmp_path / "out")), Photographs("a"))


def test_the_same_writer_may_predict_twice(tmp_path, module):
    writer = PseudoLabelWriter(str(tmp_path), existing="overwrite")
    for _ in range(2):
        assert predict(module, writer, Photographs("a")) == ["a"]


def test_other_stages_leave_the_folder_alone(tmp_path, module):
    PseudoLabelWriter(str(tmp_path / "out")).setup(None, module, "fit")
    assert not (tmp_path / "out").exists()


def test_two_writers_each_get_what_they_lack(tmp_path, module):
    first, second = (PseudoLabelWriter(str(tmp_path / name)) for name in ("first", "second"))
    predict(module, first, Photographs("a", "b"))
    counting = Counting()
    trainer = quiet_trainer(tmp_path, callbacks=[first, second, counting])
    trainer.predict(module, datamodule=Photographs("a", "b", "c"), return_predictions=False)
    assert counting.seen == ["a", "b", "c"]
    assert (first.written, second.written) == (1, 3)
    assert file_bytes(tmp_path / "first" / "cams") == file_bytes(tmp_path / "second" / "cams")
