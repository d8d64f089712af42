"""The folder of predictions by itself: which images are complete, and by which settings they were made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.folder_contents import file_bytes, file_names

from rca_lightning.errors import OutputError
from rca_lightning.io import output_folder
from rca_lightning.io.output_folder import PredictionFolder

KINDS = {"masks": ".png", "maps": ".npz"}


def add(folder: PredictionFolder, image_id: str, *kinds: str) -> None:
    for kind in kinds or KINDS:
        path = folder.root / kind / (image_id + KINDS[kind])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def start(root: Path, settings: dict, existing: str = "skip") -> PredictionFolder:
    folder = PredictionFolder(root, KINDS, existing=existing)
    folder.prepare(settings)
    folder.begin()
    return folder


def test_an_image_is_complete_with_a_file_of_each_kind(tmp_path):
    folder = PredictionFolder(str(tmp_path), KINDS)
    add(folder, "b.1")
    add(folder, "a[0]")
    add(folder, "masks_alone", "masks")
    add(folder, "maps_alone", "maps")
    (tmp_path / "masks" / ".c.x7.part").touch()
    (tmp_path / "masks" / "notes.txt").touch()
    (tmp_path / "masks" / "folder.png").mkdir()
    (tmp_path / "maps" / "folder.npz").touch()
    assert folder.complete_ids() == ["a[0]", "b.1"]
    assert folder.done() == {"a[0]", "b.1"}
    assert [folder.is_complete(name) for name in ("b.1", "b", "masks_alone", "maps_alone", "folder")] == [
        True,
        *[False] * 4,
    ]
    assert folder.paths("b.1") == {"masks": tmp_path / "masks" / "b.1.png", "maps": tmp_path / "maps" / "b.1.npz"}


def test_folder_that_is_not_there_has_no_images_and_is_not_made_by_looking(tmp_path):
    folder = PredictionFolder(tmp_path / "new", KINDS)
    assert folder.done() == set()
    assert file_names(tmp_path) == []
    assert not (tmp_path / "new").exists()


def test_overwriting_leaves_out_no_image_but_still_lists_them(tmp_path):
    folder = PredictionFolder(tmp_path, KINDS, existing="overwrite")
    add(folder, "a")
    assert folder.done() == set()
    assert folder.complete_ids() == ["a"]
    assert folder.claim("a")


def test_an_id_can_be_claimed_once_a_run(tmp_path):
    folder = PredictionFolder(tmp_path, KINDS)
    add(folder, "there")
    assert [folder.claim("new"), folder.claim("there")] == [True, False]
    for name in ("new", "there"):
        with pytest.raises(OutputError, match=f"^image_id='{name}' belongs to two images"):
            folder.claim(name)
    folder.done()
    assert folder.claim("new")


def test_settings_are_kept_as_json_and_compared_so(tmp_path):
    settings = {"scales": (0.5, 1.0), "background": "fixed", "head": None}
    start(tmp_path, settings).end()
    written = json.loads((tmp_path / "predict.json").read_text())
    assert written == {"scales": [0.5, 1.0], "background": "fixed", "head": None, "overwriting": False}
    before = file_bytes(tmp_path)
    start(tmp_path, settings).end()
    assert file_bytes(tmp_path) == before


@pytest.mark.parametrize(
    ("now", "change"),
    [
        ({"scales": [1.0], "background": "power"}, r"background: 'fixed' there, 'power' now\)"),
        ({"scales": [0.5], "background": "power"}, r"scales: \[1.0\] there, \[0.5\] now; background: 'fixed' there"),
        ({"scales": [1.0], "background": "fixed", "power": 8}, "power: None there, 8 now"),
        ({"scales": [1.0]}, "background: 'fixed' there, None now"),
    ],
)
def test_settings_that_changed_are_all_named_and_nothing_is_touched(tmp_path, now, change):
    start(tmp_path, {"scales": [1.0], "background": "fixed"}).end()
    before = file_bytes(tmp_path)
    with pytest.raises(OutputError, match=rf"^output_dir='{tmp_path}' holds predictions made otherwise .*{change}"):
        start(tmp_path, now)
    assert file_bytes(tmp_path) == before


def test_settings_of_before_0_2_are_read_by_their_old_name(tmp_path):
    start(tmp_path, {"background": "fixed"}).end()
    old = (tmp_path / "predict.json").read_text().replace("background", "rule")
    (tmp_path / "predict.json").write_text(old)
    with pytest.raises(OutputError, match="background: 'fixed' there, 'power' now"):
        start(tmp_path, {"background": "power"})
    start(tmp_path, {"background": "fixed"}).end()
    assert json.loads((tmp_path / "predict.json").read_text()) == {"background": "fixed", "overwriting": False}


def test_notes_are_kept_and_never_a_reason_to_refuse(tmp_path):
    start(tmp_path, {"background": "fixed", "checkpoint_sha256": "a", "weights": None}).end()
    start(tmp_path, {"background": "fixed", "checkpoint_sha256": "b", "map_kind": "CAM"}).end()
    written = json.loads((tmp_path / "predict.json").read_text())
    assert written == {"background": "fixed", "checkpoint_sha256": "b", "map_kind": "CAM", "overwriting": False}


def test_propagation_is_compared_with_folders_that_say_it(tmp_path):
    start(tmp_path, {"background": "fixed"}).end()  # of before it was recorded
    start(tmp_path, {"background": "fixed", "propagation_steps": 1}).end()
    with pytest.raises(OutputError, match="propagation_steps: 1 there, 0 now"):
        start(tmp_path, {"background": "fixed", "propagation_steps": 0})


def test_overwriting_is_marked_until_it_is_through(tmp_path):
    start(tmp_path, {"background": "fixed"}).end()
    folder = start(tmp_path, {"background": "power"}, existing="overwrite")
    assert json.loads((tmp_path / "predict.json").read_text()) == {"background": "power", "overwriting": True}
    with pytest.raises(OutputError, match="overwriting: True there, False now"):
        start(tmp_path, {"background": "power"})
    folder.end()
    start(tmp_path, {"background": "power"})


def test_preparing_makes_the_folders_and_leaves_no_trial_file(tmp_path):
    folder = PredictionFolder(tmp_path / "deep" / "results", KINDS)
    folder.prepare({})
    assert sorted(path.name for path in folder.root.iterdir()) == ["maps", "masks"]
    assert file_names(tmp_path) == []


def test_errors_of_the_file_system_name_the_argument(tmp_path):
    folder = PredictionFolder(tmp_path, KINDS)
    cause = OSError(28, "No space left on device")
    with (
        pytest.raises(OutputError, match=rf"^output_dir='{tmp_path}' cannot be written to \(.*No space left") as caught,
        folder.output_errors(),
    ):
        raise cause
    assert caught.value.__cause__ is cause
    with pytest.raises(KeyError), folder.output_errors():
        raise KeyError("another")


def test_first_kind_decides_where_images_are_looked_for(tmp_path):
    masks = PredictionFolder(tmp_path, {"masks": ".png"})
    add(masks, "a", "masks")
    add(masks, "b", "maps")
    assert masks.complete_ids() == ["a"]
    assert PredictionFolder(tmp_path, {"maps": ".npz"}).complete_ids() == ["b"]


def test_overwriting_removes_what_another_setting_has_made(tmp_path):
    old = start(tmp_path, {"threshold": 0.2})
    for name in "abc":
        add(old, name)
    old.end()
    (tmp_path / "masks" / "notes.txt").touch()
    new = start(tmp_path, {"threshold": 0.9}, existing="overwrite")
    assert new.complete_ids() == []
    add(new, "c")
    new.end()
    assert file_names(tmp_path) == ["maps/c.npz", "masks/c.png", "masks/notes.txt", "predict.json"]
    same = start(tmp_path, {"threshold": 0.9}, existing="overwrite")
    assert same.complete_ids() == ["c"]  # of this setting too


def test_overwriting_that_was_cut_short_is_begun_anew(tmp_path):
    for _ in range(2):
        folder = start(tmp_path, {"threshold": 0.9}, existing="overwrite")
        assert folder.complete_ids() == []
        add(folder, "a")


@pytest.mark.parametrize("existing", ["skip", "overwrite"])
def test_files_of_unknown_origin_are_never_touched(tmp_path, existing):
    add(PredictionFolder(tmp_path, KINDS), "mine", "masks")
    with pytest.raises(OutputError, match=r"holds masks/mine.png but no predict.json.*remove it yourself"):
        start(tmp_path, {}, existing=existing)
    assert file_names(tmp_path) == ["masks/mine.png"]


def test_names_on_disk_match_ids_in_either_normal_form(tmp_path):
    folder = PredictionFolder(tmp_path, KINDS)
    add(folder, "caf\u00e9")
    assert folder.complete_ids() == ["caf\u00e9"]
    with pytest.MonkeyPatch.context() as patch:  # as a disk that keeps another form lists it and finds it
        patch.setattr(output_folder, "scan_names", lambda *_: iter([f"cafe\u0301{KINDS['masks']}"]))
        assert folder.complete_ids() == ["caf\u00e9"]
