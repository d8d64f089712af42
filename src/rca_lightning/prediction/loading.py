"""`rca_lightning.load`: a checkpoint as an object that predicts the masks of photographs in any form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rca_lightning.arguments import check_arguments
from rca_lightning.checkpoints.reading import read_checkpoint, task_of
from rca_lightning.data.classes import ClassIndex, check_mask_classes
from rca_lightning.data.sample import tag_row
from rca_lightning.data.transforms import Pixels, normalise
from rca_lightning.data.visualization import colours
from rca_lightning.errors import ArgumentError, WeightsError, require_extra
from rca_lightning.evaluation.map_kinds import default_thresholds
from rca_lightning.modules.frozen_segmentation_module import FrozenSegmentationModule
from rca_lightning.modules.label_prediction import LabelPrediction
from rca_lightning.modules.one_stage_module import OneStageModule
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.modules.segmentation_module import SegmentationModule
from rca_lightning.prediction.inputs import Photographs, find_device, is_one, read_photographs
from rca_lightning.prediction.result import PredictedMask
from rca_lightning.pseudo_labels.generator import PseudoLabelGenerator
from rca_lightning.pseudo_labels.labels import check_share
from rca_lightning.pseudo_labels.refinement import RefinementName
from rca_lightning.rca.prototype_attention import PrototypeAttention, infer_prototype_attention
from rca_lightning.segmentation.inference import draw_labels, restrict_to_tags

Module = RCAModule | SegmentationModule | FrozenSegmentationModule | OneStageModule
Tags = str | Sequence[str] | Mapping[str, Sequence[str]]
_MODULES: dict[str | None, type[Module]] = {
    kind.task: kind for kind in (RCAModule, SegmentationModule, FrozenSegmentationModule, OneStageModule)
}


def load(path: str | Path, *, device: str | torch.device = "auto") -> LoadedModel:
    """Loads a checkpoint to predict with; only tensors and plain values are unpickled.

    Args:
        path: checkpoint of `rca fit`, of the task localize, segment, segment_frozen or one_stage.
        device: "auto", "cpu", "cuda" or "mps"; see `find_device`.

    Raises:
        ArgumentError: if there is no such file, or no such device.
        WeightsError: if the file is no checkpoint of these tasks, or damaged.
        MissingExtraError: if it was trained with a refinement whose package is not there.
    """
    path = Path(path).expanduser() if "://" not in str(path) else path
    content = read_checkpoint(path, map_location="meta", argument="path")  # no tensor is read
    task = task_of(content["state_dict"])
    if task not in _MODULES:
        remedy = f"give a checkpoint of rca fit --task {', '.join(str(known) for known in _MODULES)}"
        raise WeightsError(f"path={str(path)!r} is of the task {task!r}, which draws no masks; {remedy}")
    found = find_device(device)
    return LoadedModel(_MODULES[task].load_from_checkpoint(path, map_location="cpu").to(found))


class LoadedModel:
    """Predicts the masks of photographs, with the numbers of `rca predict`.

    Args:
        module: a trained module, on the device to compute on. It is switched to evaluation.

    Attributes:
        module: it.
        task: "localize", "segment", "segment_frozen" or "one_stage".
        class_names: names of the L classes; the position of a name is its mask value minus 1.
    """

    def __init__(self, module: Module) -> None:
        self.module = module.eval().requires_grad_(False)
        self.task = module.task
        self.class_names = tuple(module.class_names)
        check_mask_classes(len(self.class_names))
        self._index = ClassIndex(self.class_names)
        if isinstance(module, LabelPrediction):
            module.use_crf = bool(module.hparams["crf"])
            if module.use_crf:
                require_extra("pydensecrf.densecrf", extra="crf", needed_for="crf=True")

    def __repr__(self) -> str:
        classes = ", ".join(self.class_names[:5]) + (", ..." if len(self.class_names) > 5 else "")
        return f"LoadedModel(task={self.task!r}, {len(self.class_names)} classes: {classes}; {self.module.device})"

    @check_arguments
    def predict(
        self,
        photograph: Photographs,
        tags: Tags | None = None,
        *,
        threshold: float | None = None,
        refine: Sequence[RefinementName] = (),
    ) -> PredictedMask | list[PredictedMask]:
        """Predicts the mask of a photograph, or a list of masks for a folder, a list or a batch.

        Args:
            photograph: a file, a folder, a PIL image, an array `(H, W, 3)`, a tensor `(3, H, W)`, or several; see
                `read_photographs`. Everything else (turning upright, colours, normalisation, size) is done here.
            tags: names of the classes that the photographs show; or a mapping of the name of each file without its
                ending to its tags. `None`, or a name that the mapping lacks: the model decides.
            threshold: of localize, in `[0, 1]`: that a class map must exceed. `None`: the default of `rca predict`.
            refine: of localize, refinements of the mask: "random_walk", "pamr", "dense_crf" (extra `crf`), "proposals"
                (superpixels, extra `superpixels`).

        Returns:
            A `PredictedMask` for one photograph, else a list of them. For many photographs see `stream`.

        Raises:
            ArgumentError: for an argument that cannot be used.
            DataError: for an unknown tag, or a photograph that cannot be read.
            DatasetNotFoundError: for a file that is not there.
            MissingExtraError: for a refinement whose package is not there.
        """
        results = self.stream(photograph, tags, threshold=threshold, refine=refine)
        return next(results) if is_one(photograph) else list(results)

    @check_arguments
    def stream(
        self,
        photographs: Photographs,
        tags: Tags | None = None,
        *,
        threshold: float | None = None,
        refine: Sequence[RefinementName] = (),
    ) -> Iterator[PredictedMask]:
        """As `predict`, one photograph at a time: memory does not grow with their number."""
        generator = self._generator(threshold, refine)
        rows = self._tag_rows(tags)
        return (self._predict_one(name, pixels, rows, generator) for name, pixels in read_photographs(photographs))

    @property
    def threshold(self) -> float | None:
        """What a class map must exceed to be drawn unless said otherwise; `None` of a segmenter."""
        generator = self._generator(None, ())
        return None if generator is None else generator.background_threshold

    @property
    def reads_attention(self) -> bool:
        """Whether maps are read from the attention over prototypes; of a segmenter none is."""
        return not isinstance(self.module, LabelPrediction) and self.module.reads_attention

    def prototype_attention(self, result: PredictedMask) -> PrototypeAttention | None:
        """Which prototypes the pixels of a photograph read; the network runs once more.

        It is read at the first of the model's scales, not mirrored and before maps are propagated, so it is a part of
        what the maps average.

        Args:
            result: of `predict` of this model.

        Returns:
            The attention; `None` where no map is read from it: of segmenters, and of models without prototypes.
        """
        module = self.module
        if not isinstance(module, RCAModule) or not self.reads_attention:
            return None
        image = normalise(Pixels(result.photograph)).to(module.device)
        tags = self._tag_row(list(result.maps)).to(image)
        first, max_side = module.hparams["scales"][0], module.hparams["max_side"]
        return infer_prototype_attention(module.network, image, tags, scale=first, max_side=max_side)

    def _predict_one(
        self,
        name: str,
        pixels: npt.NDArray[np.uint8],
        tags: Mapping[str, Tensor] | Tensor | None,
        generator: PseudoLabelGenerator | None,
    ) -> PredictedMask:
        row = tags.get(name) if isinstance(tags, Mapping) else tags
        image = normalise(Pixels(pixels)).to(self.module.device)
        row = None if row is None else row.to(image)[None]
        if generator is not None:
            return self._localize(name, pixels, image, row, generator)
        return self._segment(name, pixels, image, row)

    def _localize(
        self,
        name: str,
        pixels: npt.NDArray[np.uint8],
        image: Tensor,
        tags: Tensor | None,
        generator: PseudoLabelGenerator,
    ) -> PredictedMask:
        module = self.module
        assert isinstance(module, RCAModule)
        module.keeps_features = generator.needs_features
        (seeds,) = module.seeds(image[None], tags)
        picture = colours(image)

        def redraw(threshold: float) -> npt.NDArray[np.uint8]:
            chosen = replace(generator, background_threshold=threshold)
            return chosen.draw(chosen.score(seeds, picture)).numpy()

        maps = seeds.maps.float().cpu().numpy()
        return PredictedMask(
            image_id=name,
            photograph=pixels,
            mask=redraw(generator.background_threshold),
            maps={self.class_names[index]: one for index, one in zip(seeds.classes.tolist(), maps, strict=True)},
            class_names=self.class_names,
            threshold=generator.background_threshold,
            _redraw=redraw,
        )

    @torch.no_grad()
    def _segment(self, name: str, pixels: npt.NDArray[np.uint8], image: Tensor, tags: Tensor | None) -> PredictedMask:
        module = self.module
        assert isinstance(module, LabelPrediction)
        images, max_side = image[None], module.hparams["max_side"]
        probabilities = module.label_probabilities(images, tags)
        (drawn,) = draw_labels(probabilities, images, tags=tags, crf=module.use_crf, max_side=max_side)
        mask = drawn.labels.cpu().numpy()
        if tags is not None:
            probabilities = restrict_to_tags(probabilities, tags)
        shown = {int(value) - 1 for value in np.unique(mask) if value}
        if tags is not None:
            shown |= {int(index) for index in torch.nonzero(tags[0] > 0)[:, 0]}
        maps = {}
        for index in sorted(shown):
            of_class = probabilities[:, index + 1 : index + 2]
            enlarged = torch.nn.functional.interpolate(of_class, mask.shape, mode="bilinear", align_corners=False)
            maps[self.class_names[index]] = enlarged[0, 0].float().cpu().numpy()
        return PredictedMask(name, pixels, mask, maps, self.class_names, confidence=min(1.0, drawn.confidence))

    def _generator(self, threshold: float | None, refine: Sequence[RefinementName]) -> PseudoLabelGenerator | None:
        """What draws masks from class maps; `None` for a segmenter."""
        module = self.module
        if isinstance(module, LabelPrediction):  # one_stage is an RCAModule as well
            for name, value in (("threshold", threshold), ("refine", tuple(refine) or None)):
                if value is not None:
                    raise ArgumentError(name, value, f"it is of localize, this model is of {self.task}; leave it out")
            return None
        if "affinity" in refine:
            raise ArgumentError("refine", tuple(refine), "'affinity' needs a checkpoint of its own; use rca predict")
        settings: dict[str, Any] = default_thresholds(module.thresholds_kind)
        if threshold is not None:
            check_share("threshold", threshold)
            settings["background_threshold"] = threshold
        generator = PseudoLabelGenerator(**settings, refine=tuple(refine))
        generator.check_packages()
        return generator

    def _tag_rows(self, tags: Tags | None) -> Mapping[str, Tensor] | Tensor | None:
        if tags is None:
            return None
        if isinstance(tags, Mapping):
            return {name: self._tag_row(of_image) for name, of_image in tags.items()}
        return self._tag_row(tags)

    def _tag_row(self, tags: str | Sequence[str]) -> Tensor:
        names = [tags] if isinstance(tags, str) else list(tags)
        for name in names:
            if not isinstance(name, str):
                raise ArgumentError("tags", names, "give names of classes")
        return tag_row([self._index.lookup(name, where="tags") for name in names], len(self.class_names))
