"""`rca convert`: its one line, and one line for whatever is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.folder_contents import file_names
from tests.unit.exchange.exchange_readers import read_coco

from rca_lightning.cli.convert import main
from rca_lightning.errors import ArgumentError, DataError, DatasetNotFoundError, OutputError, RCAError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside pycocotools

LABEL = np.array([[0, 1, 1, 0], [255, 0, 0, 2], [255, 2, 0, 0]], dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Label images a and b, photographs a, b and c, and a class list."""
    monkeypatch.chdir(tmp_path)
    for name in ("labels", "photographs"):
        Path(name).mkdir()
    for image_id in "ab":
        Image.fromarray(LABEL).save(f"labels/{image_id}.png")
    for image_id in "abc":
        Image.new("RGB", (4, 3)).save(f"photographs/{image_id}.JPG")
    Path("classes.txt").write_text("cat\ndog\n")
    return tmp_path


def convert(to: str, *words: str) -> None:
    main(["labels", "--images", "photographs", "--to", to, "--out", "out", *words])


@pytest.mark.parametrize(
    ("to", "files", "regions", "made"),
    [
        ("coco", "out/instances.json", 6, ["instances.json"]),
        ("coco --polygons", "out/instances.json", 6, ["instances.json"]),
        ("yolo", "out/data.yaml", 6, ["data.yaml", "images/a.JPG", "images/b.JPG", "labels/a.txt", "labels/b.txt"]),
        ("labelme", "out", 6, ["a.json", "b.json"]),
        ("labelstudio", "out/tasks.json, out/config.xml", 4, ["config.xml", "tasks.json"]),
        (
            "labelstudio --polygons --image_url s3://x/",
            "out/tasks.json, out/config.xml",
            6,
            ["config.xml", "tasks.json"],
        ),
    ],
)
def test_line_tells_what_was_written_and_left_out(folder, capsys, to, files, regions, made):
    convert(*to.split(), "--classes", "classes.txt")
    assert capsys.readouterr().out == (
        f"converted: 2 labels to {files} ({regions} regions; 4 pixels of 255 in 2 labels are in none; "
        "1 photographs have no label)\n"
    )
    assert file_names(folder / "out") == made


def test_line_has_nothing_to_say_of_what_does_not_occur(folder, capsys):
    for image_id in "ab":
        Image.fromarray(np.where(LABEL == 255, 0, LABEL)).save(f"labels/{image_id}.png")
    Path("photographs/c.JPG").unlink()
    convert("coco")
    assert capsys.readouterr().out == "converted: 2 labels to out/instances.json (6 regions)\n"


def test_classes_of_the_prediction_are_those_of_the_labels(folder):
    Path("predict.json").write_text(json.dumps({"class_names": ["cow", "hen"]}))
    convert("coco")  # before classes.txt, which may be of something else
    assert [one["name"] for one in json.loads(Path("out/instances.json").read_text())["categories"]] == ["cow", "hen"]
    with pytest.raises(DataError, match=r"class 1 is 'cow' in the labels, 'cat' in classes\.txt; give the list they"):
        convert("coco", "--classes", "classes.txt")


