"""`rca masks` on a few generated photographs, with a small backbone."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rca_lightning.backbones.base import Backbone
from rca_lightning.backbones.build import build_backbone
from rca_lightning.callbacks.region_memory import RegionMemoryCallback
from rca_lightning.cli import draw_prototypes as drawing
from rca_lightning.cli.main import main
from rca_lightning.data.images import read_mask
from rca_lightning.data.synthetic.dataset import CLASS_NAMES
from rca_lightning.data.tag_files import read_tag_names
from rca_lightning.errors import ArgumentError, DataError
from rca_lightning.evaluation.auto_threshold import AutoThreshold
from rca_lightning.evaluation.comparison import images_file
from rca_lightning.evaluation.image_counts import ImageCounts, ids_digest
from rca_lightning.evaluation.intervals import miou_interval
from rca_lightning.evaluation.label_iou import LabelIoU
from rca_lightning.io.output_folder import PredictionFolder
from rca_lightning.modules.rca_module import RCAModule
from tests.html_contents import Contents

FIRST, NEW = 12, 3


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each forward pass of a backbone has seen."""
    return count_seen(monkeypatch)


def count_seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counts: list[int] = []
    original = torch.nn.Module.__call__

    def counted(self, *args, **kwargs):
        if isinstance(self, Backbone):
            counts.append(len(args[0]))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "__call__", counted)
    return counts


class Folder:
    """Photographs with tags, and the words of the command."""

    def __init__(self, root: Path, synthetic: Path) -> None:
        self.photographs, self.out, self._synthetic = root / "photographs", root / "masks", synthetic
        self.tags = {name: tags for _, name, tags in read_tag_names(synthetic / "image_labels.txt")}
        self.ids = sorted(self.tags)[: FIRST + NEW]
        (self.photographs / "images").mkdir(parents=True)
        for image_id in self.ids[:FIRST]:
            self.add(image_id)
        self.weights = root / "weights.pth"
        torch.manual_seed(0)
        torch.save(build_backbone("resnet14", weights="none").state_dict(), self.weights)

    def add(self, image_id: str) -> None:
        shutil.copy(self._synthetic / "JPEGImages" / f"{image_id}.jpg", self.photographs / "images")
        lines = [f"{name},{';'.join(self.tags[name])}\n" for name in self.ids if self.file(name).is_file()]
        (self.photographs / "tags.csv").write_text("image,tags\n" + "".join(lines))

    def file(self, image_id: str) -> Path:
        return self.photographs / "images" / f"{image_id}.jpg"

    def label(self, *words: str) -> None:
        own = ["--weights", str(self.weights), "--backbone", "resnet14", "--refine", "none"]
        main(["masks", str(self.photographs), "--out", str(self.out), *own, *words])

    def written(self) -> dict:
        return json.loads((self.out / "run.json").read_text())

    def times(self) -> dict[str, int]:
        return {path.stem: path.stat().st_mtime_ns for path in (self.out / "labels").glob("*.png")}


@pytest.fixture
def folder(tmp_path: Path, synthetic_root: Path) -> Folder:
    return Folder(tmp_path, synthetic_root)


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory, synthetic_root: Path) -> tuple[Folder, Path, int]:
    """A folder that is labelled, a copy of all its files, and how many images the backbone has seen."""
    root = tmp_path_factory.mktemp("labelled")
    folder = Folder(root / "run", synthetic_root)
    with pytest.MonkeyPatch.context() as patch:
        seen = count_seen(patch)
        folder.label()
    shutil.copytree(root / "run", root / "copy", symlinks=True)
    return folder, root / "copy", sum(seen)


@pytest.fixture
def labelled(first_run: tuple[Folder, Path, int]) -> Folder:
    """The labelled folder as its first run has left it, at the path where that ran."""
    folder, kept, _ = first_run
    run = folder.photographs.parent
    shutil.rmtree(run)
    shutil.copytree(kept, run, symlinks=True)
    return copy.deepcopy(folder)


