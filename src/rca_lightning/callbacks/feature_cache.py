"""The callback that computes the features of each photograph once, and starts the network from them."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from rca_lightning.arguments import check_arguments
from rca_lightning.callbacks.tag_calibration import calibrate_tags, may_be_last_round
from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.data.dataset import TaggedImages
from rca_lightning.data.features import FeatureCache
from rca_lightning.data.images import image_size
from rca_lightning.data.loaders import photograph_loader
from rca_lightning.data.records import Record
from rca_lightning.data.sample import SkippedImage
from rca_lightning.distributed import broadcast_from_first, gather_objects, world_size_and_rank
from rca_lightning.errors import ArgumentError, DataError, DatasetNotFoundError
from rca_lightning.io.download import cache_folder
from rca_lightning.io.progress import show_progress
from rca_lightning.io.tensor_file import tensor_digest
from rca_lightning.modules.affinity_module import AffinityModule
from rca_lightning.modules.frozen_backbone import FrozenBackboneMixin
from rca_lightning.modules.frozen_segmentation_module import FrozenSegmentationModule
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.rca.inference import multi_scale_flip, view_sizes
from rca_lightning.rca.projection import (
    Moments,
    are_learned,
    learn_projections,
    load_projections,
    project,
    projections_state,
)

logger = logging.getLogger(__name__)
_info = rank_zero_only(logger.info)

_Photograph = tuple[int, Tensor | SkippedImage]

_FORMAT = 1  # raise it whenever other features come out for the same key
_PROJECTION = "projection.pt"
_SAMPLE = 64  # photographs that the projection is learned from
_CELLS = 256  # of each of them, evenly spread
_KEPT_NUMBERS = 2**27  # of their features, which are projected and not computed again


class FeatureCacheCallback(L.Callback):
    """Computes the features of each photograph once and keeps them on disk, for a module with a frozen backbone.

    At the start of `fit` it learns the principal components of the features from a few photographs, computes the
    projected features of those that the cache does not hold, a share on each rank, and starts the module from them:
    `RCAModule` fits its first CAM head to their means by logistic regression. Features are one map, or several levels;
    see `FeatureNetwork`. Training and validation then read the cache alone; `FrozenSegmentationModule` is trained on
    it and scored on photographs. After the last round of `RCAModule` it calibrates predicted tags, see
    `calibrate_tags`. A run that is killed goes on where it was; the next one, with another number of prototypes or
    rounds, computes nothing. `validate`, `test` and
    `predict` read the features that are there and compute the others, without writing them. Several processes need one
    folder that all of them see. Features are computed in bfloat16 where the processor has units for it, see
    `compute_dtype`. With `on_bad_image="skip"` a photograph that cannot be read is left out.

    Args:
        folder: of the cache; several runs may share it. None: `features` in $RCA_CACHE or ~/.cache/rca_lightning.
        max_gib: most that the cache may take; see `FeatureCache`. A cell of 256 channels takes 512 bytes, a photograph
            of 500 x 375 pixels and its mirror image at output stride 16 and scale 1 take 0.8 MB. Where propagation is
            by attention each cell has a number for each other as well: 2.4 MB more, which grow with the square.
        penalty: of the logistic regression; see `fit_head`.
        splits: further splits whose features `fit` computes, such as one that is validated on later; they do not change
            the fit. The training split always is, and `eval_split` where the fit validates. Named here, the training
            split stands for its photographs without tags too.

    Example:
        >>> callback = FeatureCacheCallback("features", max_gib=10)
    """

    task = (RCAModule.task, AffinityModule.task, FrozenSegmentationModule.task)
    each: Callable[[int, int], None] | None = None
    """Called with the number of photographs that this rank has computed features of, those that the projection is
    learned from among them, and of all its share."""
    projection: Mapping[str, Tensor] | None = None
    """State of the projections of an earlier fit, to be taken in place of learning them: a fit to more photographs then
    reads the features that are there. Those that do not fit the network are not taken."""

    @check_arguments
    def __init__(
        self, folder: str | None = None, max_gib: float = 50.0, penalty: float = 0.01, splits: Sequence[str] = ()
    ) -> None:
        if penalty <= 0:
            raise ArgumentError("penalty", penalty, "give a number above 0")
        self.cache = FeatureCache(cache_folder() / "features" if folder is None else folder, max_gib=max_gib)
        self.penalty = penalty
        self.splits = tuple(splits)
        self._calibrated = False
        self._sampled = 0  # photographs that the projection was learned from in this fit

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Lets `validate`, `test` and `predict` read the features that are there."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if stage == "fit" or not isinstance(pl_module, FrozenBackboneMixin) or not isinstance(data, WSSSDataModule):
            return
        if pl_module.is_frozen and pl_module.scores_features:
            data.open_features = functools.partial(self.open, pl_module)

    def open(self, module: FrozenBackboneMixin) -> FeatureCache:
        """Opens the cache of a module, whose weights are loaded by now, on the device that it computes on."""
        self._use(module, compute_dtype(module.device, _dtype(module)))
        return self.cache

    def _use(self, module: FrozenBackboneMixin, dtype: torch.dtype) -> None:
        hparams = module.feature_arguments
        levels = len(module.network.projections)
        self.cache.use(self._key(module, dtype), scales=hparams["scales"], flip=bool(hparams["flip"]), levels=levels)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Computes what is missing and starts the network.

        Raises:
            ArgumentError: without a `WSSSDataModule`, whose photographs it reads.
            DataError: for a photograph whose features are not finite.
            OutputError: if the cache cannot be written to, or has no room.
        """
        if not isinstance(pl_module, FrozenBackboneMixin) or not pl_module.is_frozen:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, WSSSDataModule):
            raise ArgumentError(
                "datamodule", type(data).__name__, "backbone_mode='frozen' reads photographs of a WSSSDataModule"
            )
        network = pl_module.network
        # As DistributedDataParallel would do: every rank has the network of the first.
        broadcast_from_first(*network.backbone.state_dict().values())
        dtype = compute_dtype(pl_module.device, _dtype(pl_module))
        cells = max(1, data.augmentation.crop_size // network.strides[-1]) if pl_module.trains_on_crops else None
        splits = data.keep_features(
            self.cache,
            splits=self.splits,
            crop_cells=cells,
            with_masks=pl_module.reads_masks,
            to_validate=pl_module.scores_features,
        )
        begins = not are_learned(network.projections)
        with self._inference(pl_module, dtype):
            if begins:
                self._learn_projection(pl_module, splits[0], splits, dtype, data.num_workers)
            self._use(pl_module, dtype)
            unread = self._compute(pl_module, splits, data.num_workers, wait=trainer.strategy.barrier)
        data.leave_out_of_training(unread)
        # A learning rate that decays over all steps has had a loader made to count them, of photographs.
        trainer.fit_loop._combined_loader = None
        if begins:
            pl_module.start_from_features(data.cached_features(), penalty=self.penalty)

    def compute(
        self,
        module: FrozenBackboneMixin,
        data: WSSSDataModule,
        images: TaggedImages,
        *,
        alone: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> list[SkippedImage]:
        """Computes the features of photographs that the cache does not hold, without a fit and in this process alone.

        Processes that share the photographs of one fit compute what it would: a module that has no projection yet gets
        that of the fit, learned from the same few photographs by the process that comes first.

        Args:
            module: with its weights, on the device that it computes on.
            data: set up for the fit, where the module has no projection; its number of loading processes is taken.
            images: the photographs, with all views where they are `scored`.
            alone: makes a context in which no other of these processes learns a projection.

        Returns:
            Those that could not be read.

        Raises:
            DataError: for a photograph whose features are not finite.
            OutputError: if the cache cannot be written to, or has no room.
        """
        dtype = compute_dtype(module.device, _dtype(module))
        self._sampled = 0
        with self._inference(module, dtype):
            if not are_learned(module.network.projections):
                (trained_on,) = data.keep_features(self.cache, to_validate=False)
                with alone():
                    self._learn_projection(module, trained_on, [images], dtype, data.num_workers)
            self._use(module, dtype)
            return self._compute(module, [images], data.num_workers)

    @contextmanager
    def _inference(self, module: FrozenBackboneMixin, dtype: torch.dtype) -> Iterator[None]:
        """Evaluation mode, in which relations of cells come with the features, and the number type they are made in."""
        casts, trains = dtype == torch.bfloat16, module.training
        module.eval()
        try:
            with torch.inference_mode(), torch.autocast(module.device.type, torch.bfloat16, enabled=casts):
                yield
        finally:
            module.train(trains)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drops the calibration of tags: prototypes move in every round."""
        self._calibrated = False
        if isinstance(pl_module, RCAModule) and pl_module.is_frozen:
            pl_module.tag_calibration.reset()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Calibrates tags after the last round, before `fit` validates."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and trainer.is_last_batch:
            self._calibrate_after_last(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Calibrates tags after the last round of a `fit` that does not validate."""
        self._calibrate_after_last(trainer, pl_module)

    def _calibrate_after_last(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if (
            self._calibrated
            or not isinstance(module, RCAModule)
            or not module.is_frozen
            or not may_be_last_round(trainer)
        ):
            return
        self._calibrated = True
        calibrate_tags(module, trainer.datamodule.cached_features(), penalty=self.penalty)  # type: ignore[attr-defined]

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Lets other runs make room in the cache."""
        self.cache.release()

    def _key(self, module: FrozenBackboneMixin, dtype: torch.dtype) -> dict[str, object]:
        network, hparams = module.network, module.feature_arguments
        names = [name for name in ("backbone", "output_stride", "stride_in", "max_side") if name in hparams]
        names += ["padding_mode"] * (hparams.get("padding_mode", "zeros") != "zeros")
        states = network.backbone.state_dict(prefix="backbone."), projections_state(network.projections)
        return {
            "format": _FORMAT,
            "weights": tensor_digest(*states),
            "computed in": str(dtype).removeprefix("torch."),
            **{name: hparams[name] for name in names},
            **network.feature_key(),
        }

    def _learn_projection(
        self,
        module: FrozenBackboneMixin,
        images: TaggedImages,
        needed: list[TaggedImages],
        dtype: torch.dtype,
        workers: int,
    ) -> None:
        """Gives a module the projection of some images, and keeps the features that were computed for it."""
        computed = self._find_projection(module, images, needed, dtype, workers)
        self._use(module, dtype)
        for row, features in computed.items():
            self._store(module, images.records[row], self.cache.scales[0], features)

    def _find_projection(
        self,
        module: FrozenBackboneMixin,
        images: TaggedImages,
        needed: list[TaggedImages],
        dtype: torch.dtype,
        workers: int,
    ) -> dict[int, list[Tensor]]:
        """Reads the components from the cache, else learns them; the first rank does, for all.

        Another order of summation would give components that differ in the last digit, and so another key: a run that
        goes on, or the next one, must have the same to the bit.

        Returns:
            Features of photographs, each level `(1, C_k, h_k, w_k)`, that were computed for it, by row, as many as fit.
        """
        network = module.network
        moments: list[Moments] | None = None
        kept: dict[int, list[Tensor]] = {}
        given = self.projection is not None and load_projections(network.projections, dict(self.projection))
        if world_size_and_rank()[1] == 0 and not given:
            step = max(1, len(images) // _SAMPLE)
            rows = list(range(0, len(images), step))[:_SAMPLE]
            arguments = module.feature_arguments
            key = self._key(module, dtype) | {"scale": arguments["scales"][0]}
            key |= {name: arguments[name] for name in ("embedding_stages",) if name in arguments}
            self.cache.use(key | {"projection of": [self.cache.stamp(images.records[row]) for row in rows]}, scales=[])
            if not load_projections(network.projections, self.cache.read_tensors(_PROJECTION)):
                self.cache.begin(sum(self._bytes(module, of, row) for of in needed for row in range(len(of))))
                _info("features: the projection is learned from %d photographs", len(rows))
                moments, kept = self._moments(module, images, rows, workers)
        learn_projections(network.projections, moments)
        if moments is not None:
            self.cache.write_tensors(_PROJECTION, projections_state(network.projections))
        return kept

    def _moments(
        self, module: FrozenBackboneMixin, images: TaggedImages, rows: list[int], workers: int
    ) -> tuple[list[Moments], dict[int, list[Tensor]]]:
        moments: list[Moments] | None = None
        kept: dict[int, list[Tensor]] = {}
        self._sampled = len(rows)
        read = _photographs(images, rows, workers)
        for number, (row, image) in enumerate(self._shown(read, len(rows))):
            if self.each is not None:
                self.each(number, len(rows) + len(images))
            if isinstance(image, SkippedImage):
                continue
            ((view, _),) = multi_scale_flip(
                _to(image, module),
                scales=module.feature_arguments["scales"][:1],
                flip=False,
                max_side=module.feature_arguments["max_side"],
            )
            features = module.network.features(view)
            widths = [projection.weight.shape[1] for projection in module.network.projections]
            moments = [Moments(width) for width in widths] if moments is None else moments
            for of_level, level, width in zip(moments, features, widths, strict=True):
                cells = level[0, :width].flatten(1).T  # (1, C, h, w) -> (hw, C)
                of_level.add(cells[torch.linspace(0, len(cells) - 1, min(_CELLS, len(cells))).long()].float().cpu())
            if sum(level.numel() for levels in (*kept.values(), features) for level in levels) <= _KEPT_NUMBERS:
                kept[row] = features
        if moments is None:
            raise DataError(f"none of {len(rows)} photographs of the training split could be read")
        return moments, kept

    def _compute(
        self,
        module: FrozenBackboneMixin,
        splits: list[TaggedImages],
        workers: int,
        *,
        wait: Callable[[str], object] = lambda name: None,
    ) -> list[SkippedImage]:
        """Computes what the cache does not hold, each rank its share; returns what no rank could read."""
        wait("features of the projection")  # so that every rank finds the same missing
        missing = [np.flatnonzero(self._lack(images)) for images in splits]
        total = sum(map(len, missing))
        processes, rank = world_size_and_rank()
        if rank == 0 and total:
            of_missing = zip(splits, missing, strict=True)
            self.cache.begin(
                sum(self._bytes(module, images, row) for images, rows in of_missing for row in map(int, rows))
            )
        wait("feature cache")
        self.cache.hold()
        if not total:
            _info("features: all are in %s", self.cache.folder)
            return []
        _info("features: computing those of %d photographs into %s", total, self.cache.folder)
        started = time.monotonic()
        done, before, share = 0, 0, len(range(rank, total, processes))
        unread: list[SkippedImage] = []
        for images, rows in zip(splits, missing, strict=True):
            own = rows[(rank - before) % processes :: processes]
            before += len(rows)
            for row, image in self._shown(_photographs(images, own, workers), len(own)):
                if isinstance(image, SkippedImage):
                    unread.append(image)
                else:
                    self._write(module, images, row, image)
                done += 1
                if self.each is not None:
                    self.each(self._sampled + done, self._sampled + share)
        everywhere = [image for of_rank in gather_objects(unread) for image in of_rank]
        _info("features: computed in %.0f seconds", time.monotonic() - started)
        return everywhere

    def _shown(self, photographs: Iterable[_Photograph], total: int) -> Iterable[_Photograph]:
        """Photographs as they come, with progress where nobody else shows it."""
        return photographs if self.each is not None else show_progress(photographs, what="features", total=total)

    def _lack(self, images: TaggedImages) -> npt.NDArray[np.bool_]:
        """Which photographs have a view without features."""
        lack = (len(self.cache.missing(record, scored=images.scored)) > 0 for record in images.records)
        return np.fromiter(lack, dtype=np.bool_, count=len(images.records))

    def _write(self, module: FrozenBackboneMixin, images: TaggedImages, row: int, image: Tensor) -> None:
        record = images.records[row]
        for scale, mirrored in self.cache.missing(record, scored=images.scored):
            ((view, _),) = multi_scale_flip(
                _to(image, module), scales=(scale,), flip=False, max_side=module.feature_arguments["max_side"]
            )
            features = module.network.features(view.flip(3) if mirrored else view)
            self._store(module, record, scale, features, mirrored=mirrored)

    def _store(
        self,
        module: FrozenBackboneMixin,
        record: Record,
        scale: float,
        features: list[Tensor],
        *,
        mirrored: bool = False,
    ) -> None:
        """Projects and writes features of a view, each level `(1, C_k, h_k, w_k)`."""
        projected = [level[0].half() for level in project(module.network.projections, features)]
        if not all(bool(torch.isfinite(level).all()) for level in projected):
            remedy = "look at the weights and the photograph"
            raise DataError(f"{record.image_id}: its features are not finite; {remedy}")
        self.cache.write(record, scale, projected, mirrored=mirrored)

    @staticmethod
    def _bytes(module: FrozenBackboneMixin, images: TaggedImages, row: int) -> int:
        """Of the features of a photograph, about."""
        network, hparams = module.network, module.feature_arguments
        coarsest = network.strides[-1]
        try:
            size = image_size(images.records[row].image)
        except (DataError, DatasetNotFoundError):
            if images.skip_of is None:
                raise
            return 0
        scales = hparams["scales"] if images.scored else hparams["scales"][:1]
        sizes = view_sizes(size, scales=scales, max_side=hparams["max_side"])
        cells = [-(-height // coarsest) * -(-width // coarsest) for height, width in sizes]
        numbers = sum(  # of a cell of the coarsest level, which a whole number of finer ones share
            (coarsest // stride) ** 2 * len(projection.weight)
            for stride, projection in zip(network.strides, network.projections, strict=True)
        )
        of_views = sum(count * (numbers + network.relation_channels(count)) for count in cells)
        return int(of_views * (1 + (images.scored and hparams["flip"])) * 2)


def compute_dtype(device: torch.device, weights: torch.dtype = torch.float32) -> torch.dtype:
    """Number type that features are computed in: bfloat16 for float32 weights on a processor with units for it.

    On others bfloat16 is emulated, which takes longer than float32.

    Args:
        device: of the network.
        weights: type of the network's weights; others than float32 are what the user has chosen.

    Example:
        >>> compute_dtype(torch.device("cpu"), torch.float64)
        torch.float64
    """
    if weights != torch.float32:
        return weights
    if device.type == "cuda":
        has_units = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_units = device.type == "cpu" and (
            torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        )
    return torch.bfloat16 if has_units else weights


def _dtype(module: FrozenBackboneMixin) -> torch.dtype:
    return module.network.projections[0].weight.dtype


def _to(image: Tensor, module: FrozenBackboneMixin) -> Tensor:
    return image.to(module.device, _dtype(module))


def _photographs(
    images: TaggedImages, rows: Sequence[int] | npt.NDArray[np.int64], workers: int
) -> Iterator[_Photograph]:
    """Row and pixels `(1, 3, H, W)` of photographs; of one that cannot be read and is skipped, why."""
    for row, sample in zip(rows, photograph_loader(images, rows, num_workers=workers), strict=True):
        yield row, sample if isinstance(sample, SkippedImage) else sample["image"][None]
