"""An evaluation that was cut short leaves nothing to the next one."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from tests.quiet_trainer import quiet_trainer
from tests.tagged_images import tagged_images
from torch.utils.data import DataLoader

from rca_lightning import OneStageModule, RCAModule, SegmentationModule
from rca_lightning.data.sample import collate


class CutShort(L.Callback):
    """Ends the first evaluation after its first batch."""

    done = False

    def on_validation_batch_end(self, *_: object, **__: object) -> None:
        if not self.done:
            self.done = True
            raise InterruptedError


def loader() -> DataLoader:
    images = tagged_images("a", "b", "c", height=32, width=40)
    for image in images:
        image["mask"] = torch.zeros(32, 40, dtype=torch.long)
    return DataLoader(images, collate_fn=collate)


@pytest.mark.parametrize("kind", [RCAModule, SegmentationModule, OneStageModule])
@pytest.mark.parametrize("stage", ["validate", "test"])
def test_each_image_is_scored_once(kind, stage, tmp_path):
    module = kind(2, backbone="resnet14", flip=False)
    trainer = quiet_trainer(tmp_path, callbacks=[CutShort()])
    with pytest.raises(InterruptedError):
        trainer.validate(module, loader(), verbose=False)
    getattr(trainer, stage)(module, loader(), verbose=False)
    assert module.evaluation.last_result.images == 3
