"""The callback that computes the features of each photograph once, and starts the network from them."""

from __future__ import annotations

import functools
import hashlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from rca_lightning.arguments import check_arguments
from rca_lightning.callbacks.tag_calibration import calibrate_tags, may_be_last_round
from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.data.dataset import CachedFeatures, TaggedImages
from rca_lightning.data.features import FeatureCache
from rca_lightning.data.images import image_size
from rca_lightning.data.loaders import photograph_loader
from rca_lightning.data.records import Record
from rca_lightning.data.sample import SkippedImage
from rca_lightning.distributed import broadcast_from_first, gather_objects, gather_uneven, world_size_and_rank
from rca_lightning.errors import ArgumentError, DataError, DatasetNotFoundError
from rca_lightning.io.download import cache_folder
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.rca.cam import fit_head
from rca_lightning.rca.inference import multi_scale_flip, view_sizes
from rca_lightning.rca.projection import Moments

logger = logging.getLogger(__name__)
_info = rank_zero_only(logger.info)

_FORMAT = 1  # raise it whenever other features come out for the same key
_PROJECTION = "projection.pt"
_SAMPLE = 64  # photographs that the projection is learned from
_CELLS = 256  # of each of them, evenly spread
_KEPT_NUMBERS = 2**27  # of their features, which are projected and not computed again
_EVERY = 30.0  # seconds between two lines of progress