def test_masks_overlays_checkpoint_and_score(folder: Folder, synthetic_root: Path, capsys):
    masks = synthetic_root / "SegmentationClass"
    classes = folder.photographs / "classes.txt"
    classes.write_text("\n".join(CLASS_NAMES))
    folder.label("--masks", str(masks), "--maps", "--classes", str(classes))
    told = capsys.readouterr()
    metric = LabelIoU(len(CLASS_NAMES))
    for image_id in folder.ids[:FIRST]:
        label = Image.open(folder.out / "labels" / f"{image_id}.png")
        photograph = Image.open(folder.file(image_id))
        assert (label.mode, label.size) == ("P", photograph.size)
        shown = {CLASS_NAMES[value - 1] for value in np.unique(np.array(label)) if value}
        assert shown <= set(folder.tags[image_id])
        assert Image.open(folder.out / "overlays" / f"{image_id}.jpg").size == photograph.size
        with np.load(folder.out / "maps" / f"{image_id}.npz", allow_pickle=False) as maps:
            assert {CLASS_NAMES[index] for index in maps["classes"]} == set(folder.tags[image_id])
        drawn, truth = (read_mask(path, num_classes=6) for path in (
            folder.out / "labels" / f"{image_id}.png", masks / f"{image_id}.png"
        ))  # fmt: skip
        metric.update(torch.from_numpy(drawn), torch.from_numpy(truth))
    content = folder.written()
    expected = metric.compute()
    assert content["scores"]["miou"] == pytest.approx(expected.miou)
    assert content["scores"]["per_class_iou"]["background"] == pytest.approx(float(expected.iou[0]))
    counts = ImageCounts.load(folder.out / "run_images.npz")
    assert counts.ids == tuple(folder.ids[:FIRST])
    interval = miou_interval(counts, None)
    assert [content["scores"]["miou_interval"][end] for end in ("low", "high")] == [interval.low, interval.high]
    ends = f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
    assert f": {100 * expected.miou:.1f}, 95 % interval over images {ends} ({FIRST} photographs)" in told.out
    assert set(content["scores"]["miou_by_size"]) == {"small", "medium", "large"}
    assert f"mIoU ({ends})" in Contents((folder.out / "report.html").read_text()).words
    assert content["scores"]["protocol"] == content["protocol"]  # all of them have masks
    assert (content["classes"], content["images"], content["tagged"]) == (list(CLASS_NAMES), FIRST, FIRST)
    assert {"look", "features", "rounds", "labels"} <= set(content["seconds"])
    assert content["skipped"] == []
    assert content["command"][:2] == ["rca", "masks"]
    assert [number for number, _ in content["curves"]["train/label_change"]] == [2, 3, 4, 5]
    assert any("masks need about 10" in line for line in content["warnings"])
    assert (folder.out / "classes.txt").read_text().split() == list(CLASS_NAMES)
    assert {name: tags for _, name, tags in read_tag_names(folder.out / "tags.csv")} == {
        name: sorted(folder.tags[name], key=CLASS_NAMES.index) for name in folder.ids[:FIRST]
    }
    module = RCAModule.load_from_checkpoint(folder.out / "rca.ckpt", map_location="cpu")
    assert module.class_names == list(CLASS_NAMES)
    assert bool(module.network.has_prototypes)
    assert "Epoch" not in told.out + told.err
    assert "left" in told.err


def test_again_computes_nothing_and_new_photographs_alone(labelled: Folder, seen: list[int], capsys):
    folder = labelled
    before = folder.times()
    took = folder.written()["seconds"]
    folder.label()
    assert (seen, folder.times()) == ([], before)
    assert folder.written()["seconds"]["features"] == took["features"] > 0  # of the run that computed them
    for image_id in folder.ids[FIRST:]:
        folder.add(image_id)
    capsys.readouterr()
    folder.label()
    assert sum(seen) == NEW * 2  # scales
    after = folder.times()
    assert {name: after[name] for name in before} == before
    assert set(after) == set(folder.ids)
    assert "--refit makes it and all labels anew" in capsys.readouterr().err
    assert folder.written()["images"] == FIRST + NEW
    seen.clear()
    folder.label("--refit")
    assert seen == []  # they were kept when they were labelled; those of the others were before
    assert all(time > before.get(name, 0) for name, time in folder.times().items())
    seen.clear()
    folder.label("--refit")  # nothing is new
    assert seen == []


