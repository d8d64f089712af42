"""Regional Semantic Contrast and Aggregation: pixel masks from image tags, on PyTorch Lightning."""

from typing import NoReturn

from rca_lightning.backbones.build import build_backbone
from rca_lightning.callbacks.atlas import PrototypeAtlasCallback
from rca_lightning.callbacks.attention_accumulation import AttentionAccumulation
from rca_lightning.callbacks.mask_writer import MaskWriter
from rca_lightning.callbacks.panels import PanelCallback
from rca_lightning.callbacks.pseudo_label_writer import PseudoLabelWriter
from rca_lightning.callbacks.region_memory import RegionMemoryCallback
from rca_lightning.callbacks.signals import SaveOnSignal
from rca_lightning.checkpoints.writing import AtomicCheckpointIO
from rca_lightning.clustering.cluster import cluster, kmeans
from rca_lightning.data import WSSSDataModule
from rca_lightning.evaluation.label_iou import LabelIoU
from rca_lightning.evaluation.seed_iou import SeedIoU
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.modules.segmentation_module import SegmentationModule
from rca_lightning.rca.aggregation import SemanticAggregation
from rca_lightning.rca.contrast import RegionContrastLoss, region_contrast_loss
from rca_lightning.rca.memory_bank import RegionMemory
from rca_lightning.version import __version__

__all__ = [
    "AtomicCheckpointIO",
    "AttentionAccumulation",
    "LabelIoU",
    "MaskWriter",
    "PanelCallback",
    "PrototypeAtlasCallback",
    "PseudoLabelWriter",
    "RCAModule",
    "RegionContrastLoss",
    "RegionMemory",
    "RegionMemoryCallback",
    "SaveOnSignal",
    "SeedIoU",
    "SegmentationModule",
    "SemanticAggregation",
    "WSSSDataModule",
    "__version__",
    "build_backbone",
    "cluster",
    "kmeans",
    "region_contrast_loss",
]


def __getattr__(name: str) -> NoReturn:
    if name == "FailTogether":
        raise ImportError(
            "FailTogether is gone since 0.2; leave it out: torchrun, Lightning and srun --kill-on-bad-exit=1 end "
            "the other processes when one fails"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
