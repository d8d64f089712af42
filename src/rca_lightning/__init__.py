"""Regional Semantic Contrast and Aggregation: pixel masks from image tags, on PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rca_lightning.version import __version__

if TYPE_CHECKING:
    from rca_lightning.backbones.build import build_backbone
    from rca_lightning.callbacks.atlas import PrototypeAtlasCallback
    from rca_lightning.callbacks.attention_accumulation import AttentionAccumulation
    from rca_lightning.callbacks.feature_cache import FeatureCacheCallback
    from rca_lightning.callbacks.mask_writer import MaskWriter
    from rca_lightning.callbacks.panels import PanelCallback
    from rca_lightning.callbacks.pseudo_label_writer import PseudoLabelWriter
    from rca_lightning.callbacks.region_memory import RegionMemoryCallback
    from rca_lightning.callbacks.signals import SaveOnSignal
    from rca_lightning.checkpoints.writing import AtomicCheckpointIO
    from rca_lightning.clustering.cluster import cluster, kmeans
    from rca_lightning.data.datamodule import WSSSDataModule
    from rca_lightning.evaluation.label_iou import LabelIoU
    from rca_lightning.evaluation.seed_iou import SeedIoU
    from rca_lightning.modules.affinity_module import AffinityModule
    from rca_lightning.modules.frozen_segmentation_module import FrozenSegmentationModule
    from rca_lightning.modules.one_stage_module import OneStageModule
    from rca_lightning.modules.rca_module import RCAModule
    from rca_lightning.modules.segmentation_module import SegmentationModule
    from rca_lightning.prediction.loading import LoadedModel, load
    from rca_lightning.prediction.result import PredictedMask
    from rca_lightning.rca.aggregation import SemanticAggregation
    from rca_lightning.rca.contrast import RegionContrastLoss, region_contrast_loss
    from rca_lightning.rca.memory_bank import RegionMemory

# Imported when they are first used: the method alone needs no Lightning, and a worker process not the command line.
_MODULES = {
    "AffinityModule": "modules.affinity_module",
    "AtomicCheckpointIO": "checkpoints.writing",
    "AttentionAccumulation": "callbacks.attention_accumulation",
    "FeatureCacheCallback": "callbacks.feature_cache",
    "FrozenSegmentationModule": "modules.frozen_segmentation_module",
    "LabelIoU": "evaluation.label_iou",
    "LoadedModel": "prediction.loading",
    "MaskWriter": "callbacks.mask_writer",
    "OneStageModule": "modules.one_stage_module",
    "PanelCallback": "callbacks.panels",
    "PredictedMask": "prediction.result",
    "PrototypeAtlasCallback": "callbacks.atlas",
    "PseudoLabelWriter": "callbacks.pseudo_label_writer",
    "RCAModule": "modules.rca_module",
    "RegionContrastLoss": "rca.contrast",
    "RegionMemory": "rca.memory_bank",
    "RegionMemoryCallback": "callbacks.region_memory",
    "SaveOnSignal": "callbacks.signals",
    "SeedIoU": "evaluation.seed_iou",
    "SegmentationModule": "modules.segmentation_module",
    "SemanticAggregation": "rca.aggregation",
    "WSSSDataModule": "data.datamodule",
    "build_backbone": "backbones.build",
    "cluster": "clustering.cluster",
    "kmeans": "clustering.cluster",
    "load": "prediction.loading",
    "region_contrast_loss": "rca.contrast",
}

__all__ = [
    "AffinityModule",
    "AtomicCheckpointIO",
    "AttentionAccumulation",
    "FeatureCacheCallback",
    "FrozenSegmentationModule",
    "LabelIoU",
    "LoadedModel",
    "MaskWriter",
    "OneStageModule",
    "PanelCallback",
    "PredictedMask",
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
    "load",
    "region_contrast_loss",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value
    if name == "FailTogether":
        raise ImportError(
            "FailTogether is gone since 0.2; leave it out: torchrun, Lightning and srun --kill-on-bad-exit=1 end "
            "the other processes when one fails"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
