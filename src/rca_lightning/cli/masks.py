"""The command `rca masks`: from a folder of tagged photographs to a mask of each."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn, get_args

from rca_lightning.atlas.atlas import AtlasClass
from rca_lightning.backbones.resnet import StrideIn
from rca_lightning.cli.draw_prototypes import draw_prototypes, expected_seconds
from rca_lightning.cli.fit_photographs import Model, fit_model, label_photographs, log_to_file, photographs
from rca_lightning.cli.fit_segmenter import fit_segmenter, segment_photographs
from rca_lightning.cli.run_folder import RunFolder, Settings, changes
from rca_lightning.cli.steps import Steps
from rca_lightning.data.classes import ClassIndex, check_mask_classes
from rca_lightning.data.near_duplicates import hash_photographs, near_duplicates
from rca_lightning.data.records import Record
from rca_lightning.data.tag_checks import TagStatistics
from rca_lightning.data.tag_files import write_tag_file
from rca_lightning.data.tagged_folder import TaggedFolder, read_tagged_folder, tag_names
from rca_lightning.errors import ArgumentError, require_extra
from rca_lightning.evaluation.report import Scores
from rca_lightning.io.atomic import write_atomically
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


@dataclass(frozen=True)
class _Choices:
    """What the user has chosen beside the model."""

    root: Path
    tags: str | None
    classes: str | None
    masks: Path | None
    threshold: float | None
    refine: tuple[RefinementName, ...]
    refit: bool
    maps: bool
    segmenter: bool


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
    run = RunFolder(given.out)
    try:
        with run.opened(), log_to_file(run.work / "log.txt"):
            _run(run, choices, model, ["rca", "masks", *words])
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


def _run(run: RunFolder, choices: _Choices, model: Model, command: list[str]) -> None:
    names = [*_EXPECTED]
    if choices.segmenter:
        names[-1:-1] = [*_SEGMENTER, *_UNTAGGED]
    expected = dict.fromkeys(names, 0.0)
    with Steps(expected) as steps:
        steps.begin("look")
        folder = _find(run, choices, steps)
        for name, seconds in _EXPECTED.items():
            steps.expect(name, seconds * len(folder.images))
        steps.expect("prototypes", expected_seconds(len(folder.class_names)))
        if choices.segmenter:
            for name, seconds in _SEGMENTER.items():
                steps.expect(name, seconds * len(folder.tags))
            for name, seconds in _UNTAGGED.items():
                steps.expect(name, seconds * (len(folder.images) - len(folder.tags)))
        lines, unread = _look(run, folder, steps)
        for line in lines:
            _log.warning("%s", line)
        fits = _plan(run, folder, choices, model)
        _write_tags(run, folder)
        mask_dir = None if choices.masks is None else str(choices.masks.absolute())
        data = photographs(run, folder.image_dir, mask_dir=mask_dir)
        if fits:
            curves = fit_model(run, data, model, steps)
            run.remember("fit", run.state["fit"] | {"done": True, "curves": curves})
            unread |= {image.image_id: image.reason for image in data.bad_images.skipped}
        else:
            steps.skip("features", "rounds")
        missing = [image_id for image_id in folder.images if not run.predictions().is_complete(image_id)]
        if set(missing) - set(unread):
            label_photographs(run, data, steps, threshold=choices.threshold, refine=choices.refine)
            unread |= {image.image_id: image.reason for image in data.bad_images.skipped}
        else:
            data.setup("predict")
        records: Sequence[Record] = data.predict_records
        atlas = draw_prototypes(run, records, steps)
        if choices.segmenter:
            _segment(run, folder, model, steps)
        steps.begin("report")
        if choices.maps:
            _give_maps(run, folder)
        scores = None if choices.masks is None else _score(run, records, folder)
        content = {
            "command": command,
            "version": __version__,
            "settings": {
                **asdict(model),
                **_label_settings(choices),
                "tags": folder.described,
                "segmenter": choices.segmenter,
            },
            "classes": list(folder.class_names),
            "images": len(folder.images),
            "tagged": sum(bool(tags) for tags in folder.tags.values()),
            "seconds": _add_seconds(run, steps),
            "skipped": [{"image": image_id, "reason": reason} for image_id, reason in sorted(unread.items())],
            "warnings": lines,
            "scores": None if scores is None else _scores_content(scores, folder),
            "curves": run.state["fit"].get("curves", {}),
        }
        run.write_json(run.out / "run.json", content)
        page = _write_page(run, records, folder, content, unread, atlas, threshold=choices.threshold)
        steps.end()
    done = len(folder.images) - len(unread)
    print(f"masks of {done} photographs: {run.labels}")
    if unread:
        print(f"{len(unread)} could not be read: {first_few(sorted(unread))}")
    if scores is not None:
        print(f"mIoU with {choices.masks}: {100 * scores.miou:.1f} ({scores.images} photographs)")
    print(f"to look at: {page}")
    if choices.segmenter:
        print(f"the segmenter: {run.segmenter}")
    print(f"the model: {run.checkpoint}; {run.work} lets the next run go on from here and may be deleted")


def _find(run: RunFolder, choices: _Choices, steps: Steps) -> TaggedFolder:
    exclude = [run.out, *([] if choices.masks is None else [choices.masks])]
    links = run.work / "photographs"
    folder = read_tagged_folder(
        choices.root,
        links=links,
        tags_file=choices.tags,
        class_file=choices.classes,
        exclude=exclude,
        each=steps.update,
    )
    if choices.classes is None and len(folder.class_names) > 254:
        raise ArgumentError("classes", None, f"there are {len(folder.class_names)} tags, at most 254 can be classes; "
                            "give --classes FILE, the ones that are meant, one a line")  # fmt: skip
    check_mask_classes(len(folder.class_names))
    _log.info("%d photographs, tags from %s", len(folder.images), folder.described)
    return folder


def _look(run: RunFolder, folder: TaggedFolder, steps: Steps) -> tuple[list[str], dict[str, str]]:
    """Warnings of tags and of photographs that are nearly the same; and which cannot be read, and why."""
    statistics = TagStatistics(folder.class_names)
    for image_id, tags in folder.tags.items():
        statistics.add(image_id, tags)
    lines = statistics.warnings()
    with run.output_errors():
        across, down, unread = hash_photographs(folder.images, run.work / "hashes.npz", each=steps.update)
    pairs = near_duplicates(across, down)
    if pairs:
        ids = list(folder.images)
        named = ", ".join(f"{ids[first]} and {ids[second]}" for first, second in pairs[:_NAMED_PAIRS])
        more = f", ... ({len(pairs)} pairs in all)" if len(pairs) > _NAMED_PAIRS else ""
        lines.append(f"nearly the same photographs: {named}{more}; keep one of each pair, or classes are learned twice")
    return lines, unread


def _plan(run: RunFolder, folder: TaggedFolder, choices: _Choices, model: Model) -> bool:
    """Says what is made anew, and removes it; returns whether a model is fitted."""
    tagged = {image_id: tags for image_id, tags in folder.tags.items() if tags}
    settings: Settings = {"classes": list(folder.class_names), **asdict(model)}
    before = run.state.get("fit", {})
    number = before.get("number", 0)
    done = bool(before.get("done")) and run.checkpoint.is_file()
    different = changes(before, settings) if before else []
    digest = _digest(tagged)
    fits = not done
    if before and different:
        _say(f"the model and all labels are made anew: {'; '.join(different)}")
        fits = True
    elif done and before.get("photographs") != digest:
        if choices.refit:
            _say(f"the model and all labels are made anew from {len(tagged)} tagged photographs (--refit)")
            fits = True
        else:
            _say(
                f"photographs or tags have changed: the model stays as it is, fitted to {before.get('tagged')} "
                "photographs; --refit makes it and all labels anew"
            )
    if fits and (different or done or before.get("photographs") != digest):
        run.remove_fit()
        run.remember("seconds", None)
        number += 1
    if fits:
        run.remember("fit", settings | {"photographs": digest, "tagged": len(tagged), "number": number, "done": False})
    labels = _label_settings(choices) | {"model": number}
    drawn = run.state.get("labels")
    if drawn is not None and drawn != labels:
        if not fits:
            _say(f"all labels are made anew: {'; '.join(changes(drawn, labels))}")
        run.remember("labels", None)
        run.remove_labels()
    run.remember("labels", labels)
    _plan_segmenter(run, folder, choices, labels)
    return fits


def _segment(run: RunFolder, folder: TaggedFolder, model: Model, steps: Steps) -> None:
    """Fits the segmenter where there is none of this model, and draws photographs without tags by it."""
    settings: Settings = run.state["segmenter"]
    if settings["done"] and run.segmenter.is_file():
        steps.skip(*_SEGMENTER)
    else:
        labels = run.predictions()
        learned = [image_id for image_id, tags in folder.tags.items() if tags and labels.is_complete(image_id)]
        fit_segmenter(run, folder.image_dir, learned, model, steps)
        run.remember("segmenter", settings | {"done": True})
    untagged = [image_id for image_id in _without_tags(folder) if run.predictions().is_complete(image_id)]
    if untagged:
        segment_photographs(run, folder.image_dir, untagged, steps)
    else:
        steps.skip(*_UNTAGGED)


def _plan_segmenter(run: RunFolder, folder: TaggedFolder, choices: _Choices, labels: Settings) -> None:
    """Removes a segmenter of another model, or of other labels; and what it has drawn where it is not asked for."""
    before = run.state.get("segmenter")
    if choices.segmenter and (before is None or before["labels"] != labels):
        if before is not None and before["done"]:
            _say("the segmenter is made anew, as the labels are that it learned from")
        run.remove_segmenter()
        run.remember("segmenter", {"labels": labels, "done": False})
    elif before is not None and not choices.segmenter:
        drawn = [image_id for image_id in run.segmented().complete_ids() if image_id in folder.images]
        if drawn:
            _say(f"labels of photographs without tags are made anew by the first stage, without --segmenter: "
                 f"{first_few(drawn)}")  # fmt: skip
            run.remove_labels(drawn)


def _without_tags(folder: TaggedFolder) -> list[str]:
    return [image_id for image_id in folder.images if image_id not in folder.tags]


def _label_settings(choices: _Choices) -> Settings:
    return {"threshold": choices.threshold, "refine": list(choices.refine)}


def _write_tags(run: RunFolder, folder: TaggedFolder) -> None:
    """Keeps classes and tags in the folder; labels of photographs that have others now are removed before."""
    names = folder.class_names
    now = {image_id: tag_names(tags, names) for image_id, tags in folder.tags.items()}
    changed = run.retagged(now, folder.images)
    if changed:
        _say(f"labels are made anew, as the tags or the files have changed: {first_few(changed)}")
        run.remove_labels(changed)
    with run.output_errors():
        text = "".join(f"{name}\n" for name in names)
        write_atomically(run.classes, lambda file: file.write(text.encode()))
        write_tag_file(run.tags, sorted(folder.tags.items()), ClassIndex(names))


def _add_seconds(run: RunFolder, steps: Steps) -> dict[str, float]:
    """Seconds of each step in this run and those before it, which made what this one found."""
    total = dict(run.state.get("seconds") or {})
    for name, seconds in steps.seconds.items():
        total[name] = round(total.get(name, 0.0) + seconds, 2)
    run.remember("seconds", total)
    return total


def _give_maps(run: RunFolder, folder: TaggedFolder) -> None:
    """Puts the maps beside the labels, as links to the same files."""
    given = run.out / "maps"
    with run.output_errors():
        given.mkdir(exist_ok=True)
        for image_id in folder.images:
            source, target = run.maps / f"{image_id}.npz", given / f"{image_id}.npz"
            if source.is_file() and not (target.is_file() and target.samefile(source)):
                target.unlink(missing_ok=True)
                target.hardlink_to(source)


def _score(run: RunFolder, records: Sequence[Record], folder: TaggedFolder) -> Scores | None:
    scores = score_label_files(run.labels, records, num_classes=len(folder.class_names))
    if scores is None:
        _log.warning("masks: no photograph has a mask of its name there, so there is no score")
    return scores


def _scores_content(scores: Scores, folder: TaggedFolder) -> dict[str, Any]:
    values = zip(["background", *folder.class_names], scores.iou.tolist(), strict=True)
    return {"miou": scores.miou, "iou": {name: value for name, value in values if value == value}}  # without NaN


def _write_page(
    run: RunFolder,
    records: Sequence[Record],
    folder: TaggedFolder,
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
                photograph=folder.images[record.image_id],
                label=label if label.is_file() else None,
                maps=maps if maps.is_file() else None,
                tags=tag_names(record.tags or (), folder.class_names),
                reason=unread.get(record.image_id),
            )

    with run.output_errors():
        classes = folder.class_names
        return write_report(run.out, entries(), run=content, classes=classes, atlas=atlas, threshold=threshold)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _digest(tagged: Mapping[str, tuple[int, ...]]) -> str:
    digest = hashlib.sha256()
    for image_id, tags in sorted(tagged.items()):
        digest.update(f"{image_id} {tags}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:32]


def _weights(given: str) -> str:
    """A file by its whole path, so that the same command elsewhere is known as the same; a name as it is."""
    return str(Path(given).absolute()) if Path(given).is_file() else given


def _choices(given: argparse.Namespace) -> _Choices:
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
    return _Choices(
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
    add("--seed", type=int, default=0, metavar="N", help="of the order of photographs (default: 0)")
    add("-h", "--help", action="help", help="show this and end")
    return parser
