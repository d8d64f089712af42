"""The panel of every validation."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch.utils.data import DataLoader

from rca_lightning.callbacks import panels
from rca_lightning.callbacks.panels import PanelCallback
from rca_lightning.data.sample import Sample, collate
from rca_lightning.errors import ArgumentError
from rca_lightning.module import RCAModule
from rca_lightning.visualization import denormalise, overlay_maps, overlay_mask

SIZE = 32
ROW = 160 + 4


def build(**options) -> RCAModule:
    torch.manual_seed(0)
    return RCAModule(
        num_classes=2, backbone="resnet18", flip=False, contrast=False, aggregation=False, final_map="coarse", **options
    )


def samples(count: int, *, masks: bool = True) -> list[Sample]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for index in range(count):
        sample = Sample(
            image=torch.randn(3, SIZE, SIZE, generator=generator),
            tags=torch.tensor([1.0, float(index % 2)]),
            image_id=str(index),
            original_size=torch.tensor([SIZE, SIZE]),
        )
        if masks:
            sample["mask"] = torch.randint(0, 3, (SIZE, SIZE), generator=generator)
        found.append(sample)
    return found


def trainer(callback: PanelCallback, root: Path, logger=False, **options) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        logger=logger,
        callbacks=[callback],
        default_root_dir=root,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )


def loader(data: list[Sample], batch_size: int = 2) -> DataLoader:
    return DataLoader(data, batch_size=batch_size, collate_fn=collate)


@pytest.fixture
def drawn(monkeypatch) -> list:
    """What is handed to `draw_panel`."""
    calls: list = []
    real = panels.draw_panel

    def record(rows, titles, **options):
        calls.append(([list(row) for row in rows], list(titles)))
        return real(rows, titles, **options)

    monkeypatch.setattr(panels, "draw_panel", record)
    return calls


@pytest.mark.parametrize(("images", "batch_size", "count", "rows"), [(3, 2, 5, 3), (1, 4, 4, 1), (6, 2, 3, 3)])
def test_as_many_images_as_asked(tmp_path, drawn, images, batch_size, count, rows):
    callback = PanelCallback(images=images)
    trainer(callback, tmp_path).validate(build(), loader(samples(count), batch_size), verbose=False)
    assert len(drawn[0][0]) == rows
    with Image.open(tmp_path / "panels" / "validate.png") as picture:
        assert picture.size[1] == 18 + rows * ROW


def test_row_is_image_maps_and_mask(tmp_path, drawn):
    module = build()
    trainer(PanelCallback(folder=str(tmp_path / "here")), tmp_path).validate(module, loader(samples(2)), verbose=False)
    assert (tmp_path / "here" / "validate.png").is_file()
    ((rows, titles),) = drawn
    assert titles == ["image", "coarse map", "final map (coarse)", "mask"]
    module.eval()
    for sample, row in zip(samples(2), rows, strict=True):
        image = denormalise(sample["image"])
        seeds = module.seeds(sample["image"][None], sample["tags"][None])[0]
        expected = overlay_maps(image, seeds.maps, seeds.classes)
        assert np.array_equal(row[0], image)
        for column in (1, 2):
            assert np.abs(row[column].astype(int) - expected).max() <= 1
        assert np.array_equal(row[3], overlay_mask(image, sample["mask"].numpy().astype(np.uint8)))


def test_true_tags_are_used_only_if_evaluation_uses_them(tmp_path, drawn, monkeypatch):
    given = []
    real = RCAModule.seeds

    def record(self, images, tags=None, *rest):
        given.append(tags)
        return real(self, images, tags, *rest)

    monkeypatch.setattr(RCAModule, "seeds", record)
    for setting in ("image", "predicted"):
        given.clear()
        data = loader(samples(2))
        trainer(PanelCallback(), tmp_path).validate(build(eval_tags=setting), data, verbose=False)
        assert given
        assert all((tags is not None) == (setting == "image") for tags in given)


def test_images_without_masks_show_the_plain_image(tmp_path, drawn):
    trainer(PanelCallback(), tmp_path).validate(build(), loader(samples(1, masks=False)), verbose=False)
    (row,) = drawn[0][0]
    assert np.array_equal(row[3], row[0])


def test_each_epoch_of_training_has_its_panel_and_the_sanity_check_none(tmp_path, drawn):
    logger = TensorBoardLogger(tmp_path, name="run", version=0)
    added = []
    logger.experiment.add_image = lambda tag, picture, step, **options: added.append(
        (tag, picture.shape, step, options)
    )
    run = trainer(PanelCallback(images=2), tmp_path, logger=logger, max_epochs=2, num_sanity_val_steps=1)
    run.fit(build(lr=1e-4), loader(samples(2)), loader(samples(2)))
    folder = tmp_path / "run" / "version_0" / "panels"
    assert sorted(path.name for path in folder.iterdir()) == ["epoch-000.png", "epoch-001.png"]
    assert [len(rows) for rows, _ in drawn] == [2, 2]
    assert [(tag, step, options) for tag, _, step, options in added] == [
        ("val/panel", step, {"dataformats": "HWC"}) for step in (1, 2)
    ]
    assert added[0][1][2] == 3


class OtherRank:
    """A trainer as another rank than the first sees it."""

    sanity_checking = False
    loggers: ClassVar[list] = []
    asked = 0

    @property
    def log_dir(self) -> str:
        # In Lightning a broadcast: a rank that does not ask leaves the others waiting for ever.
        self.asked += 1
        return "unused"


def test_other_ranks_draw_nothing_but_take_part_in_the_broadcast(monkeypatch, drawn):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    callback, other, module = PanelCallback(), OtherRank(), build()
    callback.on_validation_epoch_start(other, module)
    callback.on_validation_batch_end(other, module, None, collate(samples(2)), 0)
    callback.on_validation_epoch_end(other, module)
    assert other.asked == 1
    assert drawn == []


def test_at_least_one_image():
    with pytest.raises(ArgumentError, match="images=0"):
        PanelCallback(images=0)