class FeatureCacheCallback(L.Callback):
    """Computes the features of each photograph once and keeps them on disk, for a module with a frozen backbone.

    At the start of `fit` it learns the principal components of the features from a few photographs, computes the
    projected features of those that the cache does not hold, a share on each rank, and fits the first CAM head to their
    means by logistic regression. Training and validation then read the cache alone. After the last round it calibrates
    predicted tags, see `calibrate_tags`. A run that is killed goes on where
    it was; the next one, with another number of prototypes or rounds, computes nothing. `validate`, `test` and
    `predict` read the features that are there and compute the others, without writing them. Several processes need one
    folder that all of them see. Features are computed in bfloat16 where the processor has units for it, see
    `compute_dtype`. With `on_bad_image="skip"` a photograph that cannot be read is left out.

    Args:
        folder: of the cache; several runs may share it. None: `features` in $RCA_CACHE or ~/.cache/rca_lightning.
        max_gib: most that the cache may take; see `FeatureCache`. A cell of 256 channels takes 512 bytes, a photograph
            of 500 x 375 pixels and its mirror image at output stride 16 and scale 1 take 0.8 MB.
        penalty: of the logistic regression; see `fit_head`.
        splits: further splits whose features `fit` computes, such as one that is validated on later; they do not change
            the fit. The training split always is, and `eval_split` where the fit validates.

    Example:
        >>> callback = FeatureCacheCallback("features", max_gib=10)
    """

    task = RCAModule.task

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

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Lets `validate`, `test` and `predict` read the features that are there."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if stage == "fit" or not isinstance(pl_module, RCAModule) or not isinstance(data, WSSSDataModule):
            return
        if pl_module.is_frozen:
            data.open_features = functools.partial(self._open, pl_module)

    def _open(self, module: RCAModule) -> FeatureCache:
        """The cache of a module, whose weights are loaded by now."""
        self._use(module, compute_dtype(module.device, module.network.coarse_head.conv.weight.dtype))
        return self.cache

    def _use(self, module: RCAModule, dtype: torch.dtype) -> None:
        hparams = module.hparams
        self.cache.use(self._key(module, dtype), scales=hparams["scales"], flip=bool(hparams["flip"]))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Computes what is missing and starts the network.

        Raises:
            ArgumentError: without a `WSSSDataModule`, whose photographs it reads.
            DataError: for a photograph whose features are not finite.
            OutputError: if the cache cannot be written to, or has no room.
        """
        if not isinstance(pl_module, RCAModule) or not pl_module.is_frozen:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, WSSSDataModule):
            raise ArgumentError(
                "datamodule", type(data).__name__, "backbone_mode='frozen' reads photographs of a WSSSDataModule"
            )
        network = pl_module.network.eval()
        # As DistributedDataParallel would do: every rank has the network of the first.
        broadcast_from_first(*network.backbone.state_dict().values())
        dtype = compute_dtype(pl_module.device, network.coarse_head.conv.weight.dtype)
        splits = data.keep_features(self.cache, splits=self.splits)
        begins = not bool(network.pca_learned)
        casts = dtype == torch.bfloat16
        with torch.inference_mode(), torch.autocast(pl_module.device.type, torch.bfloat16, enabled=casts):
            computed = self._find_projection(pl_module, splits, dtype, data.num_workers) if begins else {}
            self._use(pl_module, dtype)
            for row, features in computed.items():
                projected = network.pca_of(features.to(network.coarse_head.conv.weight.dtype))
                self._store(splits[0].records[row], self.cache.scales[0], projected)
            unread = self._compute(trainer, pl_module, splits, data.num_workers)
        data.leave_out_of_training(unread)
        if begins:
            self._fit_head(pl_module, data.cached_features())

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

    def _key(self, module: RCAModule, dtype: torch.dtype) -> dict[str, object]:
        names = ["backbone", "output_stride", "stride_in", "max_side"]
        names += ["padding_mode"] * (module.hparams["padding_mode"] != "zeros")
        return {
            "format": _FORMAT,
            "weights": _digest(module.network.backbone.state_dict(prefix="backbone."), module.network.pca_state()),
            "computed in": str(dtype).removeprefix("torch."),
            **{name: module.hparams[name] for name in names},
        }

    def _find_projection(
        self, module: RCAModule, splits: list[TaggedImages], dtype: torch.dtype, workers: int
    ) -> dict[int, Tensor]:
        """Reads the components from the cache, else learns them; the first rank does, for all.

        Another order of summation would give components that differ in the last digit, and so another key: a run that
        goes on, or the next one, must have the same to the bit.

        Returns:
            Features `(1, C, h, w)` of photographs that were computed for it, by row, as many as fit.
        """
        network = module.network
        moments: Moments | None = None
        kept: dict[int, Tensor] = {}
        if world_size_and_rank()[1] == 0:
            images = splits[0]
            step = max(1, len(images) // _SAMPLE)
            rows = list(range(0, len(images), step))[:_SAMPLE]
            key = self._key(module, dtype)
            key |= {"embedding_stages": module.hparams["embedding_stages"], "scale": module.hparams["scales"][0]}
            self.cache.use(key | {"projection of": [self.cache.stamp(images.records[row]) for row in rows]}, scales=[])
            if not network.load_pca(self.cache.read_tensors(_PROJECTION)):
                self.cache.begin(sum(self._bytes(module, of, row) for of in splits for row in range(len(of))))
                _info("features: the projection is learned from %d photographs", len(rows))
                moments, kept = self._moments(module, images, rows, workers)
        network.learn_projection(moments)
        if moments is not None:
            self.cache.write_tensors(_PROJECTION, network.pca_state())
        return kept

    def _moments(
        self, module: RCAModule, images: TaggedImages, rows: list[int], workers: int
    ) -> tuple[Moments, dict[int, Tensor]]:
        moments: Moments | None = None
        kept: dict[int, Tensor] = {}
        for row, image in _photographs(images, rows, workers):
            if isinstance(image, SkippedImage):
                continue
            ((view, _),) = multi_scale_flip(
                _to(image, module), scales=module.hparams["scales"][:1], flip=False, max_side=module.hparams["max_side"]
            )
            features = module.network.features(view)
            cells = features[0].flatten(1).T  # (1, C, h, w) -> (hw, C)
            moments = Moments(cells.shape[1]) if moments is None else moments
            moments.add(cells[torch.linspace(0, len(cells) - 1, min(_CELLS, len(cells))).long()].float().cpu())
            if sum(map(Tensor.numel, kept.values())) + features.numel() <= _KEPT_NUMBERS:
                kept[row] = features
        if moments is None:
            raise DataError(f"none of {len(rows)} photographs of the training split could be read")
        return moments, kept

    def _compute(
        self, trainer: L.Trainer, module: RCAModule, splits: list[TaggedImages], workers: int
    ) -> list[SkippedImage]:
        """Computes what the cache does not hold, each rank its share; returns what no rank could read."""
        trainer.strategy.barrier("features of the projection")  # so that every rank finds the same missing
        missing = [
            (images, row)
            for images in splits
            for row, record in enumerate(images.records)
            if self.cache.missing(record, scored=images.scored)
        ]
        if trainer.is_global_zero and missing:
            self.cache.begin(sum(self._bytes(module, images, row) for images, row in missing))
        trainer.strategy.barrier("feature cache")
        self.cache.hold()
        if not missing:
            _info("features: all are in %s", self.cache.folder)
            return []
        _info("features: computing those of %d photographs into %s", len(missing), self.cache.folder)
        processes, rank = world_size_and_rank()
        started = last = time.monotonic()
        done, share = 0, missing[rank::processes]
        unread: list[SkippedImage] = []
        for images in splits:
            rows = [row for of, row in share if of is images]
            for row, image in _photographs(images, rows, workers):
                if isinstance(image, SkippedImage):
                    unread.append(image)
                else:
                    self._write(module, images, row, image)
                done += 1
                now = time.monotonic()
                if now - last > _EVERY:
                    last, each = now, (now - started) / done
                    minutes = each * (len(share) - done) / 60
                    _info("features: photograph %d of %d, %.1f minutes left", done, len(share), minutes)
        everywhere = [image for of_rank in gather_objects(unread) for image in of_rank]
        _info("features: computed in %.0f seconds", time.monotonic() - started)
        return everywhere

    def _write(self, module: RCAModule, images: TaggedImages, row: int, image: Tensor) -> None:
        record = images.records[row]
        for scale, mirrored in self.cache.missing(record, scored=images.scored):
            ((view, _),) = multi_scale_flip(
                _to(image, module), scales=(scale,), flip=False, max_side=module.hparams["max_side"]
            )
            features = module.network.stages(view.flip(3) if mirrored else view)[0][0]  # (D, h, w)
            self._store(record, scale, features, mirrored=mirrored)

    def _store(self, record: Record, scale: float, features: Tensor, *, mirrored: bool = False) -> None:
        features = features.half()
        if not bool(torch.isfinite(features).all()):
            remedy = "look at the weights and the photograph"
            raise DataError(f"{record.image_id}: its features are not finite; {remedy}")
        self.cache.write(record, scale, features, mirrored=mirrored)

    @staticmethod
    def _bytes(module: RCAModule, images: TaggedImages, row: int) -> int:
        """Of the features of a photograph, about."""
        stride, hparams = module.network.backbone.output_stride, module.hparams
        try:
            size = image_size(images.records[row].image)
        except (DataError, DatasetNotFoundError):
            if images.skip_of is None:
                raise
            return 0
        scales = hparams["scales"] if images.scored else hparams["scales"][:1]
        sizes = view_sizes(size, scales=scales, max_side=hparams["max_side"])
        cells = sum(-(-height // stride) * -(-width // stride) for height, width in sizes)
        return int(cells * (1 + (images.scored and hparams["flip"])) * module.embedding_dim * 2)

    def _fit_head(self, module: RCAModule, images: CachedFeatures) -> None:
        """Fits the first head to the mean features, which every rank reads a share of."""
        processes, rank = world_size_and_rank()
        means, tags, rows = [torch.zeros(0, module.embedding_dim)], [torch.zeros(0, module.hparams["num_classes"])], []
        for row in range(rank, len(images), processes):
            sample = images[row]
            largest = max(sample["features"], key=lambda of_scale: of_scale.shape[2] * of_scale.shape[3])
            means.append(largest.float().mean(dim=(0, 2, 3))[None])  # (V, D, h, w) -> (1, D)
            tags.append(sample["tags"][None])
            rows.append(row)
        device = module.device
        gathered = gather_uneven(
            torch.cat(means).to(device),
            torch.cat(tags).to(device),
            torch.tensor(rows, dtype=torch.int64, device=device),
        )
        order = torch.argsort(gathered[2])
        weight, bias = fit_head(gathered[0][order].cpu(), gathered[1][order].cpu(), penalty=self.penalty)
        weight, bias = weight.to(device), bias.to(device)
        broadcast_from_first(weight, bias)
        module.network.start_head(weight, bias)
        _info("features: the first head is fitted to %d photographs", len(order))


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


def _digest(*states: Mapping[str, Tensor]) -> str:
    """Checksum of tensors and their names."""
    digest = hashlib.sha256()
    for name, value in sorted(item for state in states for item in state.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _to(image: Tensor, module: RCAModule) -> Tensor:
    return image.to(module.device, module.network.coarse_head.conv.weight.dtype)


def _photographs(images: TaggedImages, rows: list[int], workers: int) -> Iterator[tuple[int, Tensor | SkippedImage]]:
    """Row and pixels `(1, 3, H, W)` of photographs; of one that cannot be read and is skipped, why."""
    for row, sample in zip(rows, photograph_loader(images, rows, num_workers=workers), strict=True):
        yield row, sample if isinstance(sample, SkippedImage) else sample["image"][None]
