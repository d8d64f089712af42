"""The LightningDataModule of every data set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Container, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader

from rca_lightning.arguments import check_arguments
from rca_lightning.checkpoints.resuming import is_within_epoch, seen_batches, silence_loader_warning
from rca_lightning.data.bad_images import BadImages, OnBadImage
from rca_lightning.data.crops import CachedCrops
from rca_lightning.data.dataset import CachedFeatures, TaggedImages
from rca_lightning.data.features import FeatureCache
from rca_lightning.data.loaders import evaluation_loader, run_seed, training_loader
from rca_lightning.data.records import Record, RecordTable, Source
from rca_lightning.data.sample import Sample, SkippedImage
from rca_lightning.data.seed_maps import SeedMaps, SeedRounds
from rca_lightning.data.sources import (
    DatasetName,
    SourceOptions,
    check_split,
    evaluation_records,
    training_records,
)
from rca_lightning.data.transforms import TrainAugmentation
from rca_lightning.errors import ArgumentError, DataError, refuse_other_classes
from rca_lightning.io.listing import first_few, locate
from rca_lightning.io.output_folder import stored_classes

_log = logging.getLogger(__name__)
_info = rank_zero_only(_log.info)
_warn = rank_zero_only(_log.warning)


class WSSSDataModule(L.LightningDataModule):
    """Images with tags for training, with masks for scoring, all in one form (see `Sample` and `Batch`).

    Training gives random crops of one size; validation, test and prediction give whole photographs in their own
    size. What can be wrong with folders, lists and tags is reported by `setup`.
    With the same `seed_everything` the order and the augmentation of an epoch are the same whatever
    `num_workers` is, and also after resuming.

    A relative path in any argument but `root` is looked up in `root` first, then in the working folder.

    Args:
        dataset: "voc2012" (VOCdevkit layout), "coco2014" or "coco2017" (instances JSON), "folder" (a folder of
            your own), or "synthetic" (simple shapes, generated once).
        root: folder of the data set. For "voc2012" the one with JPEGImages or the VOCdevkit above it, for COCO
            the one with annotations. May be left out for "synthetic": $RCA_CACHE or ~/.cache/rca_lightning.
        train_split: split to train on.
        eval_split: split of validation and test. It needs masks for `validate` and `test`.
        predict_split: split of prediction; default is `eval_split`. Tags that are unknown there are all -1.
        split_files: split name to a text file with one image id a line. Needed for "trainaug" of VOC, whose list
            is no part of VOC. Of COCO, a name begins with the part it belongs to, `train` or `val`. In a "folder"
            without any, "train", "val" and "test" are all images; the split "all" always is.
        tags_file: image tags: CSV with the header `image,tags` and tags separated by `;`, or text lines
            `id tag tag`. VOC: wins over Annotations/*.xml, default image_labels.txt for images without XML.
            "folder": default tags.csv or tags.txt in root; tags of images that it does not list are unknown.
        class_file: "folder" only: one foreground class name a line, in the order of the mask values 1, 2, ...;
            default classes.txt in root. Background and void are no lines of it.
        image_dir: folder of the images. "folder": default images in root, else root itself. COCO: instead of the
            official folder. Not for VOC.
        mask_dir: folder of index masks (PNG: 0 background, 1..L classes, 255 void), such as SegmentationClassAug;
            default is the data set's own: SegmentationClass, drawn from the annotations, or masks in root.
        train_mask_dir: folder of index masks for training only, such as pseudo labels; default is `mask_dir`.
        train_masks: whether training batches hold masks where there are some. RCA itself trains without;
            false saves their decoding.
        saliency_dir: folder of grey saliency maps named like the images, such as Saliency.
        seed_dir: folder of maps or label images of any other model, named like the images, that a fit of `RCAModule`
            behind a frozen backbone cuts its first regions from, in place of the CAM; see `SeedMaps` for their forms.
            Where it has none, the CAM stands in. Only `fit` reads it.
        seed_rounds: "first": later rounds cut regions from the attention, as without seeds; "all": all rounds cut them
            from the seeds, for seeds that are better than the maps of a fit without (experiments/voc2012_mini).
        annotation_file: COCO only: an instances JSON of yours for every split. The classes are its categories in the
            order of their ids. Tags need `image_id` and `category_id` only; to draw masks, images must have `height`
            and `width` and annotations `segmentation`.
        batch_size: images of a training batch, for each device.
        eval_batch_size: images of a batch of validation, test and prediction, for each device; only photographs of one
            size share a batch, so nothing is padded and maps do not depend on it.
        num_workers: processes that load images, for each device; 0 loads in the main process.
        crop_size: side of the training crops in pixels.
        scale: smallest and largest long side of the resized photograph before cropping, in multiples of crop_size.
        flip: whether to flip half of the training images left to right.
        color_jitter: strength of the colour jitter in training, 0 (none) to 1.
        shuffle: whether to shuffle the training images.
        reduced_decoding: whether to decode a JPEG in training at a half, a quarter or an eighth of its size where
            `scale` makes it as small anyway: faster for large photographs, and crops differ a little.
        cache_decoded: room in MiB for decoded training photographs and their masks, in each loading process for
            itself; 0 keeps none. Each keeps the first it reads until the room is taken, for all epochs. Crops do not
            depend on it. It pays where nearly all images fit in: 3 bytes a pixel, 1 more for a mask.
        on_bad_image: "raise", or "skip" images that cannot be read, nor their masks and saliency maps: to train on the
            next one instead, and to leave them out of scores and predictions. `bad_images.csv` in the folder of the
            run lists each once, for all processes and epochs: split, image, reason.
        max_bad_images: with "skip", share of a split, in [0, 1], above which the run ends; one may be bad unless 0.
        pin_memory: whether to load into page-locked memory; default is whether a CUDA device is there.
        synthetic_seed: seed of the generated images.
        synthetic_train_images: how many images to generate for the split "train".
        synthetic_val_images: how many images to generate for the split "val".
        synthetic_image_size: side of the generated images in pixels.

    Raises:
        ArgumentError: a value is out of range.
        DatasetNotFoundError: `class_file` of a "folder" is missing.

    Example:
        >>> data = WSSSDataModule("voc2012", "VOCdevkit", crop_size=320)
        >>> data.num_classes, data.class_names[:2]
        (20, ['aeroplane', 'bicycle'])
    """

    @check_arguments
    def __init__(
        self,
        dataset: DatasetName,
        root: str | Path | None = None,
        *,
        train_split: str = "train",
        eval_split: str = "val",
        predict_split: str | None = None,
        split_files: dict[str, str] | None = None,
        tags_file: str | None = None,
        class_file: str | None = None,
        image_dir: str | None = None,
        mask_dir: str | None = None,
        train_mask_dir: str | None = None,
        train_masks: bool = True,
        saliency_dir: str | None = None,
        seed_dir: str | None = None,
        seed_rounds: SeedRounds = "first",
        annotation_file: str | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 1,
        num_workers: int = 2,
        crop_size: int = 256,
        scale: tuple[float, float] = (1.0, 2.0),
        flip: bool = True,
        color_jitter: float = 0.3,
        shuffle: bool = True,
        reduced_decoding: bool = False,
        cache_decoded: float = 0,
        on_bad_image: OnBadImage = "raise",
        max_bad_images: float = 0.01,
        pin_memory: bool | None = None,
        synthetic_seed: int = 0,
        synthetic_train_images: int = 64,
        synthetic_val_images: int = 16,
        synthetic_image_size: int = 128,
    ) -> None:
        super().__init__()
        self.on_bad_image = on_bad_image
        self.bad_images = BadImages(max_bad_images)
        self.options = SourceOptions(
            dataset=dataset,
            root=root,
            splits=(train_split, eval_split, eval_split if predict_split is None else predict_split),
            split_files=split_files or {},
            tags_file=tags_file,
            class_file=class_file,
            image_dir=image_dir,
            annotation_file=annotation_file,
            synthetic_seed=synthetic_seed,
            synthetic_train_images=synthetic_train_images,
            synthetic_val_images=synthetic_val_images,
            synthetic_image_size=synthetic_image_size,
        )
        self._class_names = self.options.class_names()
        self.train_split = train_split
        self.eval_split = eval_split
        self.predict_split = eval_split if predict_split is None else predict_split
        self.mask_dir = mask_dir
        self.train_mask_dir = mask_dir if train_mask_dir is None else train_mask_dir
        self.train_masks = train_masks
        self.saliency_dir = saliency_dir
        self.seed_dir = seed_dir
        self.seed_rounds = seed_rounds
        self.seed_maps: SeedMaps | None = None  # after `open_seeds`
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise ArgumentError(name, value, "must be at least 1")
        if num_workers < 0:
            raise ArgumentError("num_workers", num_workers, "must be 0 (load in the main process) or more")
        if not 0 <= cache_decoded < float("inf"):
            raise ArgumentError("cache_decoded", cache_decoded, "must be 0 (keep nothing) or a number of MiB")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.augmentation = TrainAugmentation(crop_size=crop_size, scale=scale, flip=flip, color_jitter=color_jitter)
        self.shuffle = shuffle
        self.reduced_decoding = reduced_decoding
        self.cache_decoded = cache_decoded
        self.pin_memory = pin_memory
        self.features: FeatureCache | None = None
        self.crop_cells: int | None = None  # side of the crops of features that are trained on
        self.masks_of_features = False  # whether whole photographs are trained on with their masks
        # Asked when a loader of photographs is made: the cache, and whether it is read with the mirror images.
        self.open_features: Callable[[], FeatureCache] | None = None
        self._train: TaggedImages | None = None
        self._eval: TaggedImages | None = None
        self._predict: TaggedImages | None = None
        self._predicted: Container[str] = frozenset()
        self._without_features: frozenset[str] = frozenset()
        self.skips_validation = False  # in fit: no image of eval_split has a mask

    @property
    def num_classes(self) -> int:
        """L, the foreground classes."""
        return len(self._class_names)

    @property
    def class_names(self) -> list[str]:
        """The L foreground class names; index c is mask value c + 1."""
        return list(self._class_names)

    @property
    def predict_records(self) -> Sequence[Record]:
        """What is known of the images of `predict_split`, complete or not; after `setup("predict")`."""
        return _set_up(self._predict, "predict").records

    def predict_coco_ids(self) -> tuple[tuple[int, ...], dict[str, int | str]] | None:
        """Ids for COCO results of `predict_split`: of each class the category, and of each image by its name.

        They are read from the annotations; None for a data set of another form.
        """
        return self.options.coco_ids(self.predict_split)

    def open_source(self) -> Source:
        """Open the data set; a subclass may serve records that it has found in another way."""
        return self.options.open()

    def prepare_data(self) -> None:
        """Generate the synthetic images if they are not there yet; other data sets are never downloaded."""
        self.options.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Find the images of a stage and check all that file names, lists and tags tell.

        Args:
            stage: "fit", "validate", "test" or "predict"; None prepares them all. Masks for every image are
                required by "validate" and "test" only; the others log how many are missing.

        Raises:
            ArgumentError: an argument does not fit the data set.
            DatasetNotFoundError: a folder or file is missing.
            DataError: a list names absent images, tags are unknown, masks are missing or of other classes, a split is
                empty.
        """
        self.open_features = None  # of another module
        self.seed_maps = None
        source = self.open_source()
        if (now := self.options.class_names()) != self._class_names:
            remedy = f"its classes are now {first_few(now)}, and were others before; make the data module anew"
            raise ArgumentError("root", str(self.options.folder), remedy)
        self._check_label_classes(source)
        opened = []
        if stage in {"fit", None}:
            self.features = None  # of a training before
            check_split(source, "train_split", self.train_split)
            self._train = self._training_images(source)
            opened.append(self._train)
        # A data set without a validation part can be trained on with Trainer(limit_val_batches=0).
        validates = self.trainer is None or self.trainer.limit_val_batches != 0
        if stage in {"validate", "test", None} or (stage == "fit" and validates):
            check_split(source, "eval_split", self.eval_split)
            need_masks = stage in {"validate", "test"}
            self._eval = self._evaluation_images(source, self.eval_split, need_masks=need_masks, need_tags=True)
            opened.append(self._eval)
        self._note_skipped_validation(self._eval if stage == "fit" and validates else None)
        if stage in {"predict", None}:
            check_split(source, "predict_split", self.predict_split)
            self._predict = self._evaluation_images(source, self.predict_split, need_masks=False, need_tags=False)
            self._predicted = frozenset()  # of a prediction before
            opened.append(self._predict)
        self._begin_bad_images(opened)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Take the skipped images out of a batch and note them.

        Raises:
            DataError: there are more of them than `max_bad_images`.
        """
        if isinstance(batch, dict):
            self.bad_images.note(batch.pop("unread", ()))
        return batch

    def teardown(self, stage: str) -> None:
        """Log how many images were skipped, and where they are listed."""
        if self.trainer is None or self.trainer.is_global_zero:
            self.bad_images.summarise()

    def train_dataloader(self) -> DataLoader[Sample]:
        """Return shuffled batches of crops; the last batch is dropped if it is not full, unless it is the only one."""
        reloads = self.trainer is not None and self.trainer.reload_dataloaders_every_n_epochs > 0  # type: ignore[attr-defined]
        if self.cache_decoded and self.num_workers and reloads:
            _log.warning("cache_decoded: the trainer starts new loading processes for its epochs, which keep nothing")
        silence_loader_warning()
        images = _set_up(self._train, "fit")
        return training_loader(
            images if self.features is None else self._training_features(),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            shuffle=self.shuffle,
            pin_memory=self.pin_memory,
            seen_batches=partial(seen_batches, self.trainer),
        )

    def evaluation_dataloader(self) -> DataLoader[Sample]:
        """Return the photographs of `eval_split`, with masks or without, each in exactly one process."""
        return self._evaluation_loader(_set_up(self._eval, "validate"))

    @property
    def num_train_images(self) -> int:
        """Images to train on; 0 before they are set up."""
        return 0 if self._train is None else len(self._train)

    def keep_features(
        self,
        cache: FeatureCache,
        *,
        splits: Sequence[str] = (),
        crop_cells: int | None = None,
        with_masks: bool = False,
        to_validate: bool = True,
    ) -> list[TaggedImages]:
        """Serve features from a cache: in place of crops in training, and beside the photographs in validation.

        Args:
            cache: it.
            splits: further splits that need features, to be scored later. The split that is trained on stands for
                those of its photographs too that are left out of training, for want of tags.
            crop_cells: side of the crops of features that are trained on, in cells of the coarsest level; None: whole
                photographs are.
            with_masks: whether whole photographs are trained on with their masks.
            to_validate: whether validation reads features.

        Returns:
            The photographs that need features, whole: those to train on, then those that `fit` validates on, if any,
            then those of `splits`.

        Raises:
            ArgumentError: a split that does not exist.
        """
        self.features = cache
        self.crop_cells = crop_cells
        self.masks_of_features = with_masks
        self._without_features = frozenset()
        trained_on = _set_up(self._train, "fit").whole()
        trained_on.scored = self.train_split in splits
        validated = []
        if to_validate and self._eval is not None and self._validates_in_fit():
            self._eval.features, self._eval.scored = cache, True
            validated = [self._eval]
        source, others = self.open_source(), []
        for split in dict.fromkeys(splits):
            check_split(source, "splits", split)
            if validated and split == self.eval_split:
                continue
            records, name = RecordTable.of(source.records(split, with_masks=False)), split
            if split == self.train_split:
                # None of them is a bad image of the training.
                records, name = records.take(records.tag_counts <= 0), f"{split}, without tags"
            if len(records):
                others.append(self._images(records, name))
                others[-1].scored = True
        return [trained_on, *validated, *others]

    def open_seeds(self) -> None:
        """Find the maps of `seed_dir`, if there is one, and check all of them; after `setup("fit")`.

        Raises:
            DatasetNotFoundError: the folder is missing.
            DataError: no photograph has a file, or the first file that cannot be used.
        """
        if self.seed_dir is None:
            return
        images = _set_up(self._train, "fit")
        self.seed_maps = SeedMaps(
            locate(self.seed_dir, self.open_source().root), images.records, num_classes=self.num_classes
        )
        self.seed_maps.check(skip=images.skip_of is not None)

    def _validates_in_fit(self) -> bool:
        """Whether an epoch of `fit` ends in a validation."""
        trainer = self.trainer
        if self.skips_validation or trainer is None or trainer.limit_val_batches == 0:
            return False
        every, last = trainer.check_val_every_n_epoch, trainer.max_epochs
        return every is None or last is None or last < 0 or every <= last

    def leave_out_of_training(self, unread: Sequence[SkippedImage]) -> None:
        """Note photographs that have no features, since they could not be read, and train without them.

        Raises:
            DataError: they are more than `max_bad_images`, or all.
        """
        opened = {images.skip_of for images in (self._train, self._eval) if images is not None}
        self.bad_images.note([image for image in unread if image.split in opened])
        self._without_features = frozenset(image.image_id for image in unread if image.split == self.train_split)
        if len(self.cached_features()) == 0:
            raise DataError(f"split {self.train_split!r}: none of its {self.num_train_images} images can be read")

    def cached_features(self) -> CachedFeatures:
        """The features of the photographs to train on; after `keep_features`."""
        images = _set_up(self._train, "fit")
        if self.features is None:
            raise ArgumentError("features", None, "call keep_features before")
        kept = images.without(self._without_features, at_least=0)
        return CachedFeatures(kept, self.features, with_masks=self.masks_of_features)

    def _training_features(self) -> CachedFeatures | CachedCrops:
        whole = self.cached_features()
        if self.crop_cells is None:
            return whole
        options: dict[str, Any] = {"seed": run_seed(), "flip": self.augmentation.flip}
        return CachedCrops(whole.images, whole.cache, crop_cells=self.crop_cells, **options)

    def val_dataloader(self) -> DataLoader[Sample] | list[DataLoader[Sample]]:
        """Return `evaluation_dataloader`; no loader in a `fit` that has nothing to score, which skips validation.

        None either where training was set up without validation: Lightning's finders of a learning rate and of a batch
        size validate all the same.
        """
        not_set_up = self._eval is None and self._train is not None and self.trainer is not None
        return [] if self.skips_validation or not_set_up else self.evaluation_dataloader()

    def test_dataloader(self) -> DataLoader[Sample]:
        """Return `evaluation_dataloader`."""
        return self.evaluation_dataloader()

    def predict_dataloader(self) -> DataLoader[Sample]:
        """Return the photographs of `predict_split`, each in exactly one process."""
        at_least = self.trainer.world_size if self.trainer else 1
        images = self.photographs_to_predict(at_least=at_least)
        if left_out := len(_set_up(self._predict, "predict")) - len(images):
            _info("split %r: %d images are complete and are left out", self.predict_split, left_out)
        return self._evaluation_loader(images)

    def photographs_to_predict(self, *, at_least: int = 0) -> TaggedImages:
        """The photographs of `predict_split` that are not left out; some of these stay if fewer were left."""
        return _set_up(self._predict, "predict").without(self._predicted, at_least=at_least)

    def leave_out_of_prediction(self, image_ids: Container[str]) -> None:
        """Leave images out of the next prediction, such as those whose results are there already."""
        self._predicted = image_ids

    def unread_of_prediction(self, image_ids: Collection[str]) -> list[SkippedImage]:
        """Those of the named images that no prediction can read; see `TaggedImages.unread`."""
        return _set_up(self._predict, "predict").unread(image_ids)

    def _note_skipped_validation(self, images: TaggedImages | None) -> None:
        """Skip the validation of a `fit` whose images have no mask."""
        self.skips_validation = False
        if images is not None and not images.records.has_mask.any():
            count = len(images)
            _warn("split %r: %d of %d images have no mask, so validation is skipped", self.eval_split, count, count)
            self.skips_validation = self.trainer is not None

    def _check_label_classes(self, source: Source) -> None:
        """Compare the classes of masks that `rca predict` or `rca labels` has written."""
        folders = {"mask_dir": self.mask_dir, "train_mask_dir": self.train_mask_dir, "seed_dir": self.seed_dir}
        for name, value in folders.items():
            if value is not None:
                folder = locate(value, source.root)
                refuse_other_classes(
                    stored_classes(folder),
                    self.class_names,
                    where=f"{name}={str(folder)!r}",
                    here="the data set",
                    remedy="give labels that were made with the classes of this data set, in their order",
                )

    def state_dict(self) -> dict[str, Any]:
        """What decides which images the batches of an epoch have, and whether some of them were trained on."""
        return {"order": self._order(), "within_epoch": is_within_epoch(self.trainer)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on within an epoch with other batches.

        Raises:
            ArgumentError: for the first value that is another.
        """
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING or not state_dict.get("within_epoch"):
            return
        before = state_dict.get("order", {})
        for name, value in self._order().items():
            if before.get(name, value) != value:
                cause = f"the checkpoint was saved within an epoch, with {before[name]!r}"
                remedy = f"images would come twice or never; give {before[name]!r}, or a checkpoint of an epoch's end"
                raise ArgumentError(name, value, f"{cause}: {remedy}")

    def _order(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "devices": self.trainer.world_size if self.trainer else 1,
            "seed_everything": run_seed(),
            "shuffle": self.shuffle,
            "number of training images": None if self._train is None else len(self._train),
        }

    def _begin_bad_images(self, opened: list[TaggedImages]) -> None:
        sizes = {images.skip_of: len(images) for images in opened if images.skip_of is not None}
        if not sizes:
            return
        if self.trainer is None:
            self.bad_images.begin(sizes, folder=None, first=True)
            return
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        self.bad_images.begin(sizes, folder=folder, first=self.trainer.is_global_zero)
        self.trainer.strategy.barrier("list of bad images")

    def _training_images(self, source: Source) -> TaggedImages:
        records = training_records(
            source,
            self.train_split,
            with_masks=self.train_masks,
            mask_dir=self.train_mask_dir,
            saliency_dir=self.saliency_dir,
        )
        return self._images(
            records,
            self.train_split,
            augmentation=self.augmentation,
            seed=run_seed(),
            reduced_decoding=self.reduced_decoding,
            cache_mib=self.cache_decoded,
        )

    def _evaluation_images(self, source: Source, split: str, *, need_masks: bool, need_tags: bool) -> TaggedImages:
        folders = {"mask_dir": self.mask_dir, "saliency_dir": self.saliency_dir}
        records = evaluation_records(source, split, **folders, need_masks=need_masks, need_tags=need_tags)
        return self._images(records, split)

    def _images(self, records: Sequence[Record], split: str, **options: Any) -> TaggedImages:
        skip_of = split if self.on_bad_image == "skip" else None
        return TaggedImages(records, num_classes=self.num_classes, skip_of=skip_of, **options)

    def _evaluation_loader(self, images: TaggedImages) -> DataLoader[Sample]:
        if self.open_features is not None:
            cache = self.open_features()
            images.features, images.scored = cache, True
            stored = sum(not cache.missing(record, scored=True) for record in images.records)
            if stored:
                _info("features: those of %d of %d photographs are read from %s", stored, len(images), cache.folder)
        workers: Any = {"num_workers": self.num_workers, "pin_memory": self.pin_memory}
        return evaluation_loader(images, batch_size=self.eval_batch_size, **workers)


def _set_up(dataset: TaggedImages | None, stage: str) -> TaggedImages:
    if dataset is None:
        raise ArgumentError("stage", None, f"call setup({stage!r}) before asking for its loader")
    return dataset
