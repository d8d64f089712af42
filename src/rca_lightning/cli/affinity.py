"""The command `rca affinity`: learns boundaries from the maps of `rca predict`, or from label images of any method."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_only

from rca_lightning.callbacks.feature_cache import FeatureCacheCallback
from rca_lightning.cli.trainer import TaskCLI
from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.errors import ArgumentError
from rca_lightning.io.atomic import output_errors, write_atomically
from rca_lightning.prediction.stored_maps import write_confident_labels

LABELS_FOLDER = "confident_labels"
"""In `trainer.default_root_dir`: the labels that are made from `--maps`."""

HELP = f"""usage: rca affinity fit | validate [options]

Learns where objects end (the boundary branch of IRN, arXiv 1904.05044) behind a frozen backbone. The refinement
"affinity" then walks class maps up to these boundaries.

  rca predict --config rca.yaml --ckpt_path rca.ckpt --data.predict_split train
  rca affinity fit --config affinity.yaml --model.weights rca.ckpt --maps runs/rca/predictions/cams
  rca labels --config rca.yaml --data.predict_split train --maps runs/rca/predictions/cams \\
    --refine [affinity,dense_crf] --affinity_ckpt affinity.ckpt --output_dir labels

fit learns from one of:
  --maps FOLDER                 maps of data.train_split, the folder cams of rca predict. Confident labels are made of
                                them first, in {LABELS_FOLDER} of trainer.default_root_dir: a class above --high,
                                background below --low, undecided (255) between, refined by the dense CRF where it is
                                installed, else by PAMR.
  --data.train_mask_dir FOLDER  label images (PNG) of any method: 0 background, class + 1, 255 undecided

  --low, --high SHARE           thresholds of the maps; default: those of their kind, see rca labels --help

All other options are those of rca fit and rca validate with --task affinity: rca affinity fit --help.
"""


class AffinityCLI(TaskCLI):
    """Boundaries from confident labels, for the refinement of maps."""

    task = "affinity"

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """`fit` and `validate`: boundary maps are no result of their own."""
        every = TaskCLI.subcommands()
        return {name: every[name] for name in ("fit", "validate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the arguments of the feature cache, and those of the labels."""
        super().add_arguments_to_parser(parser)
        parser.add_lightning_class_args(FeatureCacheCallback, "features")
        about = "Folder cams of rca predict on data.train_split, from which fit makes confident labels first."
        parser.add_argument("--maps", type=str | None, default=None, help=about)
        for name, what in (("low", "at most which a pixel is background"), ("high", "above which it has a class")):
            text = f"Share of the peak of the maps {what} in these labels; null: that of the kind of the maps."
            parser.add_argument(f"--{name}", type=float | None, default=None, help=text)

    def before_instantiate_classes(self) -> None:
        """Make the labels that `fit` learns from, unless they are given.

        Raises:
            ArgumentError: for maps and labels, or neither.
        """
        if self.subcommand != "fit":
            return
        config: Any = self.config["fit"]
        given = config["data"]["train_mask_dir"]
        if config["maps"] is None:
            if given is None:
                remedy = "give the folder cams of rca predict, or label images as --data.train_mask_dir"
                raise ArgumentError("maps", None, remedy)
            return
        if given is not None:
            remedy = "labels are made of --maps; give one of the two"
            raise ArgumentError("data.train_mask_dir", given, remedy)
        folder = Path(config["trainer"]["default_root_dir"] or ".") / LABELS_FOLDER
        # Other processes meet the first one where their group begins, before any of them looks for labels.
        if getattr(rank_zero_only, "rank", 0) == 0:
            write_confident_labels(
                WSSSDataModule(**{**vars(config["data"]), "predict_split": config["data"]["train_split"]}),
                config["maps"],
                folder,
                low=config["low"],
                high=config["high"],
            )
        self.config["fit.data.train_mask_dir"] = str((folder / "pseudo_labels").absolute())

    def after_validate(self) -> None:
        """Print the loss and write `validate.json`."""
        loss = self.model.last_loss
        if loss is None:
            raise ArgumentError("limit_val_batches", self.trainer.limit_val_batches, "no image was scored; allow some")
        path = self._run_folder() / f"{self.subcommand}.json"
        if not self.trainer.is_global_zero:
            return
        content = json.dumps({"split": self.datamodule.eval_split, "loss": loss}, indent=2) + "\n"
        with output_errors("trainer.default_root_dir", path.parent):
            write_atomically(path, lambda file: file.write(content.encode()))
        print(f"Affinity loss of split {self.datamodule.eval_split!r}: {loss:.4f}")
        print(f"written to {path}")


def task_words(words: Sequence[str]) -> list[str] | None:
    """Words of `rca` that those after `rca affinity` stand for; None where help was asked for, which is printed."""
    if not words or words[0] in ("-h", "--help"):
        print(HELP)
        return None
    return [*words, "--task", AffinityCLI.task]
