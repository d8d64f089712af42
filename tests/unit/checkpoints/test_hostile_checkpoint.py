"""Checkpoints that somebody made to do harm, without a class to unpickle."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from rca_lightning.backbones.weights import load_weights
from rca_lightning.checkpoints.reading import read_checkpoint
from rca_lightning.errors import ArgumentError, WeightsError
from rca_lightning.io.tensor_file import load_tensors
from rca_lightning.modules.rca_module import RCAModule

ARGUMENTS = {"num_classes": 2, "backbone": "resnet14", "background_prototypes": 0}


def saved(path: Path, *, arguments: Any = ARGUMENTS, **more: Any) -> Path:
    content = {"state_dict": {"a": torch.zeros(2)}, "pytorch-lightning_version": "2.6.0", "hyper_parameters": arguments}
    torch.save(content | more, path)
    return path


def repacked(path: Path, change: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """The same archive with other content for the members whose names end so."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, next((new for end, new in change.items() if name.endswith(end)), content))
    return path


def calling(module: str, name: str, argument: int) -> bytes:
    """A pickle that calls a function with a number, of the operations that `weights_only` knows."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"\x8a\x05" + struct.pack("<q", argument)[:5] + b"\x85R."


@pytest.mark.parametrize("as_archive", [True, False])
def test_a_bytearray_of_any_length_is_not_made(as_archive: bool, tmp_path: Path):
    path = tmp_path / "a.ckpt"
    hostile = calling("builtins", "bytearray", 10**11)
    if as_archive:
        repacked(saved(path), {"data.pkl": hostile})
    else:
        before = (0x1950A86A20F9469CFC6C, 1001, {})  # by which torch knows its old files
        path.write_bytes(b"".join(pickle.dumps(value, 2) for value in before) + hostile)
    with pytest.raises(ValueError, match="it asks for a bytearray"):
        load_tensors(path, map_location="cpu")
    with pytest.raises(WeightsError, match="damaged, or more than tensors"):
        read_checkpoint(path)
    with pytest.raises(WeightsError, match="damaged, or holds more than tensors"):
        load_weights(torch.nn.Linear(1, 1), str(path))


def test_members_that_are_packed_are_refused(tmp_path: Path):
    path = repacked(saved(tmp_path / "a.ckpt", zeros=torch.zeros(1 << 20)), {}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 16
    with pytest.raises(ValueError, match="it unpacks to more than it is long"):
        load_tensors(path, map_location="meta")
    with pytest.raises(WeightsError):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [b"0", b"-64", b"", b"a", b"9" * 5000])
def test_an_alignment_that_torch_would_divide_by_is_refused(content: bytes, tmp_path: Path):
    path = saved(tmp_path / "a.ckpt")
    with zipfile.ZipFile(path) as archive:
        if not any(name.endswith(".storage_alignment") for name in archive.namelist()):
            pytest.skip("this torch writes none")
    with pytest.raises(WeightsError):
        read_checkpoint(repacked(path, {".storage_alignment": content}))


def test_old_archives_are_not_unpacked(tmp_path: Path):
    with tarfile.open(tmp_path / "a.ckpt", "w") as archive:
        archive.addfile(tarfile.TarInfo("../outside"), io.BytesIO())
    with pytest.raises(ValueError, match="tar archive"):
        load_tensors(tmp_path / "a.ckpt", map_location="cpu")


def test_one_number_is_not_stretched(tmp_path: Path):
    wide = torch.zeros(1, dtype=torch.half).expand(10**6, 10**6)
    path = saved(tmp_path / "a.ckpt", state_dict={"weight": wide})
    with pytest.raises(WeightsError, match="'weight' in its state_dict has not the numbers that its shape says"):
        read_checkpoint(path)
    torch.save({"weight": wide}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"tensors without the numbers that their shape says \(1\): weight"):
        load_weights(torch.nn.Linear(1, 1), str(tmp_path / "a.pth"))


def test_parts_of_a_larger_tensor_are_whole(tmp_path: Path):
    state = {"weight": torch.arange(6.0).reshape(2, 3).T[1:, :1], "bias": torch.zeros(2)}
    torch.save(state, tmp_path / "a.pth")
    network = torch.nn.Linear(1, 2)
    load_weights(network, str(tmp_path / "a.pth"))
    assert network.weight.flatten().tolist() == [1.0, 2.0]


@pytest.mark.parametrize("key", ["hyper_parameters", "hparams", "module_arguments"])
def test_orders_to_lightning_are_refused(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mark = tmp_path / "mark"
    (tmp_path / "evil_module.py").write_text(f"import os\nos.mkdir({str(mark)!r})\ndef make(*_): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = saved(tmp_path / "a.ckpt", **{key: ARGUMENTS | {"_instantiator": "evil_module.make"}})
    with pytest.raises(WeightsError, match=rf"its {key} give orders to Lightning \(_instantiator\)"):
        RCAModule.load_from_checkpoint(path)
    assert not mark.exists()


def _laughs() -> list[Any]:
    value: list[Any] = ["ha"]
    for _ in range(7):
        value = [value] * 50
    return value


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([1], "are no named arguments"),
        ({1: 2}, "are no named arguments"),
        ({"backbone": _laughs()}, "are larger than arguments are"),
        ({"backbone": [[[[[[[[[[0]]]]]]]]]]}, "are larger than arguments are"),
        ({"num_classes": torch.zeros(3)}, "hold a Tensor"),
    ],
)
def test_what_no_argument_can_be_is_refused(arguments: Any, said: str, tmp_path: Path):
    with pytest.raises(WeightsError, match=f"its hyper_parameters {said}"):
        read_checkpoint(saved(tmp_path / "a.ckpt", arguments=arguments))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"state_dict": [1]}, "its state_dict is no dictionary"),
        ({"state_dict": {1: torch.zeros(1)}}, "its state_dict is no dictionary"),
        ({"state_dict": OrderedDict(a="b")}, "'a' in its state_dict is no tensor"),
        ({"state_dict": {"a": torch.zeros(2).to_sparse()}}, "has not the numbers"),
        ({"pytorch-lightning_version": 2}, "no text"),
    ],
)
def test_content_of_other_types_is_refused(more: dict[str, Any], said: str, tmp_path: Path):
    with pytest.raises(WeightsError, match=said):
        read_checkpoint(saved(tmp_path / "a.ckpt", **more))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_classes": 10**9}, "give at most 1000000"),
        ({"num_classes": "a"}, "num_classes='a': give a whole number"),
        ({"embedding_dim": 10**15}, "make no RCAModule|the checkpoint is of another network"),
        ({"num_prototypes": 10**12}, "make no RCAModule|the checkpoint is of another network"),
        ({"background_prototypes": 10**10}, "make no RCAModule|the checkpoint is of another network"),
        ({"scales": 5}, "scales=5: give a list"),
    ],
)
def test_arguments_that_ask_for_all_memory_are_refused_before_it_is_taken(
    changes: dict[str, Any], said: str, tmp_path: Path
):
    with pytest.raises((WeightsError, ArgumentError), match=said):
        RCAModule.load_from_checkpoint(saved(tmp_path / "a.ckpt", arguments=ARGUMENTS | changes))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_no_checkpoint(tmp_path: Path):
    os.mkfifo(tmp_path / "a.ckpt")
    with pytest.raises(ArgumentError, match="there is no such file"):
        read_checkpoint(tmp_path / "a.ckpt")
