"""Regional Semantic Contrast and Aggregation: pixel masks from image tags, on PyTorch Lightning."""

from rca_lightning.callbacks.atlas import PrototypeAtlasCallback
from rca_lightning.callbacks.attention import AttentionAccumulation
from rca_lightning.callbacks.fail_together import FailTogether
from rca_lightning.callbacks.masks import MaskWriter
from rca_lightning.callbacks.memory import RegionMemoryCallback
from rca_lightning.callbacks.panels import PanelCallback
from rca_lightning.callbacks.signals import SaveOnSignal
from rca_lightning.callbacks.writers import PseudoLabelWriter
from rca_lightning.checkpoints.atomic_io import AtomicCheckpointIO
from rca_lightning.data import WSSSDataModule
from rca_lightning.label_iou import LabelIoU
from rca_lightning.losses.contrast import RegionContrastLoss, region_contrast_loss
from rca_lightning.memory.bank import RegionMemory
from rca_lightning.memory.clustering import cluster, kmeans
from rca_lightning.metrics import SeedIoU
from rca_lightning.models.aggregation import SemanticAggregation
from rca_lightning.models.backbones import build_backbone
from rca_lightning.module import RCAModule
from rca_lightning.segmentation import SegmentationModule
from rca_lightning.version import __version__

__all__ = [
    "AtomicCheckpointIO",
    "AttentionAccumulation",
    "FailTogether",
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
