"""Step of `rca masks` that draws the prototypes of its model with the regions they stand for."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from rca_lightning.atlas.atlas import AtlasClass, draw_atlas
from rca_lightning.atlas.remembered import memory_of
from rca_lightning.atlas.stored import load_atlas, save_atlas
from rca_lightning.checkpoints.reading import read_checkpoint
from rca_lightning.cli.fit_photographs import feature_cache, quiet_trainer
from rca_lightning.cli.run_folder import RunFolder
from rca_lightning.cli.steps import Steps
from rca_lightning.data.dataset import TaggedImages
from rca_lightning.data.records import Record, RecordTable
from rca_lightning.errors import ArgumentError, DataError
from rca_lightning.modules.rca_module import RCAModule

_log = logging.getLogger(__name__)

REGIONS = 3
"""Crops a prototype."""

_MOST_PROTOTYPES = 6  # that are drawn of a class
_ALL_PROTOTYPES = 200  # of all classes, but at least one of each: bounds the size of the page
_SECONDS = 0.07  # a crop, about


def expected_seconds(num_classes: int) -> float:
    """How long the step may take, whatever the number of photographs."""
    return _SECONDS * REGIONS * num_classes * _prototypes(num_classes)


def draw_prototypes(run: RunFolder, records: Sequence[Record], steps: Steps) -> list[AtlasClass]:
    """Draws the largest prototypes of each class, or takes those that an earlier run has drawn of the same model.

    Outlines come from the features in the folder; a photograph without any is computed again.

    Args:
        run: the folder, with `rca.ckpt`.
        records: the photographs; the model may have been fitted to fewer or to others.
        steps: with the step "prototypes".

    Returns:
        The classes; none where the model has no regions, or none of its photographs is there.
    """
    path, key = run.work / "atlas.npz", str(run.checkpoint.stat().st_mtime_ns)
    stored = load_atlas(path, key=key)
    if stored is not None:
        steps.skip("prototypes")
        return stored
    steps.begin("prototypes")
    try:
        memory = memory_of(read_checkpoint(run.checkpoint), run.checkpoint)
        module = RCAModule.load_from_checkpoint(run.checkpoint, map_location="cpu")
        module.to(quiet_trainer(run, []).strategy.root_device)
        features = feature_cache(run)
        table = RecordTable.of(records)
        tagged = table.take(table.tag_counts > 0)
        classes = draw_atlas(
            module,
            memory,
            TaggedImages(tagged, num_classes=int(module.hparams["num_classes"])),
            regions=REGIONS,
            prototypes=_prototypes(int(module.hparams["num_classes"])),
            cache=features.open(module),
            each=steps.update,
        )
    except (ArgumentError, DataError) as error:
        _log.info("the report shows no prototypes: %s", error)
        return []
    with run.output_errors():
        save_atlas(path, classes, key=key)
    return classes


def _prototypes(num_classes: int) -> int:
    return max(1, min(_MOST_PROTOTYPES, _ALL_PROTOTYPES // max(1, num_classes)))
