"""Weights files: what is loaded and what is refused."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from rca_lightning.backbones.build import build_backbone
from rca_lightning.backbones.weights import load_cam_head, load_weights, trained_padding
from rca_lightning.errors import ArgumentError, MissingExtraError, WeightsError
from rca_lightning.rca.cam import CAMHead


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def saved(tmp_path: Path, content: object, name: str = "weights.pth") -> str:
    torch.save(content, tmp_path / name)
    return str(tmp_path / name)


def test_none_changes_nothing():
    module = network()
    before = module[0].weight.clone()
    load_weights(module, "none")
    assert torch.equal(module[0].weight, before)


@pytest.mark.parametrize("source", [None, "none"])
def test_random_weights_pad_with_zeros(source):
    assert trained_padding(source) == "zeros"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"0.weight": torch.ones(1)}, "zeros"),
        ({"state_dict": {}, "hyper_parameters": {"backbone": "resnet14"}}, "zeros"),
        ({"state_dict": {}, "hyper_parameters": {"padding_mode": "zeros"}}, "zeros"),
        ({"state_dict": {}, "hyper_parameters": {"padding_mode": "replicate"}}, "replicate"),
        ({"state_dict": {}, "hyper_parameters": {"padding_mode": "damaged"}}, "zeros"),
        ({"state_dict": {}, "hyper_parameters": 3}, "zeros"),
        ([torch.ones(1)], "zeros"),
    ],
)
def test_padding_that_weights_were_trained_with(tmp_path, content, expected):
    assert trained_padding(saved(tmp_path, content)) == expected


def test_padding_of_missing_weights(tmp_path):
    with pytest.raises(WeightsError, match="there is no such file"):
        trained_padding(str(tmp_path / "absent.pth"))


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_is_cast_to_float32(tmp_path, dtype, wrapped):
    origin, module = network(), network()
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in origin.state_dict().items()}
    load_weights(module, saved(tmp_path, {"state_dict": state, "epoch": 3} if wrapped else state))
    for key, value in module.state_dict().items():
        assert value.dtype == (torch.int64 if "tracked" in key else torch.float32)
        assert torch.equal(value, state[key].to(value.dtype))


def test_backbone_round_trip_in_half_precision(tmp_path):
    origin = build_backbone("resnet18")
    path = saved(tmp_path, {key: value.half() for key, value in origin.state_dict().items()})
    found = build_backbone("resnet18", output_stride=8, weights=path).state_dict()
    for key, value in origin.state_dict().items():
        torch.testing.assert_close(found[key], value.half().to(found[key].dtype), rtol=0, atol=0)


def test_classifier_and_batch_counters_are_passed_over(tmp_path):
    state = {key: value for key, value in network().state_dict().items() if "tracked" not in key}
    module = network()
    load_weights(module, saved(tmp_path, {**state, "fc.weight": torch.ones(2), "classifier.6.bias": torch.ones(2)}))
    assert torch.equal(module[0].weight, state["0.weight"])


def test_misfits_are_listed_and_nothing_is_loaded(tmp_path):
    state = network().state_dict()
    del state["0.bias"]
    state["extra"] = torch.ones(1)
    state["1.weight"] = torch.ones(5)
    module = network()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(module, saved(tmp_path, state))
    message = str(caught.value)
    assert "weights.pth" in message
    assert "missing keys (1): 0.bias" in message
    assert "surplus keys (1): extra" in message
    assert "other shapes (1): 1.weight (5,) instead of (4,)" in message
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_long_lists_are_cut_with_a_count(tmp_path):
    path = saved(tmp_path, {**network().state_dict(), **{f"extra{n:02}": torch.ones(1) for n in range(25)}})
    with pytest.raises(WeightsError, match=r"surplus keys \(25\): extra00, .*extra19 and 5 more") as caught:
        load_weights(network(), path)
    assert "extra20" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(tmp_path, value):
    state = network().state_dict()
    state["0.weight"][1, 1, 1, 1] = value
    with pytest.raises(WeightsError, match=r"NaN or infinite values \(1\): 0.weight"):
        load_weights(network(), saved(tmp_path, state))


def test_integers_in_place_of_weights_are_refused(tmp_path):
    state = {**network().state_dict(), "0.weight": torch.ones(4, 3, 3, 3, dtype=torch.int64)}
    with pytest.raises(WeightsError, match=r"not floating point \(1\): 0.weight torch.int64"):
        load_weights(network(), saved(tmp_path, state))


class _Touch:
    """Unpickled carelessly, it creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("plain_pickle", [False, True])
def test_code_in_a_pickle_is_not_run(tmp_path, plain_pickle):
    trap, path = tmp_path / "trap", tmp_path / "hostile.pth"
    content = {"0.weight": torch.ones(1), "trap": _Touch(trap)}
    if plain_pickle:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(WeightsError, match=r"hostile.pth was not loaded.*tensors"):
        load_weights(network(), str(path))
    assert not trap.exists()
    torch.load(path, weights_only=False) if not plain_pickle else pickle.loads(path.read_bytes())
    assert trap.exists()  # the trap is a real one


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04broken"])
def test_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"broken.pth was not loaded"):
        load_weights(network(), str(path))


@pytest.mark.parametrize("content", [[1, 2], torch.ones(2)])
def test_something_else_than_a_dictionary_is_refused(tmp_path, content):
    with pytest.raises(WeightsError, match="a dictionary of tensors is needed"):
        load_weights(network(), saved(tmp_path, content))


