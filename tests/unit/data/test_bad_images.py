"""The list of images that were skipped, and what comes in their place."""

from __future__ import annotations

import csv
import fcntl
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from rca_lightning.data.bad_images import FILE_NAME, BadImages
from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.data.sample import SkippedImage
from rca_lightning.errors import ArgumentError, DataError


def begun(folder: Path | None, *, most: float = 1.0, size: int = 100) -> BadImages:
    bad = BadImages(most)
    bad.begin({"train": size}, folder=folder, first=False)
    return bad


def unread(*names: str, split: str = "train", reason: str = 'cut off, "twice"\u2028é') -> list[SkippedImage]:
    return [SkippedImage(split, name, reason) for name in names]


def rows(folder: Path) -> list[list[str]]:
    with (folder / FILE_NAME).open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def _note_many(folder: Path) -> None:
    bad = begun(folder)
    for number in range(40):
        bad.note(unread(f"image {number}"))


def test_each_image_stands_there_once_whichever_process_met_it(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_note_many, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    header, *found = rows(tmp_path)
    assert header == ["split", "image", "reason"]
    assert sorted(row[1] for row in found) == sorted(f"image {number}" for number in range(40))
    assert {row[2] for row in found} == {'cut off, "twice"\u2028é'}


def test_images_that_other_processes_met_count(tmp_path: Path):
    one, other = begun(tmp_path, most=0.02), begun(tmp_path, most=0.02)
    one.note(unread("a"))
    other.note(unread("a", "b"))
    with pytest.raises(DataError, match=rf"'train': 3 of 100 .*=0\.02 allows 2: a, b, c; {tmp_path}.* lists them"):
        one.note(unread("c"))


@pytest.mark.parametrize(("most", "size", "allowed"), [(0.0, 1000, 0), (0.01, 50, 1), (0.01, 1000, 10), (1.0, 3, 3)])
def test_how_many_may_be_bad(most: float, size: int, allowed: int):
    bad = begun(None, most=most, size=size)
    bad.note(unread(*map(str, range(allowed))))
    assert len(bad.skipped) == allowed
    with pytest.raises(DataError, match=f"{allowed + 1} of {size} images"):
        bad.note(unread("one more"))


def test_a_new_run_starts_the_list_of_its_splits_anew(tmp_path: Path):
    begun(tmp_path).note([*unread("a"), *unread("b", split="val")])
    again = BadImages(0.0)
    again.begin({"train": 10}, folder=tmp_path, first=True)
    assert [row[:2] for row in rows(tmp_path)[1:]] == [["val", "b"]]
    assert again.skipped == []


@pytest.mark.parametrize("most", [-0.1, 1.5, float("nan")])
def test_a_limit_that_is_no_share_is_refused(most: float):
    with pytest.raises(ArgumentError, match="max_bad_images"):
        BadImages(most)


@pytest.fixture
def bad_voc(make_voc: Callable[..., Path]) -> Path:
    """Of seven images 1 and 2 are cut off, of 4 the mask has another size, and 6 is gone once it was listed."""
    root = make_voc(7)
    for number in (1, 2):
        path = root / "JPEGImages" / f"img_00{number}.jpg"
        path.write_bytes(path.read_bytes()[:300])
    Image.new("L", (5, 5)).save(root / "SegmentationClass" / "img_004.png")
    return root


def opened(root: Path, stage: str, **options) -> WSSSDataModule:
    given = {"batch_size": 7, "crop_size": 32, "num_workers": 0, "max_bad_images": 1.0, "on_bad_image": "skip"}
    data = WSSSDataModule("voc2012", root, **(given | options))
    data.setup(stage)
    (root / "JPEGImages" / "img_006.jpg").unlink()
    return data


def test_the_next_good_image_comes_in_the_place_of_a_bad_one(bad_voc: Path):
    data = opened(bad_voc, "fit", shuffle=False)
    (batch,) = data.train_dataloader()
    assert [name[-1] for name in batch["image_id"]] == ["0", "3", "3", "3", "5", "5", "0"]
    assert batch["image"].shape == (7, 3, 32, 32)
    assert not torch.equal(batch["image"][1], batch["image"][2])  # each place has a crop of its own
    data.on_before_batch_transfer(batch, 0)
    assert "unread" not in batch
    assert [image.image_id[-1] for image in data.bad_images.skipped] == ["1", "2", "4", "6"]


def test_crops_depend_on_no_worker(bad_voc: Path):
    data = opened(bad_voc, "fit", batch_size=3)
    (first, second) = data.train_dataloader()
    data.num_workers = 2
    for one, other in zip((first, second), data.train_dataloader(), strict=True):
        assert one["image_id"] == other["image_id"]
        assert torch.equal(one["image"], other["image"])
        assert one.get("unread") == other.get("unread")


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_leaves_bad_images_out(bad_voc: Path, batch_size: int, workers: int):
    data = opened(bad_voc, "validate", eval_batch_size=batch_size, num_workers=workers)
    loader = data.val_dataloader()
    batches = [data.on_before_batch_transfer(batch, 0) for batch in loader]
    assert len(batches) == len(loader)  # ranks stay in step
    assert sorted(name[-1] for batch in batches for name in batch["image_id"]) == ["0", "3", "5"]
    assert sorted(image.image_id[-1] for image in data.bad_images.skipped) == ["1", "2", "4", "6"]
    for batch in batches:
        count = len(batch["image_id"])
        assert batch["image"].shape[:2] == (count, 3)
        assert batch["tags"].shape == (count, 20)
        assert batch["original_size"].shape == (count, 2)


def test_when_none_can_be_read_training_ends(make_voc: Callable[..., Path]):
    root = make_voc(3)
    data = WSSSDataModule("voc2012", root, on_bad_image="skip", max_bad_images=1.0, num_workers=0)
    data.setup("fit")
    for path in (root / "JPEGImages").iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"none of its 3 images can be read: .*not an image"):
        next(iter(data.train_dataloader()))


def test_an_unknown_word_is_refused(tmp_path: Path):
    with pytest.raises(ArgumentError, match="on_bad_image='ignore': give one of raise, skip"):
        WSSSDataModule("voc2012", tmp_path, on_bad_image="ignore")


def test_file_system_without_locks_is_no_reason_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_lock(file: int, how: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_lock)
    bad = begun(tmp_path)
    bad.note(unread("a"))
    bad.note(unread("a", "b"))
    assert [row[1] for row in rows(tmp_path)] == ["image", "a", "b"]


def test_list_that_cannot_be_written_is_kept_in_mind(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").touch()
    bad = begun(tmp_path / "file" / "below", most=0.02)
    bad.note(unread("a"))
    bad.note(unread("b"))
    assert sum("cannot be written" in record.getMessage() for record in caplog.records) == 1
    with pytest.raises(DataError, match="3 of 100"):
        bad.note(unread("c"))


def test_list_of_an_earlier_run_that_is_read_only_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    begun(tmp_path).note(unread("a"))
    before = rows(tmp_path)

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    bad = begun(tmp_path / "elsewhere")
    monkeypatch.setattr(Path, "open", read_only)
    bad.begin({"val": 100}, folder=tmp_path, first=True)
    bad.note(unread("b"))
    bad.summarise()
    assert caplog.text.count("cannot be written ([Errno 30] Read-only file system)") == 1
    monkeypatch.undo()
    assert rows(tmp_path) == before
