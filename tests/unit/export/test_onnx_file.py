"""An `.onnx` file answers in onnxruntime as the network does in torch."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tests.folder_contents import file_names
from torch import nn

from rca_lightning import errors
from rca_lightning.constants import IMAGENET_MEAN, IMAGENET_STD
from rca_lightning.errors import MissingExtraError
from rca_lightning.export.onnx import OPSET, save_onnx
from rca_lightning.export.program import Segmenter

SIZES = [(2, 97, 131), (1, 61, 97), (3, 64, 48), (1, 7, 5)]  # the first is the one that was traced


@pytest.fixture(scope="module")
def file(tmp_path_factory, networks) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    save_onnx(networks["decoder"], ["cat", "dog"], folder / "segmenter.onnx")
    assert file_names(folder) == ["segmenter.onnx"]  # no weights beside the file
    return folder / "segmenter.onnx"


def test_onnxruntime_gives_what_torch_gives(file, networks):
    session = onnxruntime.InferenceSession(file)
    torch.manual_seed(0)
    for number, height, width in SIZES:
        images = torch.rand(number, 3, height, width)
        with torch.no_grad():
            expected = Segmenter(networks["decoder"])(images).numpy()
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        assert logits.shape == (number, 3, height, width)
        assert logits.dtype == np.float32
        assert np.abs(logits - expected).max() < 1e-3
        assert np.abs(expected).max() > 0.02  # far more than what is tolerated


def test_file_is_valid_and_says_what_it_takes(file):
    content = onnx.load(file)
    onnx.checker.check_model(content, full_check=True)
    assert [(entry.domain, entry.version) for entry in content.opset_import if not entry.domain] == [("", OPSET)]
    (images,), (logits,) = content.graph.input, content.graph.output
    for value, name in ((images, "images"), (logits, "logits")):
        shape = [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        assert (value.name, shape) == (name, ["batch", 3, "height", "width"])


def test_description_is_read_by_onnxruntime(file):
    found = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
    assert json.loads(found["labels"]) == ["background", "cat", "dog"]
    assert (json.loads(found["mean"]), json.loads(found["std"])) == (list(IMAGENET_MEAN), list(IMAGENET_STD))
    assert found["channel_order"] == "RGB"
    assert json.loads(found["input_range"]) == [0, 1]


def test_a_file_that_fails_the_check_is_not_written(tmp_path, monkeypatch):
    path = tmp_path / "segmenter.onnx"
    path.write_bytes(b"before")

    def fail(content, full_check):
        assert full_check
        raise onnx.checker.ValidationError("no good")

    monkeypatch.setattr(onnx.checker, "check_model", fail)
    with pytest.raises(onnx.checker.ValidationError):
        save_onnx(nn.Conv2d(3, 2, 1), ["cat"], path)
    assert path.read_bytes() == b"before"
    assert file_names(tmp_path) == ["segmenter.onnx"]


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_missing_package_is_told_with_the_command_that_brings_it(tmp_path, monkeypatch, package):
    real = importlib.import_module

    def refuse(name):
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name)

    monkeypatch.setattr(errors.importlib, "import_module", refuse)
    with pytest.raises(MissingExtraError, match=rf"'{package}' is needed.*pip install 'rca-lightning\[export\]'"):
        save_onnx(nn.Conv2d(3, 2, 1), ["cat"], tmp_path / "segmenter.onnx")
    assert file_names(tmp_path) == []