def test_entries_that_are_no_tensors_are_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"not tensors \(2\): epoch, note"):
        load_weights(network(), saved(tmp_path, {**network().state_dict(), "epoch": 3, "note": "best"}))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"nowhere.pth.*no such file"):
        load_weights(network(), str(tmp_path / "nowhere.pth"))


def test_folder_is_called_a_folder(tmp_path):
    with pytest.raises(WeightsError, match=r"weights='.*': this is a folder; give the path of the weights file in it"):
        load_weights(network(), str(tmp_path))


@pytest.mark.parametrize("wrapped", [False, True])
def test_of_a_checkpoint_of_fit_the_backbone_is_taken(tmp_path, wrapped):
    trained, module = network(), network()
    state = {f"network.backbone.{key}": value for key, value in trained.state_dict().items()}
    state["network.coarse_head.conv.weight"] = torch.ones(2, 4, 1, 1)
    content = {"state_dict": state, "pytorch-lightning_version": "2.6.0"} if wrapped else state
    load_weights(module, saved(tmp_path, content, "last.ckpt"))
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in module.state_dict().items())
    with pytest.raises(WeightsError, match=r"last\.ckpt does not fit Conv2d: missing keys \(2\)"):
        load_weights(nn.Conv2d(3, 4, 3), saved(tmp_path, content, "last.ckpt"))


def test_of_a_checkpoint_of_fit_the_cam_head_is_taken_if_it_fits(tmp_path):
    state = {f"network.backbone.{key}": value for key, value in network().state_dict().items()}
    backbone_alone = saved(tmp_path, state, "backbone.pth")
    state["network.coarse_head.conv.weight"] = torch.randn(2, 4, 1, 1)
    source = saved(tmp_path, {"state_dict": state}, "last.ckpt")
    head, other, untouched = CAMHead(4, 2), CAMHead(4, 3), CAMHead(4, 2)
    before = untouched.conv.weight.clone()
    assert load_cam_head(head, source, sha256=hashlib.sha256(Path(source).read_bytes()).hexdigest())
    assert torch.equal(head.conv.weight, state["network.coarse_head.conv.weight"])
    assert not load_cam_head(other, source)
    assert not load_cam_head(untouched, backbone_alone)
    assert not load_cam_head(untouched, "none")
    assert torch.equal(untouched.conv.weight, before)
    with pytest.raises(WeightsError, match="0" * 64):
        load_cam_head(head, source, sha256="0" * 64)


def test_cam_head_of_other_classes_is_not_taken(tmp_path):
    state = {f"network.backbone.{key}": value for key, value in network().state_dict().items()}
    state["network.coarse_head.conv.weight"] = torch.randn(2, 4, 1, 1)
    arguments = {"class_names": ["cat", "dog"]}
    source = saved(tmp_path, {"state_dict": state, "hyper_parameters": arguments}, "last.ckpt")
    head = CAMHead(4, 2)
    before = head.conv.weight.clone()
    assert not load_cam_head(head, source, class_names=["dog", "cat"])
    assert torch.equal(head.conv.weight, before)
    assert load_cam_head(CAMHead(4, 2), source, class_names=None)
    assert load_cam_head(head, source, class_names=["cat", "dog"])
    assert torch.equal(head.conv.weight, state["network.coarse_head.conv.weight"])


def test_checksum_of_a_local_file(tmp_path):
    path = saved(tmp_path, network().state_dict())
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    load_weights(network(), path, sha256=digest.upper())
    with pytest.raises(WeightsError, match=f"{digest}.*{'0' * 64}"):
        load_weights(network(), path, sha256="0" * 64)
    with pytest.raises(ArgumentError, match=r"sha256='abc'.*64 hexadecimal"):
        load_weights(network(), path, sha256="abc")


def test_safetensors_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "w.safetensors").write_bytes(b"")
    with pytest.raises(MissingExtraError, match=r"rca-lightning\[timm\]"):
        load_weights(network(), str(tmp_path / "w.safetensors"))


def test_safetensors(tmp_path):
    pytest.importorskip("safetensors", reason="the package safetensors is not installed")
    module, value = nn.Linear(2, 1, bias=False), torch.tensor([[0.25, -3.0]])
    header = json.dumps({"weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<2f", 0.25, -3.0))
    load_weights(module, str(path))
    assert torch.equal(module.weight, value)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_program_of_torchscript_is_refused_and_not_run(tmp_path):
    torch.jit.trace(network(), torch.zeros(1, 3, 8, 8)).save(str(tmp_path / "clip.pt"))
    with pytest.raises(WeightsError, match=r"clip.pt was not loaded: it is a TorchScript program.*tensors alone"):
        load_weights(network(), str(tmp_path / "clip.pt"))


def test_names_are_converted_only_where_they_are_not_those_of_the_network(tmp_path):
    state, seen = network().state_dict(), []

    def convert(content):
        seen.append(sorted(content))
        return {key.removeprefix("theirs."): value for key, value in content.items()}

    load_weights(network(), saved(tmp_path, state), convert=convert)
    assert not seen
    module = network()
    theirs = {f"theirs.{key}": value for key, value in state.items()}
    load_weights(module, saved(tmp_path, {"model": theirs}), convert=convert)
    assert seen == [sorted(theirs)]
    for key, value in state.items():
        assert torch.equal(module.state_dict()[key], value)
