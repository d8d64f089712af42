"""Photographs of a folder and where their tags come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.unit.data.test_keyword_tags import packet

from rca_lightning.data.tagged_folder import read_tagged_folder
from rca_lightning.errors import DataError, DatasetNotFoundError


def photograph(path: Path, value: int = 0, *keywords: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"xmp": packet(*keywords)} if keywords else {}
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path, **options)


def read(root: Path, **options):
    return read_tagged_folder(root, catalogue=root.parent / "catalogue", **options)


def test_a_tag_file_comes_first_and_classes_are_its_tags(tmp_path: Path):
    root = tmp_path / "p"
    photograph(root / "images" / "a.jpg", 0, "keyword")
    photograph(root / "images" / "b.jpg")
    photograph(root / "images" / "c.jpg")
    (root / "tags.csv").write_text("image,tags\na,dog;Cat\nb,\n")
    folder = read(root)
    assert (folder.facts.origin, folder.facts.class_names) == ("file", ("Cat", "dog"))
    assert folder.tags == {"a": (0, 1), "b": ()}
    assert list(folder.images) == ["a", "b", "c"]
    assert folder.images["b"] == root / "images" / "b.jpg"
    (root / "other.txt").write_text("c cow\n")
    assert read(root, tags_file="other.txt").tags == {"c": (0,)}


def test_a_misspelt_tag_names_the_nearest_class(tmp_path: Path):
    photograph(tmp_path / "p" / "a.jpg")
    (tmp_path / "p" / "tags.csv").write_text("image,tags\na,elefant\n")
    (tmp_path / "p" / "classes.txt").write_text("cow\nelephant\n")
    with pytest.raises(DataError, match=r"tags.csv, line 2: unknown tag 'elefant'; did you mean 'elephant'\?"):
        read(tmp_path / "p")


def test_subfolders_with_one_photograph_of_two_classes_and_two_of_one_name(tmp_path: Path):
    root = tmp_path / "p"
    photograph(root / "cat" / "a.jpg", 1)
    photograph(root / "dog" / "a.jpg", 1)  # the same photograph
    photograph(root / "cat" / "b.png", 2)
    photograph(root / "dog" / "b.png", 3)  # another
    photograph(root / "background" / "c.jpg", 4)
    photograph(root / "masks" / "d.jpg", 5)
    folder = read(root, exclude=[root / "masks"])
    assert (folder.facts.origin, folder.facts.class_names) == ("subfolders", ("cat", "dog"))
    assert folder.tags == {"a": (0, 1), "cat_b": (0,), "dog_b": (1,), "c": ()}
    assert dict(folder.images) == {
        "a": root / "cat" / "a.jpg",
        "c": root / "background" / "c.jpg",
        "cat_b": root / "cat" / "b.png",
        "dog_b": root / "dog" / "b.png",
    }
    (root / "background" / "c.jpg").unlink()
    assert "c" not in read(root, exclude=[root / "masks"]).images


def test_keywords_and_those_that_are_no_class(tmp_path: Path, caplog):
    root = tmp_path / "p"
    photograph(root / "a.jpg", 0, "dog", "holiday")
    photograph(root / "b.jpg", 0, "cat")
    photograph(root / "c.jpg")
    folder = read(root)
    assert (folder.facts.origin, folder.facts.class_names) == ("keywords", ("cat", "dog", "holiday"))
    assert folder.tags == {"a": (1, 2), "b": (0,)}
    (tmp_path / "list.txt").write_text("dog\ncat\n")
    assert read(root, class_file=str(tmp_path / "list.txt")).tags == {"a": (0,), "b": (1,)}
    assert "holiday (1)" in caplog.text


def test_what_cannot_be_used_is_one_clear_error(tmp_path: Path):
    with pytest.raises(DatasetNotFoundError, match="no such folder"):
        read(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no photograph in it"):
        read(tmp_path / "empty")
    photograph(tmp_path / "p" / "a.jpg")
    with pytest.raises(DataError, match=r"no tags found: no tags.csv .* write tags.csv"):
        read(tmp_path / "p")
    (tmp_path / "p" / "tags.csv").write_text("image,tags\na,dog;Dog\n")
    with pytest.raises(DataError, match="differ in case only"):
        read(tmp_path / "p")
    (tmp_path / "p" / "tags.csv").write_text("image,tags\nabsent,dog\n")
    with pytest.raises(DataError, match="not in"):
        read(tmp_path / "p")