def test_changed_settings_and_tags_make_what_depends_on_them_anew(labelled: Folder, seen: list[int], capsys):
    folder = labelled
    before, checkpoint = folder.times(), (folder.out / "rca.ckpt").stat().st_mtime_ns
    folder.label("--threshold", "0.3")
    assert "all labels are made anew: threshold None before, 0.3 now" in capsys.readouterr().err
    assert seen == []  # features are kept
    assert (folder.out / "rca.ckpt").stat().st_mtime_ns == checkpoint
    middle = folder.times()
    assert all(middle[name] > before[name] for name in before)
    changed = folder.ids[0]
    others = {name for one in folder.ids[1:FIRST] for name in folder.tags[one]}
    other = min(others.difference(folder.tags[changed]))
    folder.tags[changed] = [other]
    folder.add(changed)
    shutil.copystat(folder.file(folder.ids[1]), folder.file(changed))
    folder.label("--threshold", "0.3")
    assert f"as the tags or the files have changed: {changed}" in capsys.readouterr().err
    after = folder.times()
    assert {name for name in after if after[name] != middle[name]} == {changed}
    folder.label("--threshold", "0.3", "--seed", "1")
    assert "the model and all labels are made anew: seed 0 before, 1 now" in capsys.readouterr().err
    assert (folder.out / "rca.ckpt").stat().st_mtime_ns != checkpoint


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_run_says_what_its_masks_rest_on_with_and_without_a_score(labelled: Folder, synthetic_root: Path, capsys):
    folder = labelled
    content = folder.written()
    protocol = content["protocol"]
    assert content["scores"] is None
    assert protocol["checkpoint"] == {"file": "rca.ckpt", "sha256": digest(folder.out / "rca.ckpt")}
    assert protocol["weights"] == {"file": "weights.pth", "sha256": digest(folder.weights)}
    assert protocol["split"] == {"name": "all", "images": FIRST, "ids_sha256": ids_digest(folder.ids[:FIRST])}
    assert protocol["supervision"] == {
        "tags": "image", "saliency": False, "prompts": False, "proposals": False, "seed_dir": False, "masks": False,
    }  # fmt: skip
    assert (protocol["threshold"], protocol["tag_threshold"], protocol["segmenter"]) == ("default", None, None)
    assert protocol["background"]["background_threshold"] == content["settings"]["background_threshold"] == 0.5
    assert (protocol["background"]["kind"], protocol["background"]["by_masks"]) == ("fixed", False)
    assert (protocol["scales"], protocol["flip"], protocol["crf"], protocol["refine"]) == ([1.0, 1.5], False, False, [])
    assert protocol["maps"]["kind"] == "propagated RCA attention"
    assert protocol["versions"]["rca_lightning"] == content["version"]
    assert str(folder.out.parent) not in json.dumps(protocol)

    shown = " ".join(Contents((folder.out / "report.html").read_text()).words)
    assert f"file rca.ckpt, sha256 {digest(folder.out / 'rca.ckpt')}" in shown
    stored = json.loads((folder.out / "work" / "predict.json").read_text())
    assert stored["checkpoint_sha256"] == protocol["checkpoint"]["sha256"]

    masks = folder.photographs.parent / "true"
    masks.mkdir()
    for image_id in folder.ids[: FIRST - 2]:
        shutil.copy(synthetic_root / "SegmentationClass" / f"{image_id}.png", masks)
    (folder.photographs / "classes.txt").write_text("\n".join(CLASS_NAMES))
    for image_id in folder.ids[FIRST:]:
        shutil.copy(synthetic_root / "JPEGImages" / f"{image_id}.jpg", folder.photographs / "images")
        shutil.copy(synthetic_root / "SegmentationClass" / f"{image_id}.png", masks)
    folder.label("--masks", str(masks), "--threshold", "0.3")
    scored = folder.written()
    rests_on = scored["scores"]["protocol"]
    assert scored["protocol"]["split"]["images"] == FIRST + NEW
    assert rests_on["split"]["images"] == scored["scores"]["images"] == FIRST - 2 + NEW
    assert rests_on["supervision"]["tags"] == "mixed"  # the new ones have none
    assert rests_on["tag_threshold"]["chosen"] in ("default", "calibrated")
    assert (rests_on["threshold"], rests_on["background"]["by_masks"]) == ("given", None)

    first = folder.out.parent / "first.json"
    shutil.copy(folder.out / "run.json", first)
    shutil.copy(folder.out / "run_images.npz", images_file(first))
    folder.label("--masks", str(masks), "--threshold", "0.4")
    capsys.readouterr()
    main(["compare", str(first), str(folder.out / "run.json")])
    printed = capsys.readouterr().out
    gain = 100 * (folder.written()["scores"]["miou"] - scored["scores"]["miou"])
    assert f"b - a: {gain:+.1f} mIoU, 95 % interval" in printed
    assert "differs too: background.background_threshold: 0.3 and 0.4\n" in printed
    folder.label("--threshold", "0.4")
    assert folder.written()["scores"] is None
    assert not (folder.out / "run_images.npz").exists()  # it was of a score that is no longer there
    with pytest.raises(DataError, match="no masks to score with"):
        main(["compare", str(first), str(folder.out / "run.json")])


