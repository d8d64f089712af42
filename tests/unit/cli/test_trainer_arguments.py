"""Arguments of the Trainer that are a whole number or a part."""

from __future__ import annotations

import lightning as L
import pytest

from rca_lightning.cli.trainer import OneLineParser, TaskCLI


class FloatFirst(L.Trainer):
    """What Lightning's own is where a package imported before it has made the union of float and int."""

    def __init__(self, limit_val_batches: float | int | None = None) -> None:
        super().__init__(limit_val_batches=limit_val_batches)


@pytest.mark.parametrize(
    ("text", "value", "kind"), [("1", 1, int), ("1.0", 1.0, float), ("0.5", 0.5, float), ("null", None, type(None))]
)
def test_one_batch_is_not_all_of_them(text: str, value: object, kind: type):
    cli = object.__new__(TaskCLI)
    vars(cli).update(trainer_class=FloatFirst, trainer_defaults={})
    vars(cli).update(_model_class=L.LightningModule, _datamodule_class=L.LightningDataModule)
    vars(cli).update(datamodule_class=L.LightningDataModule, subclass_mode_model=False, subclass_mode_data=False)
    parser = OneLineParser()
    cli.add_core_arguments_to_parser(parser)
    parsed = parser.parse_args([f"--trainer.limit_val_batches={text}"])
    assert parsed.trainer.limit_val_batches == value
    assert type(parsed.trainer.limit_val_batches) is kind
