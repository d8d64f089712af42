"""Command line with a rival context in place of the prototypes: `rca` with one more argument, `--model.context`.

python experiments/ablation/rival.py fit --config experiments/quickstart.yaml --model.context object_context
"""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch
from contexts import CoAttention, ContextModule, DoubleAttention, ObjectContext
from lightning.pytorch.cli import ArgsType

from rca_lightning import RCAModule, WSSSDataModule
from rca_lightning.cli.tasks import RCACLI
from rca_lightning.cli.trainer import OneLineParser
from rca_lightning.errors import ArgumentError
from rca_lightning.rca.network import RCANetwork

ContextName = Literal["co_attention", "double_attention", "object_context"]


class RivalModule(RCAModule):
    """RCA whose second head reads another context than prototypes; the contrast stays as it is.

    Args:
        context: what pixels read: another image of the batch or of the store ("co_attention"), or their own image
            ("double_attention", "object_context").

    Raises:
        ArgumentError: for arguments that ask for prototypes, or leave the second head out.
    """

    def __init__(self, *args: Any, context: ContextName, **kwargs: Any) -> None:
        super().__init__(*args, aggregation=False, **kwargs)
        options, plain = self.hparams, self.network
        if options["beta"] == 0:
            raise ArgumentError("beta", 0, f"give a weight above 0: {context} is read by the second head")
        self.save_hyperparameters({"context": context})
        del self.hparams["aggregation"]  # no argument of this class: a checkpoint gives its own back
        self.network = RCANetwork(
            plain.backbone,
            options["num_classes"],
            embedding_dim=options["embedding_dim"] if options["contrast"] else None,
            embedding_stages=plain.embedding_stages,
            context=self._context(context),
            attention_classes=options["attention_classes"],
            standardize=plain.standardization is not None,
            channels_last=options["channels_last"],
        )

    def _context(self, name: ContextName) -> ContextModule:
        channels = self.network.backbone.num_features
        if name == "co_attention":
            return CoAttention(channels, self.hparams["num_classes"])
        if name == "double_attention":
            return DoubleAttention(channels)
        return ObjectContext(channels, tags_only=self.hparams["attention_classes"] == "tags")


class RivalCLI(RCACLI):
    """`rca` of a `RivalModule`."""


def main(words: ArgsType = None) -> RivalCLI:
    """Run the command line with `RivalModule`; see `rca_lightning.cli.main.main`."""
    logging.getLogger("rca_lightning").setLevel(logging.INFO)
    torch.set_float32_matmul_precision("high")
    return RivalCLI(
        RivalModule,
        WSSSDataModule,
        args=words,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"default_env": False, "prog": "rival.py"},
        parser_class=OneLineParser,
    )


if __name__ == "__main__":
    main()
