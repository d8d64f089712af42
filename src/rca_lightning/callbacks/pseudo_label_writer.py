"""Writer of the predictions of `RCAModule`: class maps, pseudo labels, overlays and their quality."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import lightning as L
import numpy as np
from torch import Tensor

from rca_lightning.arguments import check_arguments
from rca_lightning.callbacks.attention_accumulation import AttentionAccumulation
from rca_lightning.callbacks.prediction_writer import PredictionWriter
from rca_lightning.data.classes import check_mask_classes
from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.data.dataset import TaggedImages
from rca_lightning.data.sample import Batch
from rca_lightning.data.visualization import colours
from rca_lightning.errors import ArgumentError, DataError, refuse_removed
from rca_lightning.evaluation.auto_threshold import Automatic, choose_threshold
from rca_lightning.evaluation.map_kinds import default_thresholds
from rca_lightning.evaluation.protocol import (
    TagsOnRecord,
    ThresholdSource,
    describe_file,
    make_protocol,
    supervision_used,
)
from rca_lightning.io.output_folder import Existing
from rca_lightning.modules.affinity_module import AffinityModule, check_affinity, load_affinity
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.pseudo_labels.affinity import walk_class_maps
from rca_lightning.pseudo_labels.files import write_label_files
from rca_lightning.pseudo_labels.generator import PseudoLabelGenerator
from rca_lightning.pseudo_labels.labels import (
    CHOSEN,
    Background,
    automatic_threshold,
    check_automatic,
    check_count,
    threshold_source,
)
from rca_lightning.pseudo_labels.proposals import ProposalFolder, check_proposals, describe_proposals
from rca_lightning.pseudo_labels.refinement import RefinementName
from rca_lightning.pseudo_labels.summary import write_summary
from rca_lightning.pseudo_labels.workers import WorkQueue
from rca_lightning.rca.inference import ClassMaps

MapSource = Literal["network", "accumulated"]
logger = logging.getLogger(__name__)

# Until prediction starts the kind of maps is not known; these defaults fit every low and high that may be given.
_ANY_THRESHOLDS = {"background_threshold": 0.5, "low": 0.0, "high": 1.0}


class PseudoLabelWriter(PredictionWriter):
    """Writes the pseudo label of each photograph as soon as its maps are computed, whole or not at all.

    For an image id it writes `cams/<id>.npz` (`maps` float16 `(K, H, W)` in `[0, 1]`, `classes` int64 `(K,)`, `size`
    int64 `(2,)` height and width, and the quality; read with `numpy.load(..., allow_pickle=False)`),
    `pseudo_labels/<id>.png` (mode P, VOC palette, size of the photograph, 255 undecided) and, if asked,
    `overlays/<id>.jpg`. Images that are complete already are not computed again.

    At the end it writes `quality.json`, which names the images that a human should look at, and, where the data set
    has masks, `pseudo_labels.json` with the score in the form of `rca validate`.

    Args:
        output_dir: folder of the results.
        background_threshold: of "fixed": strength in `[0, 1]` that a class map must exceed; the one that
            `rca validate` reports on images with masks is a good start. None: 0.7 for the attention, which is flat and
            wide, 0.5 behind a frozen backbone with contrast, 0.3 for the peaked maps of the CAM heads where they are
            propagated, and 0.15 where not; about the best on VOC photographs. "auto": chosen without masks, by
            `AutoThreshold` from the maps of 200 photographs evenly spread over those that are predicted, before the
            first is labelled; a folder keeps its own.
        background: how background is told from classes; see `PseudoLabelGenerator`. "saliency" needs `saliency_dir` of
            the data.
        power: of "power"; 8 is for CAMs what a threshold of 0.19 is.
        low: of "two_thresholds" and "saliency". None: 0.5 for the attention, with contrast 0.3, 0.05 for CAMs.
        high: of "two_thresholds" and "saliency". None: 0.8 for the attention, with contrast 0.7, 0.3 for CAMs.
        saliency_threshold: of "saliency", in `[0, 1]`.
        maps: "network", or "accumulated": those that the callback `AttentionAccumulation` has kept of the training;
            photographs that were not trained on get those of the network, and are counted in the log.
        refine: refinements in the order in which they act: "random_walk", "pamr", "dense_crf" (extra `crf`), and first
            of all "affinity", the walk over learned boundaries; "proposals", the mean over each region of a proposer.
        proposals_dir: folder of the regions for "proposals", `<id>.json` (masks in COCO's run-length code, as SAM
            writes them) or `<id>.png` (one number a segment); see `read_proposals`. None: `superpixels` (extra of
            that name). A photograph without a file is not merged, and is counted in the log.
        affinity_ckpt: checkpoint of `rca affinity fit`; for "affinity".
        workers: threads that write files, or processes that run `dense_crf` or `proposals` and write, while the network
            computes the next images; 0: it waits.
        overlays: whether to write the labels over the photograph as well.
        existing: "skip" what is complete, "overwrite" everything.

    Raises:
        ArgumentError: for a value out of its range.
        MissingExtraError: when predicting starts, if a refinement needs a package that is not there.
        OutputError: when predicting starts, if the folder cannot be made or written to, or holds predictions of
            another model or setting; later, if two images have one id, or an id cannot be a file name.
        DataError: if the background is "saliency" and an image has no saliency map.
    """

    task = RCAModule.task

    @refuse_removed(rule="renamed in 0.2; give background='fixed', 'power', 'saliency' or 'two_thresholds'")
    @check_arguments
    def __init__(
        self,
        output_dir: str,
        background_threshold: float | Automatic | None = None,
        background: Background = "fixed",
        power: float = 8.0,
        low: float | None = None,
        high: float | None = None,
        saliency_threshold: float = 0.5,
        maps: MapSource = "network",
        refine: Sequence[RefinementName] = (),
        affinity_ckpt: str | None = None,
        workers: int = 2,
        overlays: bool = False,
        existing: Existing = "skip",
        proposals_dir: str | None = None,
    ) -> None:
        kinds = {"pseudo_labels": ".png", "cams": ".npz"} | ({"overlays": ".jpg"} if overlays else {})
        super().__init__(output_dir, kinds, existing)
        check_count("workers", workers, least=0)
        check_affinity(refine, affinity_ckpt)
        check_proposals(refine, proposals_dir)
        self.proposals_dir = proposals_dir
        self._proposals: ProposalFolder | None = None
        self.affinity_ckpt = affinity_ckpt
        self._affinity: AffinityModule | None = None
        check_automatic(background_threshold, background)
        self.chooses_threshold = background_threshold == "auto"
        given = None if self.chooses_threshold else background_threshold
        thresholds = {"background_threshold": given, "low": low, "high": high}
        self._settings: dict[str, Any] = {
            "background": background,
            "power": power,
            "saliency_threshold": saliency_threshold,
            "refine": tuple(refine),
            "proposer": "superpixels" if proposals_dir is None else "files",
            **{name: value for name, value in thresholds.items() if value is not None},
        }
        self.maps = maps
        self._accumulation: AttentionAccumulation | None = None
        self._not_accumulated = 0
        self.generator = PseudoLabelGenerator(**{**_ANY_THRESHOLDS, **self._settings})
        self._queue = WorkQueue(workers, threads=not self.generator.is_slow)

    def describe(self, module: L.LightningModule) -> dict[str, Any]:
        """Settings that labels depend on; the defaults of thresholds depend on the map that the module reads."""
        if not isinstance(module, RCAModule):
            raise ArgumentError("model", type(module).__name__, "PseudoLabelWriter writes predictions of RCAModule")
        check_mask_classes(module.hparams["num_classes"])
        self.generator = PseudoLabelGenerator(**{**default_thresholds(module.thresholds_kind), **self._settings})
        self.generator.check_packages()
        if self.affinity_ckpt is not None:
            self._affinity = load_affinity(self.affinity_ckpt, module.device)
        affinity = {} if self._affinity is None else {"affinity": self._affinity.digest()}
        self._proposals = None if self.proposals_dir is None else ProposalFolder(self.proposals_dir)
        self._accumulation = AttentionAccumulation.of(module.trainer) if self.maps == "accumulated" else None
        self._not_accumulated = 0
        chosen: dict[str, Any] = {}
        if self.chooses_threshold:
            self.generator = replace(self.generator, background_threshold=self._choose_threshold(module))
            chosen = CHOSEN
        names = ("num_classes", "backbone", "final_map", "scales", "flip", "max_side", "predict_tags", "tag_threshold")
        settings = {name: module.hparams[name] for name in ("class_names", *names)}
        propagation = ("propagation_steps", "propagation_power", "propagation_affinity")
        settings |= {name: module.hparams[name] for name in propagation}
        maps: dict[str, Any] = {"reads_attention": module.reads_attention, "contrasted": module.contrasts_prototypes}
        maps |= {"map_kind": self._map_kind(module), "tags_calibrated": bool(module.tag_calibration.fitted)}
        maps |= {"threshold_source": self._threshold_source()}
        if module.hparams["num_prompts"]:  # else as in folders of before it was noted
            maps["num_prompts"] = module.hparams["num_prompts"]
        if any((module.supervision_on_record or {}).values()):
            maps["supervision"] = module.supervision_on_record
        proposals = describe_proposals(self.generator.refine, self._proposals)
        return {"maps": self.maps, **self.generator.describe(), **chosen, **proposals, **affinity, **settings, **maps}

    def _threshold_source(self) -> ThresholdSource:
        given = self._settings | ({"background_threshold": "auto"} if self.chooses_threshold else {})
        return threshold_source(self.generator.background, given)

    def _map_kind(self, module: RCAModule) -> str:
        return module.maps_in_words if self.maps == "network" else "running maximum of maps over training"

    def _choose_threshold(self, module: RCAModule) -> float:
        """The threshold that the folder was begun with, or that of a sample of the photographs."""
        if self.folder.existing == "skip" and (begun := automatic_threshold(self.folder.settings())) is not None:
            return begun
        loader: Any = module.trainer.predict_dataloaders
        images = getattr(loader.dataset, "images", loader.dataset)  # those of batches, or themselves
        if not isinstance(images, TaggedImages):
            raise ArgumentError("background_threshold", "auto", "needs photographs of WSSSDataModule; give a number")
        sample = (self._labelled_maps(prediction, image) for prediction, image in module.sample_predictions(images))
        # Neither a walk nor a running maximum over training leaves maps as strong as their kind is.
        kind = module.thresholds_kind if self._affinity is None and self.maps == "network" else None
        threshold = choose_threshold(sample, kind=kind, crf=self.generator.has_crf, device=module.device)
        self._not_accumulated = 0  # they are counted when they are labelled
        return threshold

    def _labelled_maps(self, prediction: dict[str, Any], image: Tensor) -> Tensor:
        """The maps that the background is told from."""
        maps = self._seeds(prediction).maps
        return maps if self._affinity is None else walk_class_maps(maps, self._affinity.boundary_maps(image[None])[0])

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Checks the folder, and asks the module for the features that a refinement needs."""
        super().on_predict_start(trainer, pl_module)
        assert isinstance(pl_module, RCAModule)
        pl_module.keeps_features |= self.generator.needs_features  # another writer may need them too

    def write(self, prediction: dict[str, Any], image: Tensor, batch: Batch, index: int) -> None:
        """Scores the pixels on the device of the maps; a worker draws the label and writes the files."""
        image_id, seeds = prediction["image_id"], self._seeds(prediction)
        boundary = None if self._affinity is None else self._affinity.boundary_maps(image[None])[0]
        proposals = None if self._proposals is None else self._proposals.file(image_id)
        intermediate = self.generator.score(
            seeds, colours(image), self._saliency(batch, index), boundary=boundary, proposals=proposals
        )
        maps = seeds.maps.cpu().numpy().astype(np.float16)
        probabilities = seeds.probabilities[seeds.classes].float().cpu().numpy()
        paths = self.folder.paths(image_id)
        with self.folder.output_errors():  # of this image, or of one before
            self._queue.submit(write_label_files, image_id, intermediate, self.generator, maps, probabilities, paths)

    def _seeds(self, prediction: dict[str, Any]) -> ClassMaps:
        seeds: ClassMaps = prediction["seeds"]
        if self._accumulation is None:
            return seeds
        kept = self._accumulation.seeds(prediction["image_id"], seeds.classes, seeds.maps.shape[1:])
        self._not_accumulated += kept is None
        return seeds if kept is None else replace(seeds, maps=kept.maps.to(seeds.maps.device))

    def _saliency(self, batch: Batch, index: int) -> Tensor | None:
        if self.generator.background != "saliency":
            return None
        if "saliency" not in batch:  # which has maps of all its images or of none
            ids = batch["image_id"]
            raise DataError(
                f"no saliency map of {ids[0] if len(ids) == 1 else 'one of ' + ', '.join(ids)}, which "
                "background='saliency' needs; give --data.saliency_dir with a map for every photograph, or another "
                "background"
            )
        return batch["saliency"][index]

    def finish(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Waits for the workers."""
        assert isinstance(module, RCAModule)
        module.keeps_features = False
        with self.folder.output_errors():
            self._queue.join()
        if self._not_accumulated:
            logger.warning("%d photographs were not trained on; their maps are the network's", self._not_accumulated)
        if self._proposals is not None and (line := self._proposals.summary()) is not None:
            logger.warning("%s", line)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Ends the workers."""
        self._queue.close()

    def summarise(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Writes `quality.json` and the score of the labels."""
        assert isinstance(module, RCAModule)
        data = getattr(trainer, "datamodule", None)
        split = getattr(data, "predict_split", "predict")

        def protocol(ids: Sequence[str], tags: TagsOnRecord) -> dict[str, Any]:
            return make_protocol(
                split=split,
                ids=ids,
                supervision=supervision_used(
                    tags=tags,
                    settings=module.hparams,
                    training=module.supervision_on_record,
                    saliency=self.generator.background == "saliency",
                    proposals=self.proposals_dir is not None,
                ),
                settings=module.hparams,
                threshold=self._threshold_source(),
                refine=self.generator.refine,
                checkpoint=describe_file(trainer.ckpt_path),
                weights=module.weights_on_record,
                background=self.generator.describe(),
                **(module.protocol_of_maps(tags) | {"map_kind": self._map_kind(module)}),
            )

        with self.folder.output_errors():
            write_summary(
                self.folder,
                getattr(data, "predict_records", ()),
                class_names=module.class_names,
                split=split,
                tags=module.hparams["predict_tags"],
                protocol=protocol,
                data=data if isinstance(data, WSSSDataModule) else None,
            )
