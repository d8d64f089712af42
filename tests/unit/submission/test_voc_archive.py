"""The packed archive: what is in it, and that it is the same whenever it is packed."""

from __future__ import annotations

import hashlib
import os
import tarfile

import pytest
from tests.folder_contents import file_names
from tests.unit.submission.voc_results import SIZES, labels_of, make_results, save_mask

from rca_lightning.errors import ArgumentError, DataError
from rca_lightning.submission.voc import pack


def test_archive_holds_the_masks_under_the_names_of_the_server(tmp_path):
    folder = make_results(tmp_path)
    save_mask(folder / "other.png", labels_of("2007_000001"))
    pack(tmp_path, SIZES, tmp_path / "packed.tgz")
    with tarfile.open(tmp_path / "packed.tgz", "r:gz") as archive:
        members = archive.getmembers()
        assert [m.name for m in members] == [f"results/VOC2012/Segmentation/comp6_test_cls/{i}.png" for i in SIZES]
        for member, image_id in zip(members, SIZES, strict=True):
            assert archive.extractfile(member).read() == (folder / f"{image_id}.png").read_bytes()
            assert (member.mode, member.mtime, member.uid, member.uname) == (0o644, 0, 0, "")


def test_same_masks_give_the_same_bytes(tmp_path):
    digests = set()
    for name, order in (("a", list(SIZES)), ("b", list(SIZES)[::-1])):
        folder = make_results(tmp_path / name)
        for number, path in enumerate(folder.iterdir()):
            os.utime(path, (number, 10**9 + number))
            path.chmod(0o600)
        pack(tmp_path / name, order, tmp_path / f"{name}.tar.gz")
        digests.add(hashlib.sha256((tmp_path / f"{name}.tar.gz").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_failure_leaves_the_former_archive_whole(tmp_path):
    folder = make_results(tmp_path)
    pack(tmp_path, SIZES, tmp_path / "packed.tgz")
    before = (tmp_path / "packed.tgz").read_bytes()
    (folder / "2007_000003.png").unlink()
    with pytest.raises(FileNotFoundError):
        pack(tmp_path, SIZES, tmp_path / "packed.tgz")
    assert (tmp_path / "packed.tgz").read_bytes() == before
    assert not any(name.endswith(".part") for name in file_names(tmp_path))


@pytest.mark.parametrize("image_id", ["../../../../secret", "a/b", ".."])
def test_ids_that_could_leave_the_folder_are_refused(tmp_path, image_id):
    make_results(tmp_path / "out")
    (tmp_path / "out" / "secret.png").write_text("secret")
    with pytest.raises(DataError, match="is not a plain file name"):
        pack(tmp_path / "out", [image_id], tmp_path / "packed.tgz")
    assert not (tmp_path / "packed.tgz").exists()


def test_other_endings_are_refused(tmp_path):
    make_results(tmp_path)
    with pytest.raises(ArgumentError, match=r"pack=.*results\.zip.*\.tgz or \.tar\.gz"):
        pack(tmp_path, SIZES, tmp_path / "results.zip")


def test_folder_without_results_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"results=.*comp6_test_cls"):
        pack(tmp_path, SIZES, tmp_path / "packed.tgz")
