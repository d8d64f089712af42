"""The command `rca masks`: from a folder of tagged photographs to a mask of each."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, get_args

import numpy as np
import numpy.typing as npt

from rca_lightning.atlas.atlas import AtlasClass
from rca_lightning.backbones.resnet import StrideIn
from rca_lightning.cli.draw_prototypes import draw_prototypes, expected_seconds
from rca_lightning.cli.fit_photographs import Model, RunPhotographs, fit_model, label_photographs, log_to_file
from rca_lightning.cli.fit_segmenter import fit_segmenter, segment_photographs
from rca_lightning.cli.part_of_masks import run_part
from rca_lightning.cli.plan_masks import Choices, Plan, find_photographs
from rca_lightning.cli.run_folder import Part, RunFolder, Settings
from rca_lightning.cli.steps import Steps
from rca_lightning.data.catalogue import Catalogue
from rca_lightning.data.near_duplicates import MOST_PAIRS, hash_photographs, near_duplicates
from rca_lightning.data.records import Record
from rca_lightning.data.tag_checks import TagStatistics
from rca_lightning.data.tagged_folder import tag_names
from rca_lightning.errors import ArgumentError, require_extra
from rca_lightning.evaluation.report import Scores
from rca_lightning.io.listing import first_few, require_folder
from rca_lightning.pseudo_labels.refinement import RefinementName
from rca_lightning.pseudo_labels.summary import score_label_files
from rca_lightning.report.entries import ReportEntry
from rca_lightning.report.page import write_report
from rca_lightning.version import __version__

_log = logging.getLogger(__name__)

_CRF_THRESHOLD = 0.4  # the best one of VOC photographs before a dense CRF; without, the default of the library
_NAMED_PAIRS = 5
_REFINE = ("auto", "dense_crf", "pamr", "none")

# Seconds a photograph that a step may take, until something is known: of a photograph of 500 x 375 pixels on two cores.
_EXPECTED = {"look": 0.005, "features": 1.2, "rounds": 0.1, "labels": 0.7, "prototypes": 0.0, "report": 0.02}
_SEGMENTER = {"boundaries": 2.5, "segmenter": 0.1}  # of the photographs with tags
_UNTAGGED = {"untagged": 2.5}  # of those without


def main(words: Sequence[str]) -> None:
    """Label the photographs of a folder.

    Args:
        words: what stands after `rca masks`.

    Raises:
        RCAError: for arguments, folders and files that cannot be used.
        SystemExit: for words that cannot be parsed, after `--help`, and when it is interrupted.
    """
    given = _parser().parse_args(list(words))
    choices = _choices(given)
    model = Model(given.backbone, _weights(given.weights), given.stride_in, given.max_side, given.seed)
    run = RunFolder(given.out, None if given.shard is None else Part.parse(given.shard))
    try:
        with run.opened(), log_to_file(run.own / "log.txt"):
            if run.part is None:
                _run(run, choices, model, ["rca", "masks", *words])
            else:
                run_part(run, choices, model)
    except KeyboardInterrupt:
        _stopped(run)
    except SystemExit:
        # Lightning turns the interrupt into an exit of its own.
        if isinstance(sys.exc_info()[1].__context__, KeyboardInterrupt):  # type: ignore[union-attr]
            _stopped(run)
        raise


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
        if is_new and run.parts is not None:
            _hand_over(run, steps, "the model" if plan.fits else "the list of what is to be labelled")
            return
        labels = run.predictions()
        if any(not labels.is_complete(image_id) and image_id not in unread for image_id in folder.table.iterate_ids()):
            label_photographs(run, data, steps, threshold=choices.threshold, refine=choices.refine)
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
        scores = None if choices.masks is None else _score(run, records, folder)
        content = {
            "command": command,
            "version": __version__,
            "settings": {
                **asdict(model),
                **choices.of_labels(),
                "tags": facts.described,
                "segmenter": choices.segmenter,
            },
            "classes": list(facts.class_names),
            "images": facts.images,
            "tagged": facts.tagged,
            "seconds": _add_seconds(run, steps),
            "skipped": [{"image": image_id, "reason": reason} for image_id, reason in sorted(unread.items())],
            "warnings": lines,
            "scores": None if scores is None else _scores_content(scores, folder),
            "curves": run.state["fit"].get("curves", {}),
        }
        run.write_json(run.out / "run.json", content)
        page = _write_page(run, records, folder, content, unread, atlas, threshold=choices.threshold)
        run.end_parts()
        steps.end()
    done = facts.images - len(unread)
    print(f"masks of {done} photographs: {run.labels}")
    if unread:
        print(f"{len(unread)} could not be read: {first_few(sorted(unread))}")
    if scores is not None:
        print(f"mIoU with {choices.masks}: {100 * scores.miou:.1f} ({scores.images} photographs)")
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


def _scores_content(scores: Scores, folder: Catalogue) -> dict[str, Any]:
    values = zip(["background", *folder.facts.class_names], scores.iou.tolist(), strict=True)
    return {"miou": scores.miou, "iou": {name: value for name, value in values if value == value}}  # without NaN


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
        for record in records:
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


def _choices(given: argparse.Namespace) -> Choices:
    require_folder(given.photographs, what="photographs", remedy="give the folder that holds your photographs")
    if given.masks is not None:
        require_folder(given.masks, what="masks", remedy="give the folder of index masks to score with")
    if given.out.resolve() == given.photographs.resolve():
        raise ArgumentError("out", str(given.out), "these are the photographs; give another folder for the masks")
    has_crf = importlib.util.find_spec("pydensecrf") is not None
    refine: tuple[RefinementName, ...] = ("dense_crf",) if has_crf else ("pamr",)
    if given.refine != "auto":
        refine = () if given.refine == "none" else (given.refine,)
    if refine == ("dense_crf",):
        require_extra("pydensecrf.densecrf", extra="crf", needed_for="--refine dense_crf")
    threshold = given.threshold
    if threshold is None and refine == ("dense_crf",):
        threshold = _CRF_THRESHOLD
    if threshold is not None and not 0 <= threshold <= 1:
        raise ArgumentError("threshold", threshold, "give a number in [0, 1]")
    if given.max_side < 64:
        raise ArgumentError("max_side", given.max_side, "give at least 64 pixels")
    return Choices(
        given.photographs,
        given.tags,
        given.classes,
        given.masks,
        threshold,
        refine,
        given.refit,
        given.maps,
        given.segmenter,
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"rca: {message}\nSee: rca masks --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="rca masks",
        usage="rca masks PHOTOGRAPHS --out FOLDER [options]",
        description="From photographs and tags to masks. Tags come from tags.csv (image,tags), one subfolder a class, "
        "or keywords (XMP, IPTC). Stopped anywhere, the same command goes on; only new photographs are computed.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=22, width=100),
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("photographs", type=Path, metavar="PHOTOGRAPHS", help="their folder")
    add = parser.add_argument_group("options").add_argument
    add("--out", type=Path, required=True, metavar="FOLDER", help="for labels, overlays, report.html, the model")
    add("--tags", metavar="FILE", help="tags, .csv (image,tags) or .txt (image tag tag)")
    add("--classes", metavar="FILE", help="classes, one a line (default: classes.txt, else the tags, sorted)")
    add("--masks", type=Path, metavar="FOLDER", help="true masks, PNG by photograph, to score with")
    add("--weights", default="imagenet", metavar="WHICH", help="of the backbone: a name or a file (default: imagenet)")
    add("--backbone", default="resnet50", metavar="NAME", help="resnet50 (default), resnet101, vgg16, ...")
    add("--stride-in", choices=get_args(StrideIn), metavar="1x1", help="1x1 for files of ResNet v1")
    add(
        "--max-side", type=int, default=768, metavar="PIXELS", help="larger photographs are read smaller (default: 768)"
    )
    add("--threshold", type=float, metavar="SHARE", help="background below it (default: 0.4 with dense_crf, else 0.5)")
    add("--refine", default="auto", choices=_REFINE, metavar="HOW", help="dense_crf (default if installed), pamr, none")
    add("--maps", action="store_true", help="leave the maps of the classes in maps/ too")
    add("--segmenter", action="store_true", help="learn masks too, and draw photographs without tags by that")
    add("--refit", action="store_true", help="learn from new photographs and tags, and make all labels anew")
    add("--shard", metavar="I/N", help="work on part I of N only, beside the other parts (page: Long runs)")
    add("--seed", type=int, default=0, metavar="N", help="of the order of photographs (default: 0)")
    add("-h", "--help", action="help", help="show this and end")
    return parser
