"""The atlas at the end of training."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from tests.folder_contents import file_bytes, file_names
from tests.html_contents import Contents
from tests.quiet_trainer import quiet_trainer
from tests.tagged_images import tagged_images
from torch.utils.data import DataLoader

from rca_lightning.callbacks import atlas
from rca_lightning.callbacks.atlas import PrototypeAtlasCallback
from rca_lightning.callbacks.region_memory import RegionMemoryCallback
from rca_lightning.data.dataset import TaggedImages
from rca_lightning.data.records import Record
from rca_lightning.data.sample import collate
from rca_lightning.data.transforms import TrainAugmentation
from rca_lightning.errors import ArgumentError
from rca_lightning.evaluation.report import Scores
from rca_lightning.modules.rca_module import RCAModule

PAGES = ["001_cat.png", "002_dog.png"]


def loader(folder: Path, count: int = 4) -> DataLoader:
    folder.mkdir(exist_ok=True)
    records = []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        path = folder / f"photo{number}.png"
        Image.fromarray(pixels).resize((48, 32)).save(path)
        records.append(Record(path.stem, path, tags=(0, 1)))
    augmentation = TrainAugmentation(crop_size=32, scale=(1.0, 1.5), flip=True, color_jitter=0.0)
    images = TaggedImages(records, num_classes=2, augmentation=augmentation)
    return DataLoader(images, batch_size=2, collate_fn=collate)


def build(**options) -> RCAModule:
    torch.manual_seed(0)
    # Unsure as it is, everything may enter the memory, and one epoch is all that some get.
    given = {"confidence": 0.0, "num_prototypes": 2, "background_prototypes": 0, "warmup_epochs": 1} | options
    return RCAModule(num_classes=2, class_names=["cat", "dog"], backbone="resnet14", lr=1e-3, **given)


def memory() -> RegionMemoryCallback:
    return RegionMemoryCallback(slots=8, backend="torch")


@pytest.fixture
def drawn(monkeypatch) -> list:
    """What `make_atlas` was given."""
    calls: list = []
    monkeypatch.setattr(atlas, "make_atlas", lambda *given, **named: calls.append((given, named)))
    return calls


def test_drawn_when_training_ends(tmp_path):
    module, owner = build(), memory()
    trainer = quiet_trainer(tmp_path / "run", max_epochs=2, callbacks=[owner, PrototypeAtlasCallback(regions=2)])
    trainer.fit(module, loader(tmp_path / "photos"))
    folder = tmp_path / "run" / "atlas"
    assert file_names(folder) == [*PAGES, "index.html"]
    page = Contents((folder / "index.html").read_text())
    assert [link for link in page.links if not link.startswith("data:")] == PAGES
    for label, name in enumerate(["cat", "dog"]):
        start = page.words.index(name)
        assert page.words[start + 1] == str(int(owner.memory.counts[label]))
    for name in PAGES:
        with Image.open(folder / name) as picture:
            assert picture.width == 20 + 132 + 2 * 154 + 20


def test_memory_images_and_scores_are_handed_over(tmp_path, drawn):
    module, owner = build(), memory()
    iou = torch.tensor([0.75, 0.25, math.nan])
    module.evaluation.last_result = Scores(images=1, miou=0.5, iou=iou, precision=iou, recall=iou)
    data = loader(tmp_path / "photos")
    callback = PrototypeAtlasCallback(folder=str(tmp_path / "here"), regions=3)
    quiet_trainer(tmp_path, max_epochs=1, callbacks=[callback, owner]).fit(module, data)
    ((given, named),) = drawn
    assert given[0] is module
    assert given[1] is owner.memory
    assert given[2] is data.dataset
    assert given[3] == tmp_path / "here"
    measured = named.pop("diagnostics")
    assert named == {"regions": 3}
    assert list(measured) == ["background", "cat", "dog"]
    assert [measured[name].pop("seed IoU") for name in ("background", "cat")] == [0.75, 0.25]
    assert math.isnan(measured["dog"].pop("seed IoU"))
    assert measured.pop("background") == {}
    assert measured == owner.diagnostics
    assert {"effective_rank", "dead"} <= set(measured["cat"])


def test_resumed_training_draws_what_came_before_too(tmp_path):
    data = loader(tmp_path / "photos")
    first = quiet_trainer(tmp_path, max_epochs=1, callbacks=[memory()])
    first.fit(build(), data)
    first.save_checkpoint(tmp_path / "first.ckpt")
    owner = memory()
    second = quiet_trainer(tmp_path, max_epochs=2, callbacks=[owner, PrototypeAtlasCallback()])
    second.fit(build(), data, ckpt_path=tmp_path / "first.ckpt")
    assert owner.memory.counts.tolist()[:2] == [8, 8]
    before = file_bytes(tmp_path / "atlas")
    assert "index.html" in before
    assert "steps 1 to 4" in (tmp_path / "atlas" / "index.html").read_text()
    # Drawn again over itself, by the resumed callback alone.
    second.callbacks[1].on_train_end(second, second.lightning_module)
    assert file_bytes(tmp_path / "atlas") == before


def test_without_a_memory_training_does_not_start(tmp_path, drawn):
    module = build(contrast=False, aggregation=False)
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=[memory(), PrototypeAtlasCallback()])
    with pytest.raises(ArgumentError, match="contrast or aggregation"):
        trainer.fit(module, loader(tmp_path / "photos"))
    assert trainer.global_step == 0
    assert drawn == []


def test_images_without_files_are_refused_before_training(tmp_path, drawn):
    samples = DataLoader(tagged_images("a", "b", height=32, width=32), batch_size=2, collate_fn=collate)
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=[memory(), PrototypeAtlasCallback()])
    with pytest.raises(ArgumentError, match="WSSSDataModule"):
        trainer.fit(build(), samples)
    assert trainer.global_step == 0


def test_a_failure_is_logged_and_the_run_ends_well(tmp_path, caplog):
    (tmp_path / "file").touch()
    saved = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    callbacks = [memory(), PrototypeAtlasCallback(folder=str(tmp_path / "file")), saved]
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=callbacks, enable_checkpointing=True)
    with caplog.at_level(logging.ERROR, logger="rca_lightning"):
        trainer.fit(build(), loader(tmp_path / "photos"))
    assert trainer.state.finished
    assert (tmp_path / "last.ckpt").is_file()
    (record,) = [record for record in caplog.records if record.name.startswith("rca_lightning")]
    assert str(tmp_path / "file") in record.getMessage()


def test_whatever_fails_in_it_the_run_ends_well(tmp_path, caplog, monkeypatch):
    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(atlas, "_measured", fails)
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=[memory(), PrototypeAtlasCallback()])
    with caplog.at_level(logging.ERROR, logger="rca_lightning"):
        trainer.fit(build(), loader(tmp_path / "photos"))
    assert trainer.state.finished
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]


class OtherRank:
    """A trainer as another rank than the first sees it."""

    is_global_zero = False
    asked = 0

    @property
    def log_dir(self) -> str:
        # In Lightning a broadcast: a rank that does not ask leaves the others waiting for ever.
        self.asked += 1
        return "unused"


def test_other_ranks_draw_nothing_but_take_part_in_the_broadcast(drawn):
    other = OtherRank()
    PrototypeAtlasCallback().on_train_end(other, build())
    assert other.asked == 1
    assert drawn == []


def test_at_least_one_region():
    with pytest.raises(ArgumentError, match="regions=0"):
        PrototypeAtlasCallback(regions=0)
