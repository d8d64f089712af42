"""A disk that takes no more and folders that take nothing: one clear error, and what was there is whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tests.folder_contents import file_bytes, file_names
from tests.forked import in_fork, limit_files
from tests.prediction_runs import Photographs, predict
from tests.quiet_trainer import quiet_trainer

from rca_lightning import PseudoLabelWriter, RCAModule
from rca_lightning.checkpoints.writing import AtomicCheckpointIO, write_checkpoints_whole
from rca_lightning.errors import DataError, OutputError
from rca_lightning.io.atomic import check_writable, output_errors, write_atomically

pytest.importorskip("resource", reason="limits of a process are those of POSIX")


@pytest.fixture(scope="module")
def module() -> RCAModule:
    torch.manual_seed(0)
    return RCAModule(num_classes=2, backbone="resnet14", flip=False, contrast=False, aggregation=False)


def larger(name: str) -> Photographs:
    """Two small photographs, then one whose maps take more than 20 kB."""
    data = Photographs("a", "b", name)
    data.samples[-1]["image"] = torch.randn(3, 256, 256, generator=torch.Generator().manual_seed(1))
    data.samples[-1]["original_size"] = torch.tensor([256, 256])
    return data


@pytest.mark.parametrize("workers", [0, 2])
def test_prediction_on_a_disk_that_fills_up(tmp_path, module, workers):
    def work():
        limit_files(8_000)
        return predict(module, PseudoLabelWriter(str(tmp_path), workers=workers), larger("large"))

    kind, text, *_ = in_fork(work)
    assert kind == "OutputError"
    assert text.startswith(f"output_dir='{tmp_path}' cannot be written to ([Errno 27] File too large")
    left = file_names(tmp_path)
    assert not [name for name in left if name.endswith(".part")]
    for image_id in "ab":
        with np.load(tmp_path / "cams" / f"{image_id}.npz", allow_pickle=False) as found:
            assert np.isfinite(found["maps"]).all()
        with Image.open(tmp_path / "pseudo_labels" / f"{image_id}.png") as label:
            label.load()
    assert not (tmp_path / "pseudo_labels" / "large.png").exists()
    assert predict(module, PseudoLabelWriter(str(tmp_path), workers=workers), larger("large")) == ["large"]


def test_prediction_into_a_folder_below_a_file(tmp_path, module):
    (tmp_path / "file").write_text("no folder")
    before = file_bytes(tmp_path)
    with pytest.raises(OutputError, match=r"^output_dir='.*file/deep' cannot be (looked into|written to) \(.*; give"):
        predict(module, PseudoLabelWriter(str(tmp_path / "file" / "deep")), Photographs("a"))
    assert file_bytes(tmp_path) == before


def test_checkpoint_on_a_disk_that_fills_up(tmp_path, module):
    path = tmp_path / "last.ckpt"
    trainer = quiet_trainer(tmp_path, plugins=[AtomicCheckpointIO()])
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    before = path.read_bytes()

    def work():
        limit_files(len(before) // 2)
        trainer.save_checkpoint(path)

    kind, text = in_fork(work)
    assert kind == "OutputError"
    assert text.startswith(f"checkpoint='{path}' cannot be written to ([Errno 27] File too large")
    assert text.endswith("; what was saved before is as it was; make room, or give another folder")
    assert path.read_bytes() == before
    assert file_names(tmp_path) == ["last.ckpt"]
    found = RCAModule.load_from_checkpoint(path)
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in module.state_dict().items())


def test_checkpoint_into_a_folder_below_a_file(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OutputError, match=r"^checkpoint='.*' cannot be written to \(.*; what was saved before"):
        AtomicCheckpointIO().save_checkpoint({"a": torch.ones(1)}, tmp_path / "file" / "last.ckpt")


def test_trainers_get_whole_checkpoints_unless_they_have_a_plugin(tmp_path):
    plain = quiet_trainer(tmp_path)
    write_checkpoints_whole(plain)
    assert isinstance(plain.strategy.checkpoint_io, AtomicCheckpointIO)

    class Own(AtomicCheckpointIO):
        pass

    given = quiet_trainer(tmp_path, plugins=[Own()])
    write_checkpoints_whole(given)
    assert type(given.strategy.checkpoint_io) is Own


def test_any_file_on_a_disk_that_fills_up(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"former")

    def work():
        limit_files(1000)
        with output_errors("out", path, "make room"):
            write_atomically(path, lambda file: file.write(bytes(100_000)))

    assert in_fork(work) == ["OutputError", f"out='{path}' cannot be written to ([Errno 27] File too large); make room"]
    assert file_names(tmp_path) == ["file"]
    assert path.read_bytes() == b"former"


def test_check_writable_makes_the_folder_and_leaves_nothing_in_it(tmp_path):
    check_writable("folder", tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"^folder='.*/file' cannot be written to \("):
        check_writable("folder", tmp_path / "file")


def test_other_errors_of_this_library_pass(tmp_path):
    with pytest.raises(DataError, match="of the data"), output_errors("out", tmp_path):
        raise DataError("of the data")
