"""Panels of validations: what is drawn, and where it goes."""

from __future__ import annotations

import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.unit.callbacks.panel_runs import OtherRank, Recorder, build, loader, names, samples, trainer

from rca_lightning.callbacks.panels import PanelCallback
from rca_lightning.data.sample import collate
from rca_lightning.data.visualization import denormalise, overlay_maps, overlay_mask
from rca_lightning.errors import ArgumentError
from rca_lightning.modules.rca_module import RCAModule

ROW = 160 + 4


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


def test_panels_go_to_every_logger_that_takes_pictures(tmp_path):
    board, wandb = TensorBoardLogger(tmp_path, name="run", version=0), Recorder()
    run = trainer(
        PanelCallback(images=2, folder=str(tmp_path / "panels")), tmp_path, logger=[board, wandb],
        max_epochs=2, num_sanity_val_steps=0, check_val_every_n_epoch=2,
    )  # fmt: skip
    run.fit(build(lr=1e-4), loader(samples(4)), loader(samples(2)))
    assert [(key, shape[2], step) for key, shape, step in wandb.images] == [("val/panel", 3, 2), ("val/panel", 3, 4)]
    events = EventAccumulator(str(tmp_path / "run" / "version_0")).Reload()
    assert [event.step for event in events.Images("val/panel")] == [2, 4]
    assert names(tmp_path) == ["epoch-000.png", "epoch-001.png"]


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
