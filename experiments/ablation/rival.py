"""Command line with a rival context in place of the prototypes: `rca` with one more argument, `--model.context`.

python experiments/ablation/rival.py fit --config experiments/quickstart.yaml --model.context object_context

With a backbone that is trained, the contexts of contexts.py are trained with the second head. Behind a frozen one the
completions of completions.py take their place, which have nothing to train, and the second head, where it is read
(`--model.final_map refined`), is fitted in closed form as the first one is; that also serves the prototypes themselves.
"""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch
from completions import CoCompletion, Completion, DoubleCompletion, ObjectCompletion
from contexts import CoAttention, ContextModule, DoubleAttention, ObjectContext
from lightning.pytorch.cli import ArgsType
from torch import Tensor

from rca_lightning import RCAModule, WSSSDataModule
from rca_lightning.cli.tasks import RCACLI
from rca_lightning.cli.trainer import OneLineParser
from rca_lightning.data.dataset import CachedFeatures
from rca_lightning.data.sample import Batch
from rca_lightning.errors import ArgumentError
from rca_lightning.rca.aggregation import Aggregated, SemanticAggregation, pixel_lengths
from rca_lightning.rca.cam import fit_head
from rca_lightning.rca.network import ActivationMaps, RCANetwork
from rca_lightning.rca.prototype_contrast import select_cells

ContextName = Literal["prototypes", "co_attention", "double_attention", "object_context"]

_PENALTY = 0.01  # of the second head, the default of the first


class RivalNetwork(RCANetwork):
    """The network behind a frozen backbone with a `Completion` as `context`, or with an `aggregation`."""

    def read_context(self, stages: list[Tensor], tags: Tensor | None) -> tuple[Tensor, Aggregated, Tensor]:
        """Maps of the first head, what cells read, and the input `[F', F]` of the second head."""
        features, embeddings = stages[-1], self.embed(stages)
        coarse = self.coarse_head(features)
        readable = self._readable(coarse, tags)
        if self.context is not None:
            classes = torch.ones(len(coarse), coarse.shape[1], device=coarse.device) if readable is None else readable
            read = self.context(embeddings, coarse, classes)
        else:
            assert self.aggregation is not None
            read = self.aggregation(embeddings, readable)
        return coarse, read, torch.cat([read.context * pixel_lengths(embeddings), features], dim=1)

    def _read(self, stages: list[Tensor], tags: Tensor | None) -> ActivationMaps:
        coarse, read, joined = self.read_context(stages, tags)
        refined = None if self.refined_head is None else self.refined_head(joined)
        attention = read.class_attention[:, : coarse.shape[1]]
        return ActivationMaps(self.embed(stages), coarse, refined, attention, self.has_prototype)

    @torch.no_grad()
    def start_second_head(self, images: CachedFeatures, *, penalty: float) -> None:
        """Fits the second head to the mean `[F', F]` of photographs, as the first one is to the mean `F`."""
        assert self.refined_head is not None
        assert self.refined_head.conv.bias is not None
        means, tags = [], []
        for sample in (images[row] for row in range(len(images))):
            view, own = sample["features"][0][:1].to(self.refined_head.weight), sample["tags"][None]
            means.append(self.read_context(self.split([view])[0], own)[2].mean(dim=(2, 3)))
            tags.append(own)
        weight, bias = fit_head(torch.cat(means).cpu(), torch.cat(tags), penalty=penalty)
        self.refined_head.conv.weight.copy_(weight[:, :, None, None])
        self.refined_head.conv.bias.copy_(bias)


