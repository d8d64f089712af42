"""Plan of a run of `rca masks`: its photographs, and what of an earlier run serves still."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rca_lightning.cli.fit_photographs import Model
from rca_lightning.cli.run_folder import RunFolder, Settings, changes
from rca_lightning.cli.steps import Steps
from rca_lightning.data.catalogue import Catalogue
from rca_lightning.data.classes import ClassIndex, check_mask_classes
from rca_lightning.data.tag_files import write_tag_file
from rca_lightning.data.tagged_folder import read_tagged_folder, tag_names
from rca_lightning.errors import ArgumentError
from rca_lightning.evaluation.auto_threshold import Automatic
from rca_lightning.evaluation.protocol import ThresholdSource
from rca_lightning.io.atomic import alone_in, write_atomically
from rca_lightning.io.listing import first_few
from rca_lightning.pseudo_labels.refinement import RefinementName

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choices:
    """What the user has chosen beside the model."""

    root: Path
    tags: str | None
    classes: str | None
    masks: Path | None
    threshold: float | Automatic | None
    threshold_source: ThresholdSource
    refine: tuple[RefinementName, ...]
    refit: bool
    maps: bool
    segmenter: bool

    def of_labels(self) -> Settings:
        """What decides the labels."""
        return {"threshold": self.threshold, "refine": list(self.refine)}


def find_photographs(run: RunFolder, choices: Choices, steps: Steps) -> Catalogue:
    """Lists photographs and tags into the folder of the run.

    Parts that run at the same time list them once: the first does, the others wait for it, and take its list as long
    as no folder or tag file has changed since.

    Args:
        run: the folder.
        choices: of the user.
        steps: is told of the files whose keywords are read.

    Raises:
        ArgumentError: there are more tags than there can be classes.
        DataError: see `read_tagged_folder`, as for the other errors.
    """
    exclude = [run.out, *([] if choices.masks is None else [choices.masks])]
    with run.output_errors(), alone_in(run.catalogue):
        known = None if run.part is None else Catalogue.read(run.catalogue)
        catalogue = read_tagged_folder(
            choices.root,
            catalogue=run.catalogue,
            tags_file=choices.tags,
            class_file=choices.classes,
            exclude=exclude,
            each=steps.update,
            known=known,
        )
        names = catalogue.facts.class_names
        if choices.classes is None and len(names) > 254:
            raise ArgumentError("classes", None, f"there are {len(names)} tags, at most 254 can be classes; "
                                "give --classes FILE, the ones that are meant, one a line")  # fmt: skip
        check_mask_classes(len(names))
        if catalogue is not known:
            _write_classes(run.catalogue / "classes.txt", catalogue)
    _log.info("%d photographs, tags from %s", catalogue.facts.images, catalogue.facts.described)
    return catalogue


def _write_classes(path: Path, catalogue: Catalogue) -> None:
    text = "".join(f"{name}\n" for name in catalogue.facts.class_names)
    write_atomically(path, lambda file: file.write(text.encode()))


class Plan:
    """What a run has to make anew.

    Args:
        run: the folder, opened.
        catalogue: the photographs.
        choices: of the user.
        model: what is fitted.

    Attributes:
        fits: whether a model is fitted, or one that is half done.
        content: what labels are made from, as it is kept: the run that finds another has changes to make first.
    """

    def __init__(self, run: RunFolder, catalogue: Catalogue, choices: Choices, model: Model) -> None:
        self._run, self._facts, self._choices = run, catalogue.facts, choices
        self._settings: Settings = {"classes": list(self._facts.class_names), **asdict(model)}
        self._before = run.state.get("fit", {})
        self._done = bool(self._before.get("done")) and run.checkpoint.is_file()
        self._different = changes(self._before, self._settings) if self._before else []
        self._other_photographs = self._before.get("photographs") != self._facts.digest_of_tagged
        self.fits = not self._done or bool(self._different) or (self._other_photographs and choices.refit)
        number = self._before.get("number", 0)
        self._begins = self.fits and (bool(self._different) or self._done or self._other_photographs)
        self._number = number + self._begins
        self._labels = choices.of_labels() | {"model": self._number}
        self.content: Settings = {"photographs": self._facts.digest, "labels": self._labels}

    @property
    def is_carried_out(self) -> bool:
        """Whether an earlier run has fitted this model and removed the labels of any other."""
        return not self.fits and self._run.state.get("plan") == self.content

    @property
    def segmenter_is_fitted(self) -> bool:
        """Whether there is a segmenter that has learned from these labels."""
        before = self._run.state.get("segmenter", {})
        return bool(before.get("done")) and before.get("labels") == self._labels and self._run.segmenter.is_file()

    def why_not(self) -> str:
        """Why parts have no labels to draw yet, in words."""
        if not self._done:
            return "there is no model yet"
        if self.fits:
            return f"the model is to be made anew: {'; '.join(self._different) or 'other photographs or tags'}"
        kept = self._run.state.get("plan", {})
        if kept.get("photographs") != self._facts.digest:
            return "the list of photographs and tags is another than that of the last run"
        return f"labels are to be made anew: {'; '.join(changes(kept['labels'], self._labels))}"

    def carry_out(self, catalogue: Catalogue) -> bool:
        """Says what is made anew and removes it; returns whether labels of other photographs or tags were removed."""
        run, facts = self._run, self._facts
        if not self.is_carried_out:
            run.remember("plan", None)  # no part works by the one before, should this run be cut short
        if self._before and self._different:
            _say_anew("; ".join(self._different))
        elif self._done and self._other_photographs and self._choices.refit:
            _say_anew(f"from {facts.tagged} tagged photographs (--refit)", joined=" ")
        elif self._done and self._other_photographs:
            say(
                f"photographs or tags have changed: the model stays as it is, fitted to {self._before.get('tagged')} "
                "photographs; --refit makes it and all labels anew"
            )
        if self._begins:
            run.remove_fit()
            run.remember("threshold", None)
            run.remember("seconds", None)
        if self.fits:
            fit = {"photographs": facts.digest_of_tagged, "tagged": facts.tagged, "number": self._number, "done": False}
            run.remember("fit", self._settings | fit)
        drawn = run.state.get("labels")
        if drawn is not None and drawn != self._labels:
            if not self.fits:
                say(f"all labels are made anew: {'; '.join(changes(drawn, self._labels))}")
            run.remember("labels", None)
            run.remove_labels()
        run.remember("labels", self._labels)
        self._plan_segmenter(catalogue)
        return _write_tags(run, catalogue)

    def _plan_segmenter(self, catalogue: Catalogue) -> None:
        """Removes a segmenter of another model, or of other labels; and what it has drawn where it is not asked for."""
        run = self._run
        before = run.state.get("segmenter")
        if self._choices.segmenter and (before is None or before["labels"] != self._labels):
            if before is not None and before["done"]:
                say("the segmenter is made anew, as the labels are that it learned from")
            run.remove_segmenter()
            run.remember("segmenter", {"labels": self._labels, "done": False})
        elif before is not None and not self._choices.segmenter:
            segmented = run.segmented()
            drawn = [image_id for image_id in catalogue.table.iterate_ids() if segmented.is_complete(image_id)]
            if drawn:
                say(f"labels of photographs without tags are made anew by the first stage, without --segmenter: "
                    f"{first_few(drawn)}")  # fmt: skip
                run.remove_labels(drawn)


def _write_tags(run: RunFolder, catalogue: Catalogue) -> bool:
    """Keeps classes and tags in the folder; labels of photographs that have others now are removed before."""
    names = catalogue.facts.class_names

    def now() -> Iterator[tuple[str, tuple[str, ...] | None, Path]]:
        for record in catalogue.table:
            yield record.image_id, None if record.tags is None else tag_names(record.tags, names), record.image

    changed = list(run.retagged(now()))
    if changed:
        say(f"labels are made anew, as the tags or the files have changed: {first_few(changed)}")
        run.remove_labels(changed)
    with run.output_errors():
        _write_classes(run.classes, catalogue)
        write_tag_file(run.tags, catalogue.tags.items(), ClassIndex(names))
    return bool(changed)


def say(line: str) -> None:
    """Print a line beside the progress of steps."""
    print(line, file=sys.stderr, flush=True)


def _say_anew(why: str, *, joined: str = ": ") -> None:
    say(f"the model and all labels are made anew{joined}{why}")
