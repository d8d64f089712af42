"""Protocol of labels that were drawn from stored maps, from what `rca predict` has left beside the maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rca_lightning.arguments import check_arguments
from rca_lightning.evaluation.protocol import (
    TagsOnRecord,
    ThresholdSource,
    make_protocol,
    supervision_used,
    tag_threshold_used,
)
from rca_lightning.rca.tag_calibration import UNCALIBRATED_THRESHOLD


@check_arguments
def stored_protocol(
    predicted: Mapping[str, Any],
    *,
    split: str,
    ids: Sequence[str],
    tags: TagsOnRecord,
    threshold: ThresholdSource,
    background: Mapping[str, Any],
    refine: Sequence[str] = (),
    proposals: bool = False,
) -> dict[str, Any]:
    """Lists what a score of labels rests on; see `make_protocol`.

    Args:
        predicted: settings beside the maps, see `stored_settings`; what older versions did not write is not known.
        split: name of the split.
        ids: names of the scored images.
        tags: whose tags the maps were computed with.
        threshold: how what tells the background was chosen.
        background: how the background is told, see `PseudoLabelGenerator.describe`.
        refine: refinements in their order.
        proposals: whether labels were merged over regions from files of a proposer.
    """
    checkpoint = {"file": _text(predicted.get("checkpoint")), "sha256": _text(predicted.get("checkpoint_sha256"))}
    weights, calibrated = predicted.get("weights"), predicted.get("tags_calibrated")
    given = predicted.get("tag_threshold")
    tag_threshold = tag_threshold_used(
        tags,
        given=given if isinstance(given, (int, float)) else None,
        calibrated=calibrated is True,
        default=UNCALIBRATED_THRESHOLD,
    )
    return make_protocol(
        split=split,
        ids=ids,
        supervision=supervision_used(
            tags=tags,
            settings=predicted,
            training=_stored_supervision(predicted),
            saliency=background.get("background") == "saliency",
            proposals=proposals,
        ),
        settings=predicted,
        threshold=threshold,
        refine=refine,
        checkpoint=checkpoint if any(checkpoint.values()) else None,
        weights=weights if isinstance(weights, dict) else None,
        background=background,
        tag_threshold=None if given is None and calibrated is None else tag_threshold,
        map_kind=_text(predicted.get("map_kind")) or "unknown",
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _stored_supervision(predicted: Mapping[str, Any]) -> dict[str, bool] | None:
    """What the training of stored maps learned from; unknown without the settings of `rca predict`."""
    stored = predicted.get(
        "supervision", {"seed_dir": False, "masks": False} if "weights_digest" in predicted else None
    )
    known = isinstance(stored, dict) and all(isinstance(stored.get(name), bool) for name in ("seed_dir", "masks"))
    return stored if known else None