class KilledError(Exception):
    """As a kill, at a point that the test chooses."""


@pytest.mark.parametrize("place", ["rounds", "labels"])
def test_killed_and_started_again_ends_as_without(labelled: Folder, tmp_path, monkeypatch, seen, place):
    folder = labelled
    whole = {path.name: path.read_bytes() for path in (folder.out / "labels").glob("*.png")}
    folder.out = tmp_path / "killed"
    with monkeypatch.context() as patch:
        if place == "rounds":
            renew = RegionMemoryCallback._renew_prototypes

            def until_third(self, memory, module, epoch):
                if epoch == 3:
                    raise KilledError
                renew(self, memory, module, epoch)

            patch.setattr(RegionMemoryCallback, "_renew_prototypes", until_third)
        else:
            claim = PredictionFolder.claim

            def until_fifth(self, image_id):
                if len(list((folder.out / "labels").glob("*.png"))) >= 4:
                    raise KilledError
                return claim(self, image_id)

            patch.setattr(PredictionFolder, "claim", until_fifth)
        with pytest.raises(KilledError):
            folder.label()
    done, views = folder.times(), sum(seen)
    seen.clear()
    epochs = []
    monkeypatch.setattr(RCAModule, "on_train_epoch_start", lambda self: epochs.append(self.current_epoch))
    folder.label()
    assert seen == []
    assert views == FIRST * 2
    assert epochs == ([2, 3, 4] if place == "rounds" else [])
    assert {path.name: path.read_bytes() for path in (folder.out / "labels").glob("*.png")} == whole
    assert (len(done) > 0) == (place == "labels")
    assert {name: folder.times()[name] for name in done} == done
    assert [number for number, _ in folder.written()["curves"]["train/label_change"]] == [2, 3, 4, 5]


def test_page_shows_the_prototypes_of_each_class_without_a_backbone(labelled: Folder, first_run, monkeypatch):
    folder = labelled
    assert first_run[2] == FIRST * 2  # scales: nothing for the outlines
    page = (folder.out / "report.html").read_text()
    section = Contents(page[page.index('<section id="prototypes"') : page.index('<section id="settings"')])
    expected = {tag for name in folder.ids[:FIRST] for tag in folder.tags[name]}
    assert expected | {"background"} <= set(section.words)
    crops = [link for link in section.links if link.startswith("data:image/")]
    captions = [word for word in section.words if word in folder.ids[:FIRST]]
    assert len(crops) == len(captions) >= len(expected)
    took = folder.written()["seconds"]["prototypes"]
    assert took > 0
    monkeypatch.setattr(drawing, "draw_atlas", None)  # is kept, not drawn anew
    folder.label()
    again = (folder.out / "report.html").read_text()
    assert Contents(again[again.index('<section id="prototypes"') : again.index('<section id="settings"')]).links == (
        section.links
    )
    assert folder.written()["seconds"]["prototypes"] == took


def test_page_goes_without_prototypes_where_the_model_has_no_memory(labelled: Folder):
    folder = labelled
    checkpoint = torch.load(folder.out / "rca.ckpt", weights_only=False)
    for state in checkpoint["callbacks"].values():
        state.pop("memory", None)
    torch.save(checkpoint, folder.out / "rca.ckpt")
    folder.label()
    assert 'id="prototypes"' not in (folder.out / "report.html").read_text()


def test_threshold_chosen_without_masks_once_for_a_model(folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys):
    folder.label("--threshold", "auto", "--maps")
    first = folder.written()["settings"]
    assert first["threshold"] == "auto"
    auto = AutoThreshold("contrasted_attention")
    for path in sorted((folder.out / "maps").glob("*.npz")):
        with np.load(path) as stored:
            auto.update(torch.from_numpy(stored["maps"].astype(np.float32)))
    assert first["background_threshold"] == pytest.approx(auto.compute(), abs=0.006)  # stored maps are rounded
    folder.add(folder.ids[FIRST])
    with monkeypatch.context() as patch:
        patch.setattr(AutoThreshold, "compute", lambda self: pytest.fail("it was chosen before"))
        folder.label("--threshold", "auto", "--maps")
    assert folder.written()["settings"]["background_threshold"] == first["background_threshold"]
    with pytest.raises(ArgumentError, match=r"threshold=1\.5: give a number in"):
        folder.label("--threshold", "1.5")
    with pytest.raises(SystemExit):
        folder.label("--threshold", "most")
    assert "--threshold: 'most': give a number in [0, 1], or auto" in capsys.readouterr().err