def upright(path: Path, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", size).save(path, exif=exif)


def test_photographs_are_turned_upright_before_sizes_are_compared(folder):
    upright(Path("photographs/a.JPG"), (3, 4))
    convert("coco")
    assert np.array_equal(read_coco(Path("out"), ["a", "b"])["a"], np.where(LABEL == 255, 0, LABEL))


def break_size() -> None:
    Image.new("RGB", (5, 3)).save("photographs/b.JPG")


def break_value() -> None:
    Image.fromarray(LABEL + (LABEL == 1) * np.uint8(2)).save("labels/b.png")


def break_content() -> None:
    Image.fromarray(LABEL).save("labels/b.png", format="BMP")


def break_ending() -> None:
    Image.fromarray(LABEL).save("labels/c.jpg")


def break_file() -> None:
    Path("labels/b.png").write_bytes(b"no picture")


def break_colours() -> None:
    Image.new("RGB", (4, 3)).save("labels/b.png")


def take_photographs() -> None:
    Path("photographs/b.JPG").unlink()


def take_labels() -> None:
    for image_id in "ab":
        Path(f"labels/{image_id}.png").unlink()


def take_folder(name: str) -> None:
    os.rename(name, "elsewhere")  # noqa: PTH104


def take_classes() -> None:
    Path("classes.txt").unlink()


def out_is_a_file() -> None:
    Path("out").write_text("mine")


@pytest.mark.parametrize("to", ["coco", "yolo", "labelme", "labelstudio"])
@pytest.mark.parametrize(
    ("spoil", "kind", "expected"),
    [
        (break_size, DataError, r"labels/b\.png is 4 x 3 pixels, but its image photographs/b\.JPG is 5 x 3"),
        (break_value, DataError, r"labels/b\.png: values \[3\] in the mask; only 0\.\.2 and 255"),
        (break_content, DataError, r"labels/b\.png: a BMP file by its content; save the label image as PNG"),
        (break_ending, DataError, r"labels='labels': label images are PNG files, c\.jpg is not"),
        (break_file, DataError, r"labels/b\.png: not an image"),
        (break_colours, DataError, r"labels/b\.png: a colour image"),
        (
            take_photographs,
            DatasetNotFoundError,
            r"images='photographs': no photograph for 1 of 2 .* of the ids b; give",
        ),
        (take_labels, DataError, r"labels='labels': no label image <id>\.png in it; give"),
        (lambda: take_folder("labels"), DatasetNotFoundError, r"labels='labels': no such folder; give"),
        (lambda: take_folder("photographs"), DatasetNotFoundError, r"images='photographs': no such folder; give"),
        (take_classes, ArgumentError, r"classes=None: no class list beside labels; give one name a line"),
        (out_is_a_file, OutputError, r"out='out' cannot be written to .*; give a folder"),
    ],
)
def test_what_is_wrong_is_one_line(folder, capsys, to, spoil, kind, expected):
    spoil()
    with pytest.raises(kind, match=f"^{expected}") as caught:
        convert(to)
    assert isinstance(caught.value, RCAError)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""
    if to in {"coco", "labelstudio"} and Path("out").is_dir():
        assert file_names(Path("out")) == []


@pytest.mark.parametrize(
    ("to", "words", "expected"),
    [
        ("yolo", ["--polygons"], r"polygons=True: --to yolo has no use for it"),
        ("coco", ["--image_url", "x"], r"image_url='x': --to coco has no use for it"),
        ("coco", ["--classes", "none.txt"], r"class_file='none\.txt': no such file"),
    ],
)
def test_arguments_that_cannot_be_used(folder, to, words, expected):
    with pytest.raises((ArgumentError, DatasetNotFoundError), match=expected):
        convert(to, *words)
    assert not Path("out").exists()


def test_disk_that_fills_up_is_one_line(folder, monkeypatch):
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(main.__globals__["_WRITERS"], "coco", full)
    with pytest.raises(OutputError, match=r"^out='out' cannot be written to \(\[Errno 28\] No space left on device\)"):
        convert("coco")


@pytest.mark.parametrize("text", ["", "labels", "labels --images x --out y", "labels --images x --out y --to pascal"])
def test_words_that_cannot_be_parsed(text, capsys):
    with pytest.raises(SystemExit) as caught:
        main(text.split())
    assert caught.value.code == 2
    assert "rca convert: error:" in capsys.readouterr().err


def test_help_fits_a_screen(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    told = capsys.readouterr().out
    assert all(word in told for word in ("--images", "--to", "--classes", "--out", "--polygons", "--image_url", "255"))
    assert len(told.splitlines()) <= 40
