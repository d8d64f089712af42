"""A run of `rca masks`: its steps one after the other, and what it leaves in its folder."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from rca_lightning.atlas.atlas import AtlasClass
from rca_lightning.cli.draw_prototypes import draw_prototypes, expected_seconds
from rca_lightning.cli.fit_photographs import (
    Model,
    RunPhotographs,
    choose_threshold,
    fit_model,
    label_photographs,
    log_to_file,
)
from rca_lightning.cli.fit_segmenter import fit_segmenter, segment_photographs
from rca_lightning.cli.part_of_masks import run_part
from rca_lightning.cli.plan_masks import Choices, Plan, find_photographs
from rca_lightning.cli.run_folder import RunFolder, Settings
from rca_lightning.cli.steps import Steps
from rca_lightning.data.catalogue import Catalogue
from rca_lightning.data.near_duplicates import MOST_PAIRS, hash_photographs, near_duplicates
from rca_lightning.data.records import Record
from rca_lightning.data.tag_checks import TagStatistics
from rca_lightning.data.tagged_folder import tag_names
from rca_lightning.evaluation.comparison import images_file
from rca_lightning.evaluation.protocol import describe_file, tags_used
from rca_lightning.evaluation.report import Scores, in_words
from rca_lightning.io.listing import first_few
from rca_lightning.io.output_folder import stored_settings
from rca_lightning.io.progress import show_progress
from rca_lightning.prediction.stored_protocol import stored_protocol
from rca_lightning.pseudo_labels.summary import score_label_files
from rca_lightning.report.entries import ReportEntry
from rca_lightning.report.page import write_report
from rca_lightning.version import __version__

_log = logging.getLogger(__name__)

_NAMED_PAIRS = 5
_SPLIT = "all"

# Seconds a photograph that a step may take, until something is known: of a photograph of 500 x 375 pixels on two cores.
_EXPECTED = {"look": 0.005, "features": 1.2, "rounds": 0.1, "labels": 0.7, "prototypes": 0.0, "report": 0.02}
_SEGMENTER = {"boundaries": 2.5, "segmenter": 0.1}  # of the photographs with tags
_UNTAGGED = {"untagged": 2.5}  # of those without


def run(given: argparse.Namespace, command: list[str]) -> None:
    """Labels the photographs of a folder, or does the work of a part.

    Args:
        given: words of `rca masks`, checked.
        command: as the user has typed it.

    Raises:
        RCAError: for arguments, folders and files that cannot be used.
        SystemExit: when it is interrupted.
    """
    choices = Choices(
        given.photographs,
        given.tags,
        given.classes,
        given.masks,
        given.threshold,
        given.threshold_source,
        given.refine,
        given.refit,
        given.maps,
        given.segmenter,
    )
    model = Model(given.backbone, _weights(given.weights), given.stride_in, given.max_side, given.seed)
    run = RunFolder(given.out, given.shard)
    # Lightning alone would only note SIGTERM, and predict to the end.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with run.opened(), log_to_file(run.own / "log.txt"):
            if run.part is None:
                _run(run, choices, model, command)
            else:
                run_part(run, choices, model)
    except KeyboardInterrupt:
        _stopped(run)
    except SystemExit:
        # Lightning turns the interrupt into an exit of its own.
        if isinstance(sys.exc_info()[1].__context__, KeyboardInterrupt):  # type: ignore[union-attr]
            _stopped(run)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _stopped(run: RunFolder) -> NoReturn:
    print(f"rca: stopped; nothing is lost: the same command goes on in {run.out}", file=sys.stderr)
    raise SystemExit(130) from None


def _run(run: RunFolder, choices: Choices, model: Model, command: list[str]) -> None:
    names = [*_EXPECTED]
    if choices.segmenter:
        names[-1:-1] = [*_SEGMENTER, *_UNTAGGED]
    expected = dict.fromkeys(names, 0.0)
    with Steps(expected) as steps:
        steps.begin("look")
        folder = find_photographs(run, choices, steps)
        facts = folder.facts
        for name, seconds in _EXPECTED.items():
            steps.expect(name, seconds * facts.images)
        steps.expect("prototypes", expected_seconds(len(facts.class_names)))
        if choices.segmenter:
            for name, seconds in _SEGMENTER.items():
                steps.expect(name, seconds * facts.known)
            for name, seconds in _UNTAGGED.items():
                steps.expect(name, seconds * (facts.images - facts.known))
        lines, unread = _look(run, folder, steps)
        for line in lines:
            _log.warning("%s", line)
        plan = Plan(run, folder, choices, model)
        is_new = plan.carry_out(folder) or not plan.is_carried_out
        mask_dir = None if choices.masks is None else str(choices.masks.absolute())
        data = RunPhotographs(run, folder, mask_dir=mask_dir)
        if plan.fits:
            curves = fit_model(run, data, model, steps)
            run.remember("fit", run.state["fit"] | {"done": True, "curves": curves})
            unread |= {image.image_id: image.reason for image in data.bad_images.skipped}
        else:
            steps.skip("features", "rounds")
        run.remember("plan", plan.content)
        chosen = choices.threshold
        if chosen == "auto":
            chosen = choose_threshold(run, data, steps, crf="dense_crf" in choices.refine)
        if is_new and run.parts is not None:
            _hand_over(run, steps, "the model" if plan.fits else "the list of what is to be labelled")
            return
        labels = run.predictions()
        if any(not labels.is_complete(image_id) and image_id not in unread for image_id in folder.table.iterate_ids()):
            label_photographs(run, data, steps, threshold=chosen, refine=choices.refine)
            unread |= {image.image_id: image.reason for image in data.bad_images.skipped}
        else:
            data.setup("predict")
        records: Sequence[Record] = data.predict_records
        atlas = draw_prototypes(run, records, steps)
        if choices.segmenter and _segment(run, folder, model, steps):
            _hand_over(run, steps, "the segmenter")
            return
        steps.begin("report")
        if choices.maps:
            _give_maps(run, folder)
        predicted = stored_settings(run.maps)
        used = predicted.get("background_threshold", chosen)
        scores = None if choices.masks is None else _score(run, records, folder)
        content = {
            "command": command,
            "version": __version__,
            "settings": {
                **asdict(model),
                **choices.of_labels(),
                "background_threshold": used,
                "tags": facts.described,
                "segmenter": choices.segmenter,
            },
            "classes": list(facts.class_names),
            "images": facts.images,
            "tagged": facts.tagged,
            "seconds": _add_seconds(run, steps),
            "skipped": [{"image": image_id, "reason": reason} for image_id, reason in sorted(unread.items())],
            "warnings": lines,
            "scores": None,
            "curves": run.state["fit"].get("curves", {}),
        }
        protocol = partial(_protocol, run, records, choices, predicted)
        content["protocol"] = protocol([record.image_id for record in records if record.image_id not in unread])
        if scores is not None and scores.image_counts is not None:
            rests_on = protocol(scores.image_counts.ids)
            tags = rests_on["supervision"]["tags"]
            names = content["classes"]
            content["scores"] = scores.as_dict(split=_SPLIT, class_names=names, tags=tags, protocol=rests_on)
        with run.output_errors():
            _write_counts(images_file(run.out / "run.json"), scores)
        run.write_json(run.out / "run.json", content)
        page = _write_page(run, records, folder, content, unread, atlas, threshold=used)
        run.end_parts()
        steps.end()
    done = facts.images - len(unread)
    print(f"masks of {done} photographs: {run.labels}")
    if unread:
        print(f"{len(unread)} could not be read: {first_few(sorted(unread))}")
    if scores is not None:
        interval = in_words(content["scores"]["miou_interval"])
        print(f"mIoU with {choices.masks}: {100 * scores.miou:.1f}, {interval} ({scores.images} photographs)")
    print(f"to look at: {page}")
    if choices.segmenter:
        print(f"the segmenter: {run.segmenter}")
    print(f"the model: {run.checkpoint}; {run.work} lets the next run go on from here and may be deleted")


def _hand_over(run: RunFolder, steps: Steps, made: str) -> None:
    """Ends a run between parts: what comes next is for them."""
    _add_seconds(run, steps)
    steps.end()
    print(f"{made} is there; next, each of the {run.parts} parts: rca masks with --shard; or the same without, which "
          "does their work alone")  # fmt: skip


def _look(run: RunFolder, folder: Catalogue, steps: Steps) -> tuple[list[str], dict[str, str]]:
    """Warnings of tags and of photographs that are nearly the same; and which cannot be read, and why."""
    statistics = TagStatistics(folder.facts.class_names)
    for image_id, tags in folder.tags.items():
        statistics.add(image_id, tags)
    lines = statistics.warnings()
    with run.output_errors():
        across, down, unread = hash_photographs(
            folder.images, run.hashes, others=(run.work / "parts").glob(f"*/{run.hashes.name}"), each=steps.update
        )
    pairs = near_duplicates(across, down)
    if pairs:
        ids = folder.table.image_id
        named = ", ".join(f"{ids(first)} and {ids(second)}" for first, second in pairs[:_NAMED_PAIRS])
        number = f"{len(pairs)} pairs in all" if len(pairs) < MOST_PAIRS else f"{len(pairs)} pairs or more"
        more = f", ... ({number})" if len(pairs) > _NAMED_PAIRS else ""
        lines.append(f"nearly the same photographs: {named}{more}; keep one of each pair, or classes are learned twice")
    return lines, unread


def _segment(run: RunFolder, folder: Catalogue, model: Model, steps: Steps) -> bool:
    """Fits the segmenter where there is none of this model, and draws photographs without tags by it.

    Returns:
        Whether it ends with the fit, since there are parts that draw.
    """
    settings: Settings = run.state["segmenter"]
    labels = run.predictions()
    if settings["done"] and run.segmenter.is_file():
        steps.skip(*_SEGMENTER)
    else:
        learned = _rows(folder, lambda record: bool(record.tags) and labels.is_complete(record.image_id))
        fit_segmenter(run, folder, learned, model, steps)
        run.remember("segmenter", settings | {"done": True})
        if run.parts is not None and folder.facts.known < folder.facts.images:
            return True
    untagged = _rows(folder, lambda record: record.tags is None and labels.is_complete(record.image_id))
    if len(untagged):
        segment_photographs(run, folder, untagged, steps)
    else:
        steps.skip(*_UNTAGGED)
    return False


def _rows(folder: Catalogue, wanted: Callable[[Record], bool]) -> npt.NDArray[np.int64]:
    """Row numbers of some photographs."""
    return np.flatnonzero(np.fromiter(map(wanted, folder.table), dtype=np.bool_, count=len(folder.table)))


def _add_seconds(run: RunFolder, steps: Steps) -> dict[str, float]:
    """Seconds of each step in this run and those before it, which made what this one found."""
    total = dict(run.state.get("seconds") or {})
    for name, seconds in steps.seconds.items():
        total[name] = round(total.get(name, 0.0) + seconds, 2)
    run.remember("seconds", total)
    return total


def _give_maps(run: RunFolder, folder: Catalogue) -> None:
    """Puts the maps beside the labels, as links to the same files."""
    given = run.out / "maps"
    with run.output_errors():
        given.mkdir(exist_ok=True)
        for image_id in folder.table.iterate_ids():
            source, target = run.maps / f"{image_id}.npz", given / f"{image_id}.npz"
            if source.is_file() and not (target.is_file() and target.samefile(source)):
                target.unlink(missing_ok=True)
                target.hardlink_to(source)


def _score(run: RunFolder, records: Sequence[Record], folder: Catalogue) -> Scores | None:
    scores = score_label_files(run.labels, records, num_classes=len(folder.facts.class_names))
    if scores is None:
        _log.warning("masks: no photograph has a mask of its name there, so there is no score")
    return scores


def _protocol(
    run: RunFolder, records: Sequence[Record], choices: Choices, predicted: Mapping[str, Any], ids: Sequence[str]
) -> dict[str, Any]:
    """What labels of these photographs rest on."""
    chosen = set(ids)
    protocol = stored_protocol(
        predicted,
        split=_SPLIT,
        ids=ids,
        tags=tags_used("image", (record.tags is not None for record in records if record.image_id in chosen)),
        threshold=choices.threshold_source,
        background=predicted,
        refine=choices.refine,
    )
    protocol |= {"checkpoint": describe_file(run.checkpoint), "segmenter": None}
    if choices.segmenter:  # it draws photographs without tags, and predicts none
        protocol |= {"segmenter": describe_file(run.segmenter), "tag_threshold": None}
    return protocol


def _write_counts(path: Path, scores: Scores | None) -> None:
    """Writes the counts of single images, which `rca compare` pairs; those of a run before are no longer true."""
    path.unlink(missing_ok=True)
    if scores is not None and scores.image_counts is not None:
        scores.image_counts.save(path)


def _write_page(
    run: RunFolder,
    records: Sequence[Record],
    folder: Catalogue,
    content: Mapping[str, Any],
    unread: Mapping[str, str],
    atlas: Sequence[AtlasClass],
    *,
    threshold: float | None,
) -> Path:
    """Writes `report.html`."""

    def entries() -> Iterator[ReportEntry]:
        for record in show_progress(records, what="report", total=len(records)):
            label, maps = run.labels / f"{record.image_id}.png", run.maps / f"{record.image_id}.npz"
            yield ReportEntry(
                image_id=record.image_id,
                photograph=record.image,
                label=label if label.is_file() else None,
                maps=maps if maps.is_file() else None,
                tags=tag_names(record.tags or (), folder.facts.class_names),
                reason=unread.get(record.image_id),
            )

    with run.output_errors():
        classes = folder.facts.class_names
        return write_report(run.out, entries(), run=content, classes=classes, atlas=atlas, threshold=threshold)


def _weights(given: str) -> str:
    """A file by its whole path, so that the same command elsewhere is known as the same; a name as it is."""
    return str(Path(given).absolute()) if Path(given).is_file() else given
