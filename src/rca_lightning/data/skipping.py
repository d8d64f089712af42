"""A LightningDataModule that takes note of images which were passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import lightning as L

from rca_lightning.data.bad_images import BadImages, OnBadImage
from rca_lightning.data.dataset import TaggedImages
from rca_lightning.errors import ArgumentError


class SkippingDataModule(L.LightningDataModule):
    """Takes `unread` out of every batch before a module sees it; see `BadImages`.

    Args:
        on_bad_image: "raise" or "skip".
        max_bad_images: see `BadImages`.

    Attributes:
        bad_images: those of the present stage.

    Raises:
        ArgumentError: a value is out of range.
    """

    def __init__(self, on_bad_image: OnBadImage, max_bad_images: float) -> None:
        super().__init__()
        if on_bad_image not in get_args(OnBadImage):
            raise ArgumentError("on_bad_image", on_bad_image, f"give one of {', '.join(get_args(OnBadImage))}")
        self.on_bad_image = on_bad_image
        self.bad_images = BadImages(max_bad_images)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Note the images that were passed over; a module sees the others only.

        Raises:
            DataError: there are more of them than `max_bad_images`.
        """
        if isinstance(batch, dict):
            self.bad_images.note(batch.pop("unread", ()))
        return batch

    def skip_of(self, split: str) -> str | None:
        """The split if its bad images are passed over; see `TaggedImages`."""
        return split if self.on_bad_image == "skip" else None

    def teardown(self, stage: str) -> None:
        """Say how many images were passed over, and where they are listed."""
        if self.trainer is None or self.trainer.is_global_zero:
            self.bad_images.summarise()

    def begin_bad_images(self, *opened: TaggedImages) -> None:
        """Start the list for the images that will be read; every process has to call it."""
        sizes = {images.skip_of: len(images) for images in opened if images.skip_of is not None}
        if not sizes:
            return
        if self.trainer is None:
            self.bad_images.begin(sizes, folder=None, first=True)
            return
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        self.bad_images.begin(sizes, folder=folder, first=self.trainer.is_global_zero)
        self.trainer.strategy.barrier("list of bad images")
