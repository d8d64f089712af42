"""The prototype atlas: which regions of which photographs each prototype stands for."""

from rca_lightning.atlas.atlas import make_atlas
from rca_lightning.atlas.nearest import PrototypeRow, RememberedRegion, nearest_regions

__all__ = ["PrototypeRow", "RememberedRegion", "make_atlas", "nearest_regions"]
