"""Id lists, tag files, class files, directory listings and VOC annotations."""

from __future__ import annotations

from pathlib import Path

import pytest

from rca_lightning.data.classes import COCO_CATEGORIES, COCO_CLASSES, VOC_CLASSES, ClassIndex, read_class_file
from rca_lightning.data.tag_files import read_id_list, read_tag_file
from rca_lightning.data.voc import read_xml_tags
from rca_lightning.errors import DataError, DatasetNotFoundError
from rca_lightning.io.listing import check_image_id, list_by_stem, locate

PETS = ClassIndex(["cat", "dog", "guinea pig"])


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_class_tables() -> None:
    assert len(VOC_CLASSES) == 20
    assert VOC_CLASSES[14] == "person"
    assert len(COCO_CLASSES) == 80
    assert list(COCO_CATEGORIES) == sorted(COCO_CATEGORIES)
    assert max(COCO_CATEGORIES) == 90


def test_id_list_plain_and_sbd_lines(tmp_path: Path) -> None:
    text = (
        "\ufeff2007_000032\r\n\r\n/JPEGImages/2007_000033.jpg /SegmentationClassAug/2007_000033.png\nJPEGImages/a.jpg\n"
    )
    assert read_id_list(write(tmp_path / "ids.txt", text)) == ["2007_000032", "2007_000033", "a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no image id"),
        ("a\nb\na\n", r"line 3.*'a'.*line 1"),
        ("../secret\n", r"line 1.*'\.\./secret'.*plain file name"),
        ("..\n", "plain file name"),
        ("/etc/passwd\n", "plain file name"),
        ("a\\b\n", "plain file name"),
        ("/JPEGImages/../a.jpg\n", "plain file name"),
        ("/JPEGImages/a.jpg /SegmentationClassAug/b.png\n", "paired with the mask of 'b'"),
        (b"\xff\xfe\x00a", "not UTF-8"),
    ],
)
def test_bad_id_list(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_id_list(write(tmp_path / "ids.txt", text))


def test_missing_id_list_names_argument_and_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"split_files='.*none\.txt'"):
        read_id_list(tmp_path / "none.txt")


@pytest.mark.parametrize("image_id", ["", ".", "..", "a/b", "a\\b", "a\x00b", "a\nb"])
def test_unsafe_image_ids(image_id: str) -> None:
    with pytest.raises(DataError, match="plain file name"):
        check_image_id(image_id, where="here")


def test_safe_image_ids() -> None:
    for image_id in ("2007_000032", "a..b", "holiday photo 3", "übung"):
        assert check_image_id(image_id, where="here") == image_id


def test_tags_from_text_and_csv_agree(tmp_path: Path) -> None:
    text = read_tag_file(write(tmp_path / "t.txt", "a dog cat dog\nb.JPG cat\nc\n"), PETS)
    table = read_tag_file(write(tmp_path / "t.csv", "image, tags\na.png,dog; cat;dog\nb,cat\nc,\n"), PETS)
    assert text == table == {"a": (0, 1), "b": (0,), "c": ()}


def test_csv_holds_names_with_spaces(tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", 'image,tags\n"a, b.jpg","guinea pig;dog"\n')
    assert read_tag_file(file, PETS) == {"a, b": (1, 2)}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.txt", "a cat\nb dgo\n", r"t\.txt, line 2: unknown tag 'dgo'; did you mean 'dog'"),
        ("t.txt", "a Cat\n", "did you mean 'cat'"),
        ("t.txt", "a xyzzy\n", "the classes are cat, dog, guinea pig"),
        ("t.csv", "image,tags\na,cat\nb,giunea pig\n", r"t\.csv, line 3: unknown tag 'giunea pig'.*'guinea pig'"),
        ("t.csv", "file,label\na,cat\n", "header is 'file,label'.*image,tags"),
        ("t.csv", "", "header is ''"),
        ("t.csv", "image,tags\na,cat,dog\n", "line 2: 3 columns"),
        ("t.txt", "a cat\na.jpg dog\n", "line 2.*'a'.*earlier line"),
        ("t.txt", "../a cat\n", "plain file name"),
    ],
)
def test_bad_tag_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_tag_file(write(tmp_path / name, text), PETS)


def test_class_file(tmp_path: Path) -> None:
    assert read_class_file(write(tmp_path / "c.txt", "cat\n\nguinea pig \n")) == ("cat", "guinea pig")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n", "no class name"),
        ("cat\ndog\ncat\n", "'cat' stands there more than once"),
    ],
)
def test_bad_class_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_class_file(write(tmp_path / "c.txt", text))


def test_listing_takes_images_only(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.b.png", "notes.txt", ".hidden.png"):
        write(tmp_path / name, "")
    found = list_by_stem(tmp_path, {".jpg", ".png"})
    assert found == {"a.b": tmp_path / "a.b.png", "b": tmp_path / "b.JPG"}


def test_listing_refuses_two_files_of_one_id(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png"):
        write(tmp_path / name, "")
    with pytest.raises(DataError, match=r"a\.jpg and a\.png would share the id 'a'"):
        list_by_stem(tmp_path, {".jpg", ".png"})


def test_relative_paths_prefer_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, root = tmp_path / "here", tmp_path / "root"
    here.mkdir()
    root.mkdir()
    monkeypatch.chdir(here)
    write(here / "only_here.txt", "")
    write(here / "both.txt", "")
    write(root / "both.txt", "")
    assert locate("both.txt", root) == root / "both.txt"
    assert locate("only_here.txt", root) == Path("only_here.txt")
    assert locate("nowhere.txt", root) == root / "nowhere.txt"
    assert locate(tmp_path / "x", root) == tmp_path / "x"


XML = (
    "<annotation><object><name>dog</name><part><name>head</name></part></object>"
    "<object><name>cat</name></object></annotation>"
)
LAUGHS = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;">]><annotation><object><name>&y;</name></object></annotation>'


def test_xml_tags_ignore_parts(tmp_path: Path) -> None:
    assert read_xml_tags(write(tmp_path / "a.xml", XML), PETS) == (0, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LAUGHS, "has a DOCTYPE"),
        (LAUGHS.encode("utf-16"), "has a DOCTYPE"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "has a DOCTYPE"),
        ("<annotation><object>", "not well-formed"),
        ("<annotation>" + " " * (1 << 20) + "</annotation>", "larger than"),
        (XML.replace("dog", "dgo"), r"a\.xml: unknown tag 'dgo'; did you mean 'dog'"),
    ],
)
def test_bad_xml(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_xml_tags(write(tmp_path / "a.xml", content), PETS)


@pytest.mark.parametrize("name", ["background", "Background"])
def test_background_is_no_line_of_a_class_file(tmp_path: Path, name: str):
    with pytest.raises(DataError, match="'background' is mask value 0 by itself; leave its line out"):
        read_class_file(write(tmp_path / "c.txt", f"{name}\ncat\n"))
