"""The kept index of COCO: the same records, of the same sources only, whatever lies in the cache folder."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_files import write_coco

from rca_lightning.data import coco, coco_index
from rca_lightning.data.coco import COCOSource
from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.data.records import RecordTable
from rca_lightning.errors import DataError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RCA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(coco_index, "SMALL", 0)
    return write_coco(tmp_path / "coco")


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The annotation files that were parsed."""
    read, seen = coco._read_instances, []
    monkeypatch.setattr(coco, "_read_instances", lambda path: (seen.append(path), read(path))[1])
    return seen


def records(root: Path, *, with_masks: bool = True, split: str = "train", **options: Any) -> RecordTable:
    return COCOSource(root, year=2017, **options).records(split, with_masks=with_masks)


def kept(root: Path) -> list[Path]:
    return sorted((root.parent / "cache" / "index").iterdir())


@pytest.mark.parametrize("with_masks", [True, False])
def test_same_records_with_and_without_it(
    root: Path, parsed: list[Path], monkeypatch: pytest.MonkeyPatch, with_masks: bool
) -> None:
    monkeypatch.setattr(coco_index, "SMALL", 1 << 30)
    fresh = list(records(root, with_masks=with_masks))
    assert len(fresh) == 12
    assert not (root.parent / "cache").exists()
    monkeypatch.setattr(coco_index, "SMALL", 0)
    first, second = records(root, with_masks=with_masks), records(root, with_masks=with_masks)
    assert len(parsed) == 2
    assert len(kept(root)) == 1
    assert list(first) == list(second) == fresh
    for one, other in zip(fresh, second, strict=True):
        assert (one.mask is not None) == (other.mask is not None) == with_masks
        if with_masks:
            np.testing.assert_array_equal(one.mask.draw(), other.mask.draw())


def touch_annotations(root: Path, options: dict[str, Any]) -> None:
    os.utime(root / "annotations" / "instances_train2017.json", ns=(1, 1))


def grow_annotations(root: Path, options: dict[str, Any]) -> None:
    path = root / "annotations" / "instances_train2017.json"
    status = path.stat()
    path.write_text(path.read_text() + " ")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def move_annotations(root: Path, options: dict[str, Any]) -> None:
    (root / "mine.json").write_bytes((root / "annotations" / "instances_train2017.json").read_bytes())
    options["annotation_file"] = "mine.json"


def rename_image(root: Path, options: dict[str, Any]) -> None:
    (root / "train2017" / f"{3:012d}.jpg").rename(root / "train2017" / f"{3:012d}.png")


def other_list(root: Path, options: dict[str, Any]) -> None:
    (root / "list.txt").write_text(f"{1:012d}\n{2:012d}\n")


def other_tags(root: Path, options: dict[str, Any]) -> None:
    (root / "tags.csv").write_text(f"image,tags\n{1:012d},dog\n")


def other_folder(root: Path, options: dict[str, Any]) -> None:
    (root / "train2017").rename(root / "pictures")
    options["image_dir"] = "pictures"


def other_format(root: Path, options: dict[str, Any]) -> None:
    coco_index.FORMAT_VERSION += 1


@pytest.mark.parametrize(
    "change",
    [
        touch_annotations,
        grow_annotations,
        move_annotations,
        rename_image,
        other_list,
        other_tags,
        other_folder,
        other_format,
    ],
)
def test_built_anew_when_a_source_changes(
    root: Path, parsed: list[Path], monkeypatch: pytest.MonkeyPatch, change: Callable[..., None]
) -> None:
    monkeypatch.setattr(coco_index, "FORMAT_VERSION", coco_index.FORMAT_VERSION)
    (root / "list.txt").write_text("".join(f"{number:012d}\n" for number in range(5)))
    (root / "tags.csv").write_text(f"image,tags\n{1:012d},cat\n")
    options = {"split_files": {"train": "list.txt"}, "tags_file": "tags.csv"}
    before = list(records(root, **options))
    assert list(records(root, **options)) == before
    assert len(parsed) == 1
    change(root, options)
    after = list(records(root, **options))
    assert len(parsed) == 2
    monkeypatch.setattr(coco_index, "SMALL", 1 << 30)
    assert after == list(records(root, **options))


def test_masks_and_year_have_files_of_their_own(root: Path) -> None:
    records(root)
    records(root, with_masks=False)
    assert len(kept(root)) == 2
    COCOSource(root, year=2014, image_dir="train2017", annotation_file="annotations/instances_train2017.json").records(
        "train", with_masks=True
    )
    assert len(kept(root)) == 3


@pytest.mark.parametrize("content", [b"", b"\x80\x04]q\x00.", b"RCAINDEX" + bytes(90)])
def test_strange_files_are_replaced_without_a_warning(
    root: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    expected = list(records(root))
    (path,) = kept(root)
    good = path.read_bytes()
    path.write_bytes(content)
    assert list(records(root)) == expected
    assert path.read_bytes() == good
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_unwritable_folder_is_said_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root.parent / "cache").write_text("a file where the folder should be")
    first = list(records(root))
    assert list(records(root)) == first
    assert len(first) == 12
    (warning,) = [record for record in caplog.records if record.levelno > logging.INFO]
    assert "no index of COCO is kept" in warning.getMessage()


def test_errors_of_fresh_data_stay(root: Path) -> None:
    records(root)
    (root / "train2017" / f"{3:012d}.jpg").unlink()
    with pytest.raises(DataError, match="1 of the images"):
        records(root)


def start(root: Path, barrier: Any, answers: Any) -> None:
    coco_index.SMALL = 0
    read = coco._read_instances

    def noted(path: Path) -> Any:
        (root / f"parsed-{os.getpid()}").touch()
        time.sleep(0.5)  # as long as it takes the others to look
        return read(path)

    coco._read_instances = noted
    source = COCOSource(root, year=2017)
    barrier.wait()
    answers.put([(record.image_id, record.tags) for record in source.records("train", with_masks=True)])


def test_of_processes_that_start_at_once_one_builds(root: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(4), context.Queue()
    processes = [context.Process(target=start, args=(root, barrier, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    expected = [(record.image_id, record.tags) for record in records(root)]
    assert found == [expected] * 4
    assert len(list(root.glob("parsed-*"))) == 1
    assert [path.suffix for path in kept(root)] == [".bin"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_loader_processes_read_the_same(root: Path, method: str) -> None:
    records(root)
    data = WSSSDataModule("coco2017", root, eval_split="train", num_workers=0)
    data.setup("validate")
    loader = data.val_dataloader()
    dataset = loader.dataset
    assert len(pickle.dumps(dataset)) < 5000 < (kept(root)[0].stat().st_size)
    expected = [dataset[index] for index in range(len(dataset))]
    context = multiprocessing.get_context(method)
    with context.Pool(1) as pool:
        found = pool.map(dataset.__getitem__, range(len(dataset)))
    for one, other in zip(expected, found, strict=True):
        assert one["image_id"] == other["image_id"]
        np.testing.assert_array_equal(one["tags"].numpy(), other["tags"].numpy())
        np.testing.assert_array_equal(one["mask"].numpy(), other["mask"].numpy())