class RivalModule(RCAModule):
    """RCA whose cells read another context than the prototypes of the dataset; the contrast stays as it is.

    Args:
        context: what cells read: another photograph ("co_attention"), their own ("double_attention",
            "object_context"), or, behind a frozen backbone, the "prototypes", to read them by the second head.
        passes: of "object_context" behind a frozen backbone; see `ObjectCompletion`.
        partners: of "co_attention" behind a frozen backbone; see `CoCompletion`.
        descriptors: of "double_attention" behind a frozen backbone; see `DoubleCompletion`.

    Raises:
        ArgumentError: for arguments that ask for prototypes, or leave the second head out.
    """

    def __init__(
        self,
        *args: Any,
        context: ContextName,
        passes: int = 1,
        partners: int = 1,
        descriptors: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, aggregation=False, **kwargs)
        options, plain = self.hparams, self.network
        if options["beta"] == 0 and not self.is_frozen:
            raise ArgumentError("beta", 0, f"give a weight above 0: {context} is read by the second head")
        if context == "prototypes" and not self.is_frozen:
            raise ArgumentError("context", context, "leave it out: they are what rca reads with a trained backbone")
        self.save_hyperparameters(
            {"context": context, "passes": passes, "partners": partners, "descriptors": descriptors}
        )
        del self.hparams["aggregation"]  # no argument of this class: a checkpoint gives its own back
        if self.is_frozen:
            self.network = self._frozen_network(context, passes, partners, descriptors)
            self.network.requires_grad_(False)
            return
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

    def _frozen_network(self, context: ContextName, passes: int, partners: int, descriptors: int) -> RivalNetwork:
        options, plain = self.hparams, self.network
        assert plain.pca is not None
        channels, classes = len(plain.pca.weight), options["num_classes"]
        temperature = options["attention_temperature"]
        completion: Completion | None = None
        if context == "object_context":
            completion = ObjectCompletion(
                channels,
                classes,
                temperature=temperature,
                passes=passes,
                thresholds=(options["region_threshold"], options["background_threshold"]),
                attention_thresholds=(
                    options["attention_region_threshold"],
                    options["attention_background_threshold"],
                ),
                steps=options["propagation_steps"],
                power=options["propagation_power"],
            )
        elif context == "double_attention":
            completion = DoubleCompletion(channels, classes, temperature=temperature, descriptors=descriptors)
        elif context == "co_attention":
            completion = CoCompletion(channels, classes, temperature=temperature, partners=partners)
        prototypes = SemanticAggregation(
            channels,
            classes,
            num_prototypes=options["num_prototypes"],
            background_prototypes=options["background_prototypes"],
            temperature=temperature,
            normalize=options["normalize_attention"],
        )
        return RivalNetwork(
            plain.backbone,
            classes,
            embedding_dim=channels,
            embedding_stages=plain.embedding_stages,
            projection="pca",
            aggregation=prototypes if completion is None else None,
            context=completion,
            second_head=options["final_map"] == "refined",
            attention_classes=options["attention_classes"],
            channels_last=options["channels_last"],
        )

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """As that of `RCAModule`; behind a frozen backbone co-attention keeps cells of the photographs."""
        completion = self.network.context
        if self.is_frozen and isinstance(completion, CoCompletion):
            for features, tags in zip(batch["features"], batch["tags"], strict=True):
                if features:
                    self._remember(completion, features[0][:1].to(self.network.coarse_head.weight), tags[None])
        return super().training_step(batch, batch_idx)

    @torch.no_grad()
    def _remember(self, completion: CoCompletion, view: Tensor, tags: Tensor) -> None:
        stages = self.network.split([view])[0]
        completion.remember(
            select_cells(
                self.network.embed(stages),
                self.network.coarse_head(stages[-1]),
                tags,
                threshold=self.hparams["region_threshold"],
                background_threshold=self.hparams["background_threshold"],
            )
        )

    def on_train_epoch_end(self) -> None:
        """Fits the second head behind a frozen backbone, once there is all that it reads."""
        super().on_train_epoch_end()
        last = self.trainer.current_epoch + 1 == self.trainer.max_epochs
        if isinstance(self.network, RivalNetwork) and self.network.refined_head is not None and last:
            data: WSSSDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
            self.network.start_second_head(data.cached_features(), penalty=_PENALTY)


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
