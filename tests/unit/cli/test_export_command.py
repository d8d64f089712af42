"""`rca export`: from a checkpoint to a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from tests.folder_contents import file_names
from tests.quiet_trainer import quiet_trainer

from rca_lightning.cli import run_export as command
from rca_lightning.cli.export import main
from rca_lightning.data.transforms import Pixels, normalise
from rca_lightning.errors import ArgumentError, MissingExtraError, OutputError, WeightsError
from rca_lightning.io.atomic import write_atomically
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.modules.segmentation_module import SegmentationModule


def save_checkpoint(module, path: Path) -> Path:
    trainer = quiet_trainer(path.parent)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, tuple[SegmentationModule, Path]]:
    torch.manual_seed(0)
    found = {}
    for head in ("deeplabv2", "deeplabv3plus"):
        module = SegmentationModule(num_classes=2, class_names=["cat", "dog"], backbone="resnet14", head=head)
        for parameter in module.network.head.parameters():
            parameter.data.normal_(std=0.1)  # as built, all labels are about equal
        found[head] = module.eval(), save_checkpoint(module, tmp_path_factory.mktemp(head) / "last.ckpt")
    return found


def run_file(path: Path, images: np.ndarray) -> np.ndarray:
    if path.suffix == ".onnx":
        return onnxruntime.InferenceSession(path).run(None, {"images": images})[0]
    with torch.no_grad():
        return torch.export.load(path).module()(torch.from_numpy(images)).numpy()


# The ONNX file is made of the program that the other ending holds.
@pytest.mark.parametrize(("head", "ending"), [("deeplabv3plus", "onnx"), ("deeplabv2", "pt2")])
def test_file_labels_photographs_as_the_module_does(tmp_path, trained, capsys, head, ending):
    module, checkpoint = trained[head]
    out = tmp_path / f"segmenter.{ending}"
    main(["--ckpt_path", str(checkpoint), "--out", str(out)])
    told = f"exported: {out} (images: RGB in [0, 1], any size; logits: 3 labels, background first)\n"
    assert capsys.readouterr().out == told
    assert file_names(tmp_path) == [out.name]
    for height, width in [(64, 80), (61, 97), (33, 50)]:
        photograph = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        images = (photograph / 255).astype(np.float32).transpose(2, 0, 1)[None]
        logits = run_file(out, images)
        with torch.no_grad():
            coarse = module.network(normalise(Pixels(photograph))[None])
            expected = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").numpy()
        assert np.abs(logits - expected).max() < 1e-3
        assert np.abs(expected).max() > 0.1


def refuse_to_load(*args, **kwargs):
    raise AssertionError("the checkpoint was read")


@pytest.mark.parametrize(
    ("out", "expected"),
    [("segmenter.pt", r"out='segmenter\.pt': give a name that ends in \.onnx or \.pt2"), ("a/.onnx", "out='a/.onnx'")],
)
def test_other_endings_are_refused_before_anything_is_read(monkeypatch, out, expected):
    monkeypatch.setattr(SegmentationModule, "load_from_checkpoint", refuse_to_load)
    with pytest.raises(ArgumentError, match=expected):
        main(["--ckpt_path", "last.ckpt", "--out", out])


def test_folder_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(SegmentationModule, "load_from_checkpoint", refuse_to_load)
    (tmp_path / "x.onnx").mkdir()
    with pytest.raises(ArgumentError, match=r"out='.*x\.onnx': this is a folder"):
        main(["--ckpt_path", "last.ckpt", "--out", str(tmp_path / "x.onnx")])


def test_missing_package_is_told_before_anything_is_read(monkeypatch):
    def missing():
        raise MissingExtraError("no onnx")

    monkeypatch.setattr(SegmentationModule, "load_from_checkpoint", refuse_to_load)
    monkeypatch.setattr(command, "require_onnx", missing)
    with pytest.raises(MissingExtraError, match="no onnx"):
        main(["--ckpt_path", "last.ckpt", "--out", "segmenter.onnx"])


def test_place_that_takes_no_files_is_named(tmp_path, trained, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setitem(command._WRITERS, ".pt2", lambda network, names, path: write_atomically(path, print))
    with pytest.raises(OutputError, match=r"out='.*file/segmenter\.pt2' cannot be written"):
        main(["--ckpt_path", str(trained["deeplabv2"][1]), "--out", str(tmp_path / "file" / "segmenter.pt2")])


def test_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ArgumentError, match=r"ckpt_path=.*none\.ckpt': there is no such file"):
        main(["--ckpt_path", str(tmp_path / "none.ckpt"), "--out", "segmenter.pt2"])


def test_checkpoint_of_the_first_stage_is_refused(tmp_path):
    module = RCAModule(num_classes=2, backbone="resnet14", background_prototypes=0)
    checkpoint = save_checkpoint(module, tmp_path / "first.ckpt")
    with pytest.raises(WeightsError):
        main(["--ckpt_path", str(checkpoint), "--out", str(tmp_path / "segmenter.pt2")])
    assert file_names(tmp_path) == ["first.ckpt"]


@pytest.mark.parametrize("text", ["", "--out x.onnx", "--ckpt_path last.ckpt", "--ckpt last.ckpt --out x.onnx", "y"])
def test_words_that_cannot_be_parsed(text, capsys):
    with pytest.raises(SystemExit) as caught:
        main(text.split())
    assert caught.value.code == 2
    assert "rca export: error:" in capsys.readouterr().err


def test_help_tells_of_every_argument(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    told = capsys.readouterr().out
    assert all(word in told for word in ("--ckpt_path", "--out", ".onnx", ".pt2"))
