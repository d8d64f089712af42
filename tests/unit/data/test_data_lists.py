"""Id lists, tag files, class files, directory listings and VOC annotations."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from rca_lightning.data.classes import COCO_CATEGORIES, COCO_CLASSES, VOC_CLASSES, ClassIndex, read_class_file
from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.data.tag_files import read_id_list, read_tag_file
from rca_lightning.data.voc import read_xml_tags
from rca_lightning.errors import DataError, DatasetNotFoundError
from rca_lightning.io.listing import (
    check_image_id,
    iterate_lines,
    list_by_stem,
    list_images,
    locate,
    read_lines,
    scan_images,
)

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
        ("# label:color_rgb:parts:actions\nbackground:0,0,0::\n", "CVAT's label map; write the class name alone"),
        ("cat:128,0,0::\n", "'cat:128,0,0::' is a line of CVAT's label map"),
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


@pytest.mark.parametrize("name", ["background", "Background", "_background_", "__background__"])
def test_background_is_no_line_of_a_class_file(tmp_path: Path, name: str):
    with pytest.raises(DataError, match=f"'{name.lower()}' is mask value 0 by itself; leave its line out"):
        read_class_file(write(tmp_path / "c.txt", f"{name}\ncat\n"))


def test_ignore_is_no_line_of_a_class_file(tmp_path: Path):
    with pytest.raises(DataError, match="'__ignore__' is mask value 255 by itself; leave its line out"):
        read_class_file(write(tmp_path / "labels.txt", "__ignore__\n_background_\ncat\n"))  # of labelme


@pytest.mark.parametrize("name", ["_background_", "background", "__ignore__"])
def test_background_is_no_tag(tmp_path: Path, name: str):
    with pytest.raises(DataError, match=f"line 2: '{name}' is no class but mask value (0|255); leave it out"):
        read_tag_file(write(tmp_path / "t.csv", f"image,tags\na,{name}\n"), PETS)


@pytest.mark.parametrize(
    "text",
    [
        '"image","tags"\n"a","cat;dog"\nb,\n',
        "\ufeffimage,tags\r\na,cat;dog\r\nb,\r\n",
        '\ufeff"image";"tags"\n"a";"cat;dog"\nb;\n',
        "image;tags\na;cat;dog\nb;\n",
        "image;tags;;\na;cat;dog;\nb;;;\n",
        "image,tags,\na,cat;dog,\nb,,\n",
    ],
)
def test_tables_as_spreadsheets_write_them(tmp_path: Path, text: str):
    assert read_tag_file(write(tmp_path / "t.csv", text), PETS) == {"a": (0, 1), "b": ()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image\ttags\na\tcat\n", "the first line has to be 'image,tags'"),
        ("image;tags\na,cat\n", "line 2: 1 columns instead of 2"),
        ("image,tags\na;cat\n", "line 2: 1 columns instead of 2"),
        ("image;tags\na;cat,dog\n", "line 2: unknown tag 'cat,dog'"),
        (b"image,tags\na,caf\xe9\n", "not UTF-8 text"),
    ],
)
def test_tables_of_another_form_are_refused(tmp_path: Path, text: str | bytes, message: str):
    with pytest.raises(DataError, match=message):
        read_tag_file(write(tmp_path / "t.csv", text), PETS)


ONE, TWO = unicodedata.normalize("NFC", "caf\u00e9"), unicodedata.normalize("NFD", "caf\u00e9")  # one sign, two signs


@pytest.mark.parametrize(("disk", "text"), [(ONE, TWO), (TWO, ONE)])
def test_names_match_in_either_normal_form(tmp_path: Path, disk: str, text: str):
    for folder, ending in (("images", "jpg"), ("masks", "png"), ("maps", "png")):
        (tmp_path / folder).mkdir()
        Image.new("RGB" if folder == "images" else "L", (30, 20), 1).save(tmp_path / folder / f"{disk}.{ending}")
    write(tmp_path / "classes.txt", f"{disk} au lait\ntea\n")
    write(tmp_path / "tags.csv", f"image,tags\n{text}.jpg,{text} au lait\n")
    write(tmp_path / "ids.txt", text)
    lists = {"train": "ids.txt", "val": "ids.txt"}
    data = WSSSDataModule("folder", tmp_path, split_files=lists, saliency_dir="maps", num_workers=0)
    assert data.class_names == [f"{ONE} au lait", "tea"]
    data.setup("validate")
    (record,) = data._eval.records
    assert (record.image_id, record.tags) == (ONE, (0,))
    assert record.mask is not None
    assert record.saliency is not None
    assert data._eval[0]["image"].shape == (3, 20, 30)


def test_two_images_of_one_name_in_two_normal_forms(tmp_path: Path):
    for name in (ONE, TWO):
        write(tmp_path / f"{name}.jpg", "")
    with pytest.raises(DataError, match="would share the id"):
        list_by_stem(tmp_path, {".jpg"})


def test_images_of_other_endings_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for name in ("a.jpg", "b.gif", "c.HEIC", "d.txt", ".e.gif"):
        write(tmp_path / name, "")
    for _ in range(2):
        assert list(list_images(tmp_path)) == ["a"]
    (warning,) = caplog.messages
    assert warning == (
        f"{tmp_path}: left out, for only .bmp, .jpeg, .jpg, .png, .tif, .tiff, .webp are read here: 2 images, such as "
        "b.gif; convert them"
    )


def test_masks_of_other_endings_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        Image.new("L", (30, 20)).save(tmp_path / folder / "a.bmp")
    write(tmp_path / "classes.txt", "cat")
    WSSSDataModule("folder", tmp_path).setup("predict")
    assert f"{tmp_path / 'masks'}: left out, for only .png are read here: 1 images, such as a.bmp" in caplog.text


def test_lines_are_read_one_by_one_with_their_numbers(tmp_path: Path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\n\r\n  b \x0bc\ne\xcc\x81\n")
    assert read_lines(path, what="list") == [(1, "a"), (3, "b"), (4, "c"), (5, "\u00e9")]
    lines = iterate_lines(path, what="list")
    path.write_bytes(b"one\ntwo\n\xff\n")
    assert [next(lines), next(lines)] == [(1, "one"), (2, "two")]
    with pytest.raises(DataError, match=r"not UTF-8 text .* at byte 8"):
        next(lines)


def test_images_are_scanned_one_by_one_and_others_are_told_of(tmp_path: Path, caplog):
    for name in ("b.JPG", "a.png", ".hidden.png", "c.gif", "d.heic", "notes.txt"):
        (tmp_path / name).touch()
    assert sorted(scan_images(tmp_path)) == [("a", "a.png"), ("b", "b.JPG")]
    assert "2 images, such as c.gif; convert them" in caplog.text
    assert list_images(tmp_path) == {"a": tmp_path / "a.png", "b": tmp_path / "b.JPG"}
