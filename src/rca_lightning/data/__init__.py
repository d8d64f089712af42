"""Loads VOC 2012, COCO, a folder of your own photographs and generated images as samples of one form."""

from rca_lightning.constants import IMAGENET_MEAN, IMAGENET_STD
from rca_lightning.data.classes import COCO_CLASSES, VOC_CLASSES
from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.data.sample import Batch, Sample, collate
from rca_lightning.data.sources import DatasetName

__all__ = [
    "COCO_CLASSES",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "VOC_CLASSES",
    "Batch",
    "DatasetName",
    "Sample",
    "WSSSDataModule",
    "collate",
]
