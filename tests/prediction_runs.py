"""`rca predict` without a command line: a module, a writer, and photographs of random pixels."""

from __future__ import annotations

from collections.abc import Container

import lightning as L
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from rca_lightning.callbacks.pseudo_label_writer import PseudoLabelWriter
from rca_lightning.data.records import Record
from rca_lightning.data.sample import Sample, collate
from rca_lightning.modules.rca_module import RCAModule
from tests.quiet_trainer import quiet_trainer
from tests.tagged_images import tagged_images


class Counting(L.Callback):
    """Which images the network looked at."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_predict_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.seen.extend(batch["image_id"])


class Photographs(L.LightningDataModule):
    """The part of a data module that prediction asks for."""

    predict_split = "shots"

    def __init__(self, *ids: str) -> None:
        super().__init__()
        self.samples: list[Sample] = tagged_images(*ids, height=32, width=40)
        self.left_out: Container[str] = ()
        self.predict_records: list[Record] = []

    def leave_out_of_prediction(self, image_ids: Container[str]) -> None:
        self.left_out = image_ids

    def predict_dataloader(self) -> DataLoader:
        rest = [sample for sample in self.samples if sample["image_id"] not in self.left_out]
        return DataLoader(rest, batch_size=2, collate_fn=collate)


def with_prototypes(module: RCAModule) -> RCAModule:
    """The module with a random prototype in every slot, as after a clustering."""
    reader = module.network.aggregation
    reader.write(F.normalize(torch.randn_like(reader.prototypes), dim=1), torch.ones_like(reader.valid))
    return module


def predict(module: RCAModule, writer: PseudoLabelWriter, data: Photographs) -> list[str]:
    """Write the predictions; gives the images that the network looked at."""
    counting = Counting()
    trainer = quiet_trainer(writer.output_dir, callbacks=[writer, counting])
    trainer.predict(module, datamodule=data, return_predictions=False)
    return counting.seen
