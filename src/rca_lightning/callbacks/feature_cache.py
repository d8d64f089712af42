"""The callback that computes the features of each photograph once, and starts the network from them."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from rca_lightning.arguments import check_arguments
from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.data.dataset import CachedFeatures, TaggedImages
from rca_lightning.data.features import FeatureCache
from rca_lightning.data.images import image_size
from rca_lightning.data.loaders import photograph_loader
from rca_lightning.distributed import broadcast_from_first, gather_uneven, world_size_and_rank
from rca_lightning.errors import ArgumentError, DataError
from rca_lightning.io.download import cache_folder
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.rca.cam import fit_head
from rca_lightning.rca.inference import multi_scale_flip, view_sizes
from rca_lightning.rca.projection import Moments

logger = logging.getLogger(__name__)
_info = rank_zero_only(logger.info)

_FORMAT = 1  # raise it whenever other features come out for the same key
_SAMPLE = 64  # photographs that the projection is learned from
_CELLS = 256  # of each of them, evenly spread
_EVERY = 30.0  # seconds between two lines of progress


class FeatureCacheCallback(L.Callback):
    """Computes the features of each photograph once and keeps them on disk, for a module with a frozen backbone.

    At the start of `fit` it learns the principal components of the features from a few photographs, computes the
    projected features of those that the cache does not hold, a share on each rank, and fits the first CAM head to their
    means by logistic regression. Training and validation then read the cache alone. A run that is killed goes on where
    it was; the next one, with another number of prototypes or rounds, computes nothing.

    Args:
        folder: of the cache; several runs may share it. None: `features` in $RCA_CACHE or ~/.cache/rca_lightning.
        max_gib: most that the cache may take; see `FeatureCache`. A cell of 256 channels takes 512 bytes, a photograph
            of 500 x 375 pixels and its mirror image at output stride 16 and scale 1 take 0.8 MB.
        penalty: of the logistic regression; see `fit_head`.

    Example:
        >>> callback = FeatureCacheCallback("features", max_gib=10)
    """

    task = RCAModule.task

    @check_arguments
    def __init__(self, folder: str | None = None, max_gib: float = 50.0, penalty: float = 0.1) -> None:
        if penalty <= 0:
            raise ArgumentError("penalty", penalty, "give a number above 0")
        self.cache = FeatureCache(cache_folder() / "features" if folder is None else folder, max_gib=max_gib)
        self.penalty = penalty

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
        pl_module.network.eval()
        splits = data.keep_features(self.cache)
        begins = not bool(pl_module.network.pca_learned)
        with torch.inference_mode(), trainer.precision_plugin.forward_context():
            if begins:
                self._learn_projection(pl_module, splits[0], data.num_workers)
            self.cache.use(self._key(pl_module), scales=pl_module.hparams["scales"])
            self._compute(trainer, pl_module, splits, data.num_workers)
        if begins:
            self._fit_head(pl_module, CachedFeatures(splits[0], self.cache))

    def _key(self, module: RCAModule) -> dict[str, object]:
        state = {**module.network.backbone.state_dict(prefix="backbone."), **module.network.pca_state()}
        weights = hashlib.sha256()
        for name, value in sorted(state.items()):
            weights.update(name.encode())
            weights.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        names = ("backbone", "output_stride", "stride_in", "flip", "max_side")
        if module.hparams["padding_mode"] != "zeros":
            weights.update(module.hparams["padding_mode"].encode())
        return {"format": _FORMAT, "weights": weights.hexdigest(), **{name: module.hparams[name] for name in names}}

    def _learn_projection(self, module: RCAModule, images: TaggedImages, workers: int) -> None:
        """Learns the components on the first rank, from photographs spread over the split."""
        moments: Moments | None = None
        if world_size_and_rank()[1] == 0:
            _info("features: the projection is learned from %d photographs", min(_SAMPLE, len(images)))
            step = max(1, len(images) // _SAMPLE)
            rows = list(range(0, len(images), step))[:_SAMPLE]
            for _, _, image in _photographs(images, rows, workers):
                for view, _ in multi_scale_flip(
                    image.to(module.device),
                    scales=module.hparams["scales"][:1],
                    flip=False,
                    max_side=module.hparams["max_side"],
                ):
                    cells = module.network.features(view)[0].flatten(1).T  # (1, C, h, w) -> (hw, C)
                    moments = Moments(cells.shape[1]) if moments is None else moments
                    moments.add(cells[torch.linspace(0, len(cells) - 1, min(_CELLS, len(cells))).long()].float().cpu())
            if moments is None:
                raise DataError("no photograph of the training split could be read")
        module.network.learn_projection(moments)

    def _compute(self, trainer: L.Trainer, module: RCAModule, splits: list[TaggedImages], workers: int) -> None:
        """Computes what the cache does not hold; each rank its share."""
        missing = [
            (images, row)
            for images in splits
            for row, record in enumerate(images.records)
            if self.cache.missing(record)
        ]
        if trainer.is_global_zero and missing:
            self.cache.begin(sum(self._bytes(module, images, row) for images, row in missing))
        trainer.strategy.barrier("feature cache")
        if not missing:
            _info("features: all are in %s", self.cache.folder)
            return
        _info("features: computing those of %d photographs into %s", len(missing), self.cache.folder)
        processes, rank = world_size_and_rank()
        started = last = time.monotonic()
        done, share = 0, missing[rank::processes]
        for images in splits:
            rows = [row for of, row in share if of is images]
            for row, image_id, image in _photographs(images, rows, workers):
                self._write(module, images, row, image_id, image)
                done += 1
                now = time.monotonic()
                if now - last > _EVERY:
                    last, each = now, (now - started) / done
                    minutes = each * (len(share) - done) / 60
                    _info("features: photograph %d of %d, %.1f minutes left", done, len(share), minutes)
        trainer.strategy.barrier("features")
        _info("features: computed in %.0f seconds", time.monotonic() - started)

    def _write(self, module: RCAModule, images: TaggedImages, row: int, image_id: str, image: Tensor) -> None:
        record = images.records[row]
        for scale in self.cache.missing(record):
            views = multi_scale_flip(
                image.to(module.device),
                scales=(scale,),
                flip=module.hparams["flip"],
                max_side=module.hparams["max_side"],
            )
            features = torch.cat([module.network.stages(view)[0] for view, _ in views]).float()
            if not bool(torch.isfinite(features).all()):
                raise DataError(f"{image_id}: its features are not finite; look at the weights and the photograph")
            self.cache.write(record, scale, features)

    @staticmethod
    def _bytes(module: RCAModule, images: TaggedImages, row: int) -> int:
        """Of the features of a photograph, about."""
        stride, hparams = module.network.backbone.output_stride, module.hparams
        size = image_size(images.records[row].image)
        sizes = view_sizes(size, scales=hparams["scales"], max_side=hparams["max_side"])
        cells = sum(-(-height // stride) * -(-width // stride) for height, width in sizes)
        return int(cells * (1 + hparams["flip"]) * module.embedding_dim * 2)

    def _fit_head(self, module: RCAModule, images: CachedFeatures) -> None:
        """Fits the first head to the mean features, which every rank reads a share of."""
        processes, rank = world_size_and_rank()
        means, tags, rows = [], [], []
        for row in range(rank, len(images), processes):
            sample = images[row]
            largest = max(sample["features"], key=lambda of_scale: of_scale.shape[2] * of_scale.shape[3])
            means.append(largest.float().mean(dim=(0, 2, 3)))  # (V, D, h, w) -> (D,)
            tags.append(sample["tags"])
            rows.append(row)
        device = module.device
        gathered = gather_uneven(
            torch.stack(means).to(device), torch.stack(tags).to(device), torch.tensor(rows, device=device)
        )
        order = torch.argsort(gathered[2])
        weight, bias = fit_head(gathered[0][order].cpu(), gathered[1][order].cpu(), penalty=self.penalty)
        weight, bias = weight.to(device), bias.to(device)
        broadcast_from_first(weight, bias)
        module.network.start_head(weight, bias)
        _info("features: the first head is fitted to %d photographs", len(order))


def _photographs(images: TaggedImages, rows: list[int], workers: int) -> Iterator[tuple[int, str, Tensor]]:
    """Row, id and pixels `(1, 3, H, W)` of photographs that can be read."""
    for row, sample in zip(rows, photograph_loader(images, rows, num_workers=workers), strict=True):
        if isinstance(sample, dict):
            yield row, sample["image_id"], sample["image"][None]
