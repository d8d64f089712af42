"""Models on the Hugging Face Hub: a checkpoint of tensors, and a card made from the run (extra `hub`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch

from rca_lightning.arguments import check_arguments
from rca_lightning.errors import DataError, require_extra
from rca_lightning.evaluation.comparison import protocol_in_words
from rca_lightning.evaluation.report import in_words
from rca_lightning.io.atomic import write_atomically
from rca_lightning.prediction.inputs import find_device
from rca_lightning.prediction.loading import LoadedModel, Module, load
from rca_lightning.version import __version__

require_extra("huggingface_hub", extra="hub", needed_for="the Hugging Face Hub")

from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, hf_hub_download  # noqa: E402

if TYPE_CHECKING:
    from typing_extensions import Self

CHECKPOINT = "rca.ckpt"
_CONFIG = "config.json"  # by whose requests the Hub counts downloads


class HubModel(
    LoadedModel, ModelHubMixin, library_name="rca-lightning", pipeline_tag="image-segmentation",
    tags=["weakly-supervised-segmentation", "class-activation-map"],
):  # fmt: skip
    """A `LoadedModel` with `save_pretrained`, `push_to_hub` and `from_pretrained` of huggingface_hub.

    A repository holds `rca.ckpt` (weights and arguments, no state of the optimizer, no code), `config.json` and
    the card `README.md`. `from_pretrained` unpickles only tensors and plain values, as `load` does.

    Args:
        module: a trained module.
        device: where to compute; "auto" as for `load`.
        run: what the card tells of the run, in the form of `run.json` of `rca masks`: `images`, `tagged`, `settings`,
            `scores`. Settings that are paths are left out of the card.
        licence: identifier of the Hub for the licence of the weights, such as "cc-by-4.0"; None: the card names none.
    """

    @check_arguments
    def __init__(
        self,
        module: Module,
        *,
        device: str | torch.device = "auto",
        run: Mapping[str, Any] | None = None,
        licence: str | None = None,
    ) -> None:
        super().__init__(module.to(find_device(device)))
        self.run = dict(run or {})
        self.licence = licence

    @classmethod
    @check_arguments
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "auto",
        run: str | Path | Mapping[str, Any] | None = None,
        licence: str | None = None,
    ) -> Self:
        """Loads a checkpoint as `load` does.

        Args:
            path: the checkpoint.
            device: see `load`.
            run: the file `run.json`, or its content; see the class.
            licence: see the class.

        Raises:
            RCAError: as `load`, and for a run that cannot be read.
        """
        told = _read_run(Path(run)) if isinstance(run, (str, Path)) else run
        return cls(load(path, device="cpu").module, device=device, run=told, licence=licence)

    def _save_pretrained(self, save_directory: Path) -> None:
        module = self.module
        content: dict[str, Any] = {
            "state_dict": {name: value.cpu() for name, value in module.state_dict().items()},
            "pytorch-lightning_version": L.__version__,
            module.CHECKPOINT_HYPER_PARAMS_KEY: dict(module.hparams),
        }
        if hasattr(module, "_hparams_name"):
            content[module.CHECKPOINT_HYPER_PARAMS_NAME] = module._hparams_name
        module.on_save_checkpoint(content)
        write_atomically(save_directory / CHECKPOINT, lambda file: torch.save(content, file))
        config = {"task": self.task, "class_names": list(self.class_names), "rca_lightning": __version__}
        (save_directory / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        device: str | torch.device = "auto",
        **_: Any,
    ) -> Self:
        file = Path(model_id) / CHECKPOINT
        if not Path(model_id).is_dir():
            file = Path(
                hf_hub_download(
                    model_id,
                    CHECKPOINT,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )
        return cls.from_checkpoint(file, device=device)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Writes the card: classes, data, scores, settings and how to predict; the mixin asks for it."""
        hub = self._hub_mixin_info.model_card_data
        data = ModelCardData(
            library_name=hub.library_name, pipeline_tag=hub.pipeline_tag, tags=hub.tags, license=self.licence
        )
        return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{self._card()}")

    def _card(self) -> str:
        scores, run = self.run.get("scores") or {}, self.run
        settings = {name: value for name, value in self.module.hparams.items() if name != "class_names"}
        settings = {**settings, **(run.get("settings") or {})}
        rows = [f"| {name} | {value} |" for name, value in settings.items() if _is_plain(value)]
        lines = [
            "# Masks from image tags",
            f"A model of the task `{self.task}` of rca_lightning {run.get('version', __version__)}: it draws the mask "
            "of a photograph with or without its tags.",
            "## Use",
            "```python\nfrom rca_lightning.prediction.hub import HubModel\n\n"
            'model = HubModel.from_pretrained("<this repository>")\n'
            f'result = model.predict("photograph.jpg", tags=["{self.class_names[0]}"])\n```',
            "## Data and tags",
            f"{len(self.class_names)} classes: {', '.join(self.class_names)}.",
        ]
        if "images" in run:
            lines.append(f"{run['images']} photographs, {run.get('tagged', 'an unknown number')} of them with tags.")
        lines.append("## Scores")
        if scores:
            of_classes = scores.get("per_class_iou") or scores.get("iou") or {}  # before 0.2 the latter
            known = {**of_classes, "mean": scores.get("miou")}
            by_class = [f"| {name} | {value:.3f} |" for name, value in known.items() if value is not None]
            lines.append("\n".join(["| Class | IoU |", "| --- | ---: |", *by_class]))
            if "miou_interval" in scores and "protocol" in scores:
                told = f"{in_words(scores['miou_interval'])} (mean, in percent)"
                lines.append(f"Scored with true masks: {protocol_in_words(scores['protocol'])}; {told}.")
        else:
            lines.append("None: there were no masks to score with.")
        lines += ["## Settings", "\n".join(["| Setting | Value |", "| --- | --- |", *rows])]
        lines += [
            "## Licence",
            self.licence or "Not stated. It depends on the photographs and on the backbone's weights.",
        ]
        return "\n\n".join(lines) + "\n"


def _is_plain(value: Any) -> bool:
    """Whether a setting is published: not a path, which tells of the machine, nor the settings of another stage."""
    return not isinstance(value, Mapping) and not any(sign in str(value) for sign in "/\\|\n")


def _read_run(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"run={str(file)!r} cannot be read ({error}); give run.json of rca masks") from error
    if not isinstance(content, dict):
        raise DataError(f"run={str(file)!r} is no JSON object; give run.json of rca masks")
    return content
