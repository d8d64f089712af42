"""An atlas from photographs on disk: crops from the right ones, and what may be missing."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tests.bright_network import Brightness
from tests.folder_contents import file_names
from tests.html_contents import Contents

from rca_lightning.atlas import atlas as making
from rca_lightning.atlas.atlas import make_atlas
from rca_lightning.atlas.crops import Photographs
from rca_lightning.atlas.page import TILE
from rca_lightning.data.dataset import TaggedImages
from rca_lightning.data.records import Record
from rca_lightning.data.transforms import TrainAugmentation
from rca_lightning.errors import ArgumentError, DataError, OutputError
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.rca.aggregation import SemanticAggregation
from rca_lightning.rca.memory_bank import RegionMemory

PAGES = ["001_cat.png", "002_a_b.png"]
CORNERS = [(20, 4), (4, 30), (36, 8), (12, 36), (36, 36), (6, 6)]  # of the squares; none meets the middle


def write_photos(folder: Path) -> tuple[TaggedImages, np.ndarray]:
    """Six dark photographs, each with a bright square in its own colour; even ones show class 0, odd ones class 1."""
    colours = np.array([(250, 60 + 30 * n, 250 - 35 * n) for n in range(6)], dtype=np.uint8)
    folder.mkdir()
    records = []
    for number, (colour, (top, left)) in enumerate(zip(colours, CORNERS, strict=True)):
        pixels = np.full((64, 64, 3), 10, dtype=np.uint8)
        pixels[top : top + 24, left : left + 24] = colour
        path = folder / f"photo{number}.png"
        Image.fromarray(pixels).save(path)
        records.append(Record(path.stem, path, tags=(number % 2,)))
    return TaggedImages(records, num_classes=2), colours


def build(**options) -> RCAModule:
    given = {"aggregation": False, "num_prototypes": 1, "background_prototypes": 0, "embedding_dim": 3} | options
    module = RCAModule(num_classes=2, class_names=["cat", "a/<b>"], backbone="resnet14", **given)
    module.network = Brightness(2)
    return module


def remembered(classes: int = 2) -> RegionMemory:
    """One region of each photograph, in the class of the photograph, all in directions of their own."""
    memory = RegionMemory(classes, 8, 3)
    for number in range(6):
        embedding = torch.tensor([[1.0, 0.3 * number, 0.1 * number**2]])
        memory.enqueue(embedding, torch.tensor([number % 2]), [f"photo{number}"], step=number)
    return memory


def middles(path: Path) -> dict[tuple[int, int], np.ndarray]:
    """Colour of the middle of each crop by row and place; the layout is that of `draw_page`."""
    page = np.asarray(Image.open(path)).astype(int)
    found = {}
    for row, top in enumerate(range(86, page.shape[0] - TILE, 174)):
        for place, left in enumerate(range(152, page.shape[1] - TILE, 154)):
            middle = page[top + TILE // 2, left + TILE // 2]
            if not np.all(middle == 255):
                found[row, place] = middle
    return found


def test_crops_come_from_the_right_photographs(tmp_path):
    images, colours = write_photos(tmp_path / "photos")
    memory, module = remembered(), build().train()
    module.network.eval()
    index = make_atlas(module, memory, images, tmp_path / "atlas", regions=4)
    assert index == tmp_path / "atlas" / "index.html"
    assert (module.training, module.network.training) == (True, False)  # as they were
    assert file_names(tmp_path / "atlas") == [*PAGES, "index.html"]
    for label, page in enumerate(PAGES):
        # Without prototypes the memory is clustered; a single cluster is the mean.
        own = memory.embeddings[label, :3]
        order = F.cosine_similarity(own, own.mean(0), dim=1).argsort(descending=True).tolist()
        found = middles(tmp_path / "atlas" / page)
        assert sorted(found) == [(0, 0), (0, 1), (0, 2)]
        for place, slot in enumerate(order):
            assert np.abs(found[0, place] - colours[2 * slot + label]).max() <= 2
    page = Contents(index.read_text())
    assert [link for link in page.links if not link.startswith("data:")] == PAGES
    assert {"cat", "a/<b>"} <= set(page.words)


def test_stored_prototypes_are_drawn_the_background_first(tmp_path):
    images, colours = write_photos(tmp_path / "photos")
    module = build(num_prototypes=2, background_prototypes=1)
    reader = SemanticAggregation(3, 2, num_prototypes=2, temperature=0.1, background_prototypes=1)
    x, y, z = torch.eye(3)
    # Two prototypes of the cat, none of the other class, one of the background.
    reader.write(torch.stack([x, y, z, z, -torch.ones(3)]), torch.tensor([True, True, False, False, True]))
    module.network.aggregation = reader
    memory = RegionMemory(3, 4, 3)
    for direction, photo in ((x, 0), (y, 2), (y + 0.5 * z, 4)):
        memory.enqueue(direction[None], torch.tensor([0]), [f"photo{photo}"], step=1)
    memory.enqueue(-torch.ones(1, 3), torch.tensor([2]), ["photo3"], step=1)
    index = make_atlas(module, memory, images, tmp_path / "atlas")
    assert file_names(tmp_path / "atlas") == ["000_background.png", "001_cat.png", "index.html"]
    # The prototype of most regions comes first.
    expected = {(0, 0): colours[2], (0, 1): colours[4], (1, 0): colours[0]}
    found = middles(tmp_path / "atlas" / "001_cat.png")
    assert found.keys() == expected.keys()
    assert all(np.abs(found[place] - colour).max() <= 2 for place, colour in expected.items())
    background = np.asarray(Image.open(tmp_path / "atlas" / "000_background.png")).astype(int)
    assert np.all(background == 10, axis=2).sum() > TILE * TILE / 4  # the empty tile, as bright as it is
    words = Contents(index.read_text()).words
    assert words.index("background") < words.index("cat") < words.index("a/<b>")


def test_a_prototype_without_a_region_has_no_row(tmp_path, monkeypatch):
    images, _ = write_photos(tmp_path / "photos")
    module = build(num_prototypes=2)
    reader = SemanticAggregation(3, 2, num_prototypes=2, temperature=0.1)
    away = -torch.ones(3)
    reader.write(torch.stack([torch.ones(3), away, away, away / 2]), torch.tensor([True, True, True, False]))
    module.network.aggregation = reader
    drawn = []
    real = making.draw_page
    monkeypatch.setattr(making, "draw_page", lambda *given: (drawn.append(given), real(*given))[1])
    make_atlas(module, remembered(), images, tmp_path / "atlas")
    (cat, of_cat, cats, *_), (_, of_other, others, *_) = drawn
    assert cat == "cat"
    assert of_cat == (
        "3 regions of 3 images in the memory, 2 prototypes with a mean cosine of -1.00 between them, "
        "1 of them nearest to no region"
    )
    assert [(row.title, row.share, len(row.tiles)) for row in cats] == [("prototype 1", 1.0, 3)]
    assert of_other == "3 regions of 3 images in the memory, 1 prototype"
    assert [row.title for row in others] == ["prototype 1"]  # the only one is nearest, however far


def test_images_that_are_gone_are_counted_and_left_out(tmp_path, caplog):
    images, colours = write_photos(tmp_path / "photos")
    fewer = TaggedImages(images.records[1:], num_classes=2)
    with caplog.at_level(logging.WARNING, logger="rca_lightning"):
        make_atlas(build(), remembered(), fewer, tmp_path / "atlas")
    assert "1 of 6 images" in caplog.text
    assert "photo0" in caplog.text
    found = middles(tmp_path / "atlas" / PAGES[0])
    assert len(found) == 2
    assert all(np.abs(middle - colours[0]).max() > 20 for middle in found.values())


def test_a_damaged_photograph_is_logged_and_its_place_stays_empty(tmp_path, caplog):
    images, _ = write_photos(tmp_path / "photos")
    (tmp_path / "photos" / "photo2.png").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING, logger="rca_lightning"):
        make_atlas(build(), remembered(), images, tmp_path / "atlas")
    assert "photo2.png" in caplog.text
    assert sorted(middles(tmp_path / "atlas" / PAGES[0])) == [(0, 0), (0, 1), (0, 2)]


def test_other_data_is_refused(tmp_path):
    images, _ = write_photos(tmp_path / "photos")
    strange = [replace(record, image_id=f"other{n}") for n, record in enumerate(images.records)]
    with pytest.raises(DataError, match=r"none of the 6 images .* train_split"):
        make_atlas(build(), remembered(), TaggedImages(strange, num_classes=2), tmp_path / "atlas")


def test_long_ids_are_found_although_the_memory_shortens_them(tmp_path):
    images, _ = write_photos(tmp_path / "photos")
    long = ["a" * 80 + "end", "b" * 80 + "end"]
    records = [replace(record, image_id=name) for record, name in zip(images.records, long, strict=False)]
    memory = RegionMemory(1, 2, 3)
    memory.enqueue(torch.eye(3)[:2], torch.tensor([0, 0]), long, step=0)
    photographs = Photographs(TaggedImages(records, num_classes=2))
    assert photographs.check(memory) == 0
    assert [photographs.read(memory.image_id(0, slot))["image_id"] for slot in (0, 1)] == long


def test_photographs_are_whole_and_as_large_as_in_training(tmp_path):
    images, _ = write_photos(tmp_path / "photos")
    assert Photographs(images).long_side is None
    augmentation = TrainAugmentation(crop_size=32, scale=(1.0, 2.0), flip=True, color_jitter=0.5)
    augmented = Photographs(TaggedImages(images.records, num_classes=2, augmentation=augmentation))
    assert augmented.long_side == 48
    assert torch.equal(augmented.read("photo3")["image"], images[3]["image"])


def test_what_cannot_be_drawn_is_refused_before_anything_is_written(tmp_path):
    images, _ = write_photos(tmp_path / "photos")
    folder = tmp_path / "atlas"
    with pytest.raises(ArgumentError, match="memory='empty'"):
        make_atlas(build(), RegionMemory(2, 4, 3), images, folder)
    with pytest.raises(ArgumentError, match="dog"):
        make_atlas(build(), remembered(), images, folder, diagnostics={"dog": {"age": 1.0}})
    assert not folder.exists()
    with pytest.raises(ArgumentError, match="regions=0"):
        make_atlas(build(), remembered(), images, folder, regions=0)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(OutputError, match="file"):
        make_atlas(build(), remembered(), images, file / "atlas")
