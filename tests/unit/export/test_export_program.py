"""A `.pt2` file answers as the network does, at every size, or is not written."""

from __future__ import annotations

import json

import pytest
import torch
from tests.folder_contents import file_names
from torch import nn

from rca_lightning.errors import OutputError
from rca_lightning.export.program import DESCRIPTION_FILE, Segmenter, export_program, save_program

SIZES = [(2, 97, 131), (1, 61, 97), (3, 64, 48)]  # the first is the one that was traced


@pytest.mark.parametrize("kind", ["coarse", "decoder"])
def test_program_answers_as_the_network_does(tmp_path, networks, kind):
    save_program(networks[kind], ["cat", "dog"], tmp_path / "out" / "segmenter.pt2")
    assert file_names(tmp_path) == ["out/segmenter.pt2"]
    found = {DESCRIPTION_FILE: ""}
    program = torch.export.load(tmp_path / "out" / "segmenter.pt2", extra_files=found).module()
    for number, height, width in SIZES:
        images = torch.rand(number, 3, height, width)
        with torch.no_grad():
            logits, expected = program(images), Segmenter(networks[kind])(images)
        assert logits.shape == (number, 3, height, width)
        assert torch.allclose(logits, expected, atol=1e-4)
    assert json.loads(json.loads(found[DESCRIPTION_FILE])["labels"]) == ["background", "cat", "dog"]


class Noisy(nn.Conv2d):
    def forward(self, images):
        return super().forward(images) + torch.rand_like(images)


class Branching(nn.Conv2d):
    def forward(self, images):
        return super().forward(images) if images.sum() > 0 else images


class OfOneSize(nn.Module):
    def __init__(self, place: int, side: int) -> None:
        super().__init__()
        self.place = place
        self.position = nn.Parameter(torch.zeros(side))

    def forward(self, images):
        return (images.transpose(self.place, 3) + self.position).transpose(self.place, 3)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (OfOneSize(2, 97), r"the network OfOneSize does not serve every size \(.*97.*\); export a network of"),
        (OfOneSize(3, 131), r"the network OfOneSize does not serve every size \(.*131.*\); export a network of"),
        (Branching(3, 3, 1), r"Branching cannot be traced \(.+\); export a network"),
        (Noisy(3, 3, 1), r"Noisy answers otherwise once exported, by up to 0\.\d+"),
    ],
)
def test_networks_that_are_no_graph_are_refused(tmp_path, network, expected):
    with pytest.raises(OutputError, match=expected):
        save_program(network, ["cat", "dog"], tmp_path / "segmenter.pt2")
    assert file_names(tmp_path) == []


def test_network_stays_in_its_mode_but_is_exported_for_evaluation(networks):
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Dropout(0.5)).train()
    program = export_program(network)
    assert [module.training for module in network.modules()] == [True] * 3
    images = torch.rand(1, 3, 33, 47)
    assert torch.equal(program.module()(images), program.module()(images))
    network.eval()
    assert torch.allclose(program.module()(images), Segmenter(network)(images), atol=1e-5)


def test_failure_leaves_the_former_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "segmenter.pt2"
    path.write_bytes(b"before")

    def fail(program, file, **_):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        save_program(nn.Conv2d(3, 2, 1), ["cat"], path)
    assert path.read_bytes() == b"before"
    assert file_names(tmp_path) == ["segmenter.pt2"]
