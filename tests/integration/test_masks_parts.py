"""`rca masks --shard` on a few generated photographs: processes that work on parts give what one process gives."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from rca_lightning.callbacks.feature_cache import FeatureCacheCallback
from rca_lightning.cli import fit_segmenter
from rca_lightning.cli.run_folder import Part, RunFolder
from rca_lightning.data import near_duplicates
from rca_lightning.data.catalogue import Catalogue
from rca_lightning.errors import ArgumentError, OutputError
from rca_lightning.io.output_folder import PredictionFolder
from tests.integration.test_masks_command import FIRST, Folder, KilledError, seen  # noqa: F401 - a fixture
from tests.integration.test_masks_segmenter import add_without_tags

UNTAGGED = 2


@pytest.fixture
def folder(tmp_path: Path, synthetic_root: Path) -> Folder:
    """Photographs of which the last two have no tags."""
    folder = Folder(tmp_path, synthetic_root)
    for image_id in folder.ids[FIRST : FIRST + UNTAGGED]:
        add_without_tags(folder, image_id)
    return folder


def written(folder: Folder) -> dict[str, bytes]:
    """Labels, overlays and maps, without what a killed process has left half written."""
    places = ("labels", "overlays", "work/maps")
    return {path.name: path.read_bytes() for place in places for path in (folder.out / place).glob("[!.]*")}


def start(folder: Folder, part: str) -> subprocess.Popen[str]:
    own = ["--weights", str(folder.weights), "--backbone", "resnet14", "--refine", "none", "--shard", part]
    command = [sys.executable, "-m", "rca_lightning", "masks", str(folder.photographs), "--out", str(folder.out), *own]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> str:
    told, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return told


def wait_for(process: subprocess.Popen[str], root: Path, pattern: str) -> None:
    while process.poll() is None and not next(root.glob(pattern), None):
        time.sleep(0.002)


def test_two_processes_at_once_one_of_them_killed_give_what_one_process_gives(folder: Folder, tmp_path, seen, capsys):  # noqa: F811
    folder.label()
    whole = written(folder)
    folder.out = tmp_path / "parts"
    killed = start(folder, "1/2")
    wait_for(killed, folder.out / "work" / "features", "*/*/*.npy")
    killed.kill()
    killed.wait()
    for told in map(end, [start(folder, "1/2"), start(folder, "2/2")]):
        assert "7 photographs, since there is no model yet; next, when all parts have ended" in told
    assert not (folder.out / "rca.ckpt").exists()
    seen.clear()
    capsys.readouterr()
    folder.label()
    assert "the model is there; next, each of the 2 parts: rca masks with --shard" in capsys.readouterr().out
    assert seen == []  # all features are those of the parts
    assert not (folder.out / "labels").exists()
    assert not (folder.out / "report.html").exists()
    ended = start(folder, "2/2")
    wait_for(ended, folder.out / "work" / "maps", "*.npz")
    ended.terminate()  # as a cluster does first
    _, errors = ended.communicate(timeout=60)
    # Where the machine was so slow that the signal came too late, the part has ended well.
    assert (ended.returncode, "rca: stopped; nothing is lost" in errors) in [(130, True), (0, False)]
    for told in map(end, [start(folder, "1/2"), start(folder, "2/2")]):
        assert "next, when all parts have ended: rca masks without --shard, for the report" in told
    labels = folder.times()
    folder.label()
    assert (seen, folder.times()) == ([], labels)
    assert written(folder) == whole
    assert folder.written()["images"] == FIRST + UNTAGGED
    folder.label("--threshold", "0.3")  # parts have been brought together: this run labels alone
    assert set(folder.times()) == set(labels)
    assert all(folder.times()[name] > labels[name] for name in labels)


def test_parts_keep_to_their_photographs_and_take_the_list_that_is_there(folder: Folder, monkeypatch, capsys):
    listed = []
    write = Catalogue.write.__func__
    monkeypatch.setattr(Catalogue, "write", classmethod(lambda *a, **k: listed.append(1) or write(*a, **k)))
    folder.label("--shard", "1/2")
    folder.label("--shard", "2/2")
    assert listed == [1]
    folder.label()
    labels = folder.out / "labels"
    folder.label("--shard", "2/2")
    assert sorted(path.stem for path in labels.iterdir()) == sorted(folder.ids[: FIRST + UNTAGGED])[1::2]
    assert listed == [1, 1]  # one without a part lists anew
    add_without_tags(folder, folder.ids[FIRST + UNTAGGED])
    capsys.readouterr()
    folder.label("--shard", "1/2")
    assert "the list of photographs and tags is another than that of the last run" in capsys.readouterr().out
    assert len(list(labels.iterdir())) == (FIRST + UNTAGGED) // 2
    folder.label()
    assert "the list of what is to be labelled is there" in capsys.readouterr().out
    folder.label("--threshold", "0.3", "--shard", "1/2")
    assert "labels are to be made anew: threshold None before, 0.3 now" in capsys.readouterr().out
    folder.label("--shard", "1/20")
    assert "part 1 of 20, 1 photographs" in capsys.readouterr().out
    folder.label("--shard", "20/20")
    assert "nothing to do" in capsys.readouterr().out


def test_part_that_is_cut_short_after_the_settings_changed_is_not_mixed(folder: Folder, monkeypatch, capsys):
    folder.label()
    remember = RunFolder.remember

    def until_labels(self, name, settings):
        remember(self, name, settings)
        if name == "labels" and settings is not None:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "remember", until_labels)
        with pytest.raises(KilledError):
            folder.label("--threshold", "0.3")
    capsys.readouterr()
    folder.label("--shard", "1/2")  # by the old threshold
    assert "features of part 1 of 2" in capsys.readouterr().out
    assert not list((folder.out / "labels").iterdir())


def test_all_photographs_are_labelled_anew_without_a_backbone(folder: Folder, seen):  # noqa: F811
    folder.label()
    assert sum(seen) == (FIRST + UNTAGGED) * 2  # scales
    seen.clear()
    folder.label("--threshold", "0.3")
    assert seen == []
    add_without_tags(folder, folder.ids[FIRST + UNTAGGED])
    folder.label("--threshold", "0.3")
    assert sum(seen) == 2
    folder.label("--threshold", "0.4")
    assert sum(seen) == 2  # those of photographs that came later are kept too


def test_parts_hash_photographs_for_the_run_that_compares_them(folder: Folder, monkeypatch, caplog):
    shutil.copy(folder.file(folder.ids[0]), folder.photographs / "images" / "copy.jpg")
    folder.label("--shard", "1/2")
    folder.label("--shard", "2/2")
    monkeypatch.setattr(near_duplicates, "difference_hash", None)
    folder.label()
    assert f"nearly the same photographs: copy and {folder.ids[0]}" in caplog.text


def test_projection_is_learned_by_the_first_part_alone(folder: Folder, monkeypatch):
    learned = []
    moments = FeatureCacheCallback._moments
    monkeypatch.setattr(FeatureCacheCallback, "_moments", lambda *words: learned.append(1) or moments(*words))
    folder.label("--shard", "2/2")
    folder.label("--shard", "1/2")
    folder.label()
    assert learned == [1]


def test_segmenter_is_fitted_between_parts_that_draw(folder: Folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fit_segmenter, "_EPOCHS", 2)
    folder.label("--segmenter")
    whole = written(folder)
    folder.out = tmp_path / "parts"
    for _ in ("features", "labels", "photographs without tags"):
        for part in ("1/2", "2/2"):
            folder.label("--segmenter", "--shard", part)
        capsys.readouterr()
        folder.label("--segmenter")
        told = capsys.readouterr().out
    assert "to look at" in told
    assert written(folder) == whole
    assert (folder.out / "segmenter.ckpt").is_file()


def opened(out: Path, *parts: Part | None) -> None:
    with contextlib.ExitStack() as stack:
        for part in parts:
            stack.enter_context(RunFolder(out, part).opened())


def test_a_run_without_a_part_is_alone(tmp_path: Path):
    opened(tmp_path, Part(1, 2), Part(2, 2))
    for first, second in ((Part(1, 2), None), (None, Part(1, 2)), (None, None)):
        with pytest.raises(OutputError, match="another rca masks is at work"):
            opened(tmp_path, first, second)


@pytest.mark.parametrize("given", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3", ""])
def test_part_that_cannot_be_is_named(given: str):
    with pytest.raises(ArgumentError, match=r"shard=.*give I/N"):
        Part.parse(given)


def test_parts_are_all_photographs_each_once():
    rows = [row for number in (1, 2, 3) for row in Part(number, 3).rows(8).tolist()]
    assert sorted(rows) == list(range(8))


def test_two_begin_to_write_at_once(tmp_path: Path):
    """One finds files of another that has begun after it looked for the settings."""
    first, second = (PredictionFolder(tmp_path, {"masks": ".png"}) for _ in range(2))
    files = second._files

    def begun_meanwhile():
        first.prepare({"threshold": 0.5})
        first.begin()
        Image.new("P", (1, 1)).save(first.paths("a")["masks"])
        return files()

    second._files = begun_meanwhile
    second.prepare({"threshold": 0.5})
