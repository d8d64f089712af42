"""Part of a run of `rca masks`, beside other processes that work on the other parts of the same photographs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rca_lightning.cli.fit_photographs import (
    Model,
    RunPhotographs,
    compute_features,
    kept_threshold,
    label_photographs,
)
from rca_lightning.cli.fit_segmenter import segment_photographs
from rca_lightning.cli.plan_masks import Choices, Plan, find_photographs
from rca_lightning.cli.run_folder import RunFolder
from rca_lightning.cli.steps import Steps
from rca_lightning.data.catalogue import Catalogue
from rca_lightning.data.near_duplicates import hash_photographs
from rca_lightning.io.listing import first_few

# Seconds a photograph that a step may take; see the whole run.
_EXPECTED = {"look": 0.005, "features": 1.2, "labels": 0.7, "untagged": 0.0}


def run_part(run: RunFolder, choices: Choices, model: Model) -> None:
    """Computes the features of a part of the photographs; or draws their labels, where the model is there.

    What it computes is what a run of all photographs would, to the bit, on machines of one kind. It fits nothing and
    removes nothing, and ends with a line that says what to run next.

    Args:
        run: the folder, opened with a part.
        choices: of the user.
        model: what is fitted, by the run without a part.
    """
    part = run.part
    assert part is not None
    run.begin_part()
    with Steps(dict.fromkeys(_EXPECTED, 0.0)) as steps:
        steps.begin("look")
        catalogue = find_photographs(run, choices, steps)
        rows = part.rows(len(catalogue.table))
        for name, seconds in _EXPECTED.items():
            steps.expect(name, seconds * len(rows))
        plan = Plan(run, catalogue, choices, model)
        data = RunPhotographs(run, catalogue)
        named = f"part {part.number} of {part.count}, {len(rows)} photographs"
        if len(rows) == 0:
            steps.end()
            print(f"{named}: nothing to do; there are fewer photographs than parts")
            return
        if not plan.is_carried_out:
            steps.skip("labels", "untagged")
            with run.output_errors():  # for the run without a part, which tells of near duplicates
                hash_photographs(Catalogue(catalogue.facts, catalogue.table.take(rows)).images, run.hashes,
                                 each=steps.update)  # fmt: skip
            unread = compute_features(run, data, model, steps)
            _tell_unread([image.image_id for image in unread])
            print(f"features of {named}, since {plan.why_not()}; next, when all parts have ended: rca masks "
                  "without --shard")  # fmt: skip
            return
        labels = run.predictions()
        if not all(labels.is_complete(image_id) for image_id in catalogue.table.take(rows).iterate_ids()):
            chosen = kept_threshold(run) if choices.threshold == "auto" else choices.threshold
            label_photographs(run, data, steps, threshold=chosen, refine=choices.refine)
            _tell_unread([image.image_id for image in data.bad_images.skipped])
        if choices.segmenter and plan.segmenter_is_fitted:
            records = catalogue.table.take(rows)
            drawn = (record.tags is None and labels.is_complete(record.image_id) for record in records)
            untagged = rows[np.fromiter(drawn, dtype=np.bool_, count=len(rows))]
            if len(untagged):
                segment_photographs(run, catalogue, untagged, steps)
        steps.end()
    makes = "report"
    if choices.segmenter and not plan.segmenter_is_fitted:
        makes = "segmenter"
    print(
        f"labels of {named}: {run.labels}; next, when all parts have ended: rca masks without --shard, for the {makes}"
    )


def _tell_unread(unread: Sequence[str]) -> None:
    if unread:
        print(f"{len(unread)} could not be read: {first_few(sorted(unread))}")
