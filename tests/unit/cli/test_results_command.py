"""`rca check`: its words, its one line, and that nothing is packed that has a fault."""

from __future__ import annotations

import json
import tarfile

import pytest
from tests.folder_contents import file_names
from tests.unit.submission.voc_results import SIZES, make_photographs, make_results

from rca_lightning.cli.check import main
from rca_lightning.data.classes import VOC_CLASSES
from rca_lightning.errors import ArgumentError, DataError, OutputError, ResultsError


@pytest.fixture
def words(tmp_path) -> list[str]:
    root = make_photographs(tmp_path / "VOC2012")
    make_results(tmp_path / "out")
    return f"--layout voc2012 --results {tmp_path}/out --ids {root}/ids.txt --root {root}".split()


def test_one_line_and_the_archive(tmp_path, words, capsys):
    main([*words, "--pack", str(tmp_path / "results.tgz")])
    assert capsys.readouterr().out == (f"3 images pass; found: 0, 1, 2, 3, 20\npacked: {tmp_path / 'results.tgz'}\n")
    with tarfile.open(tmp_path / "results.tgz") as archive:
        assert len(archive.getnames()) == len(SIZES)


def test_nothing_is_packed_unless_asked(tmp_path, words, capsys):
    before = file_names(tmp_path)
    main(words)
    assert capsys.readouterr().out == "3 images pass; found: 0, 1, 2, 3, 20\n"
    assert file_names(tmp_path) == before


def test_a_fault_keeps_the_archive_from_being_packed(tmp_path, words, capsys):
    with pytest.raises(ResultsError, match="3 with values above 19"):
        main([*words, "--num_classes", "19", "--pack", str(tmp_path / "results.tgz")])
    assert not (tmp_path / "results.tgz").exists()
    assert capsys.readouterr().out == ""


def test_archive_that_cannot_be_written_is_named(tmp_path, words):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"pack='.*file/results\.tgz' cannot be written"):
        main([*words, "--pack", str(tmp_path / "file" / "results.tgz")])


def test_ids_that_leave_the_folder_are_named_with_their_line(tmp_path, words):
    (tmp_path / "VOC2012" / "ids.txt").write_text("2007_000001\n../../etc/passwd\n")
    with pytest.raises(DataError, match=r"ids\.txt, line 2: .*is not a plain file name"):
        main(words)


def test_masks_of_another_class_order_are_not_for_the_server(tmp_path, words):
    names = list(VOC_CLASSES)
    (tmp_path / "out" / "predict.json").write_text(json.dumps({"class_names": names}))
    main(words)
    names[:2] = reversed(names[:2])
    (tmp_path / "out" / "predict.json").write_text(json.dumps({"class_names": names}))
    with pytest.raises(DataError, match="class 1 is 'bicycle' in the results, 'aeroplane' in VOC 2012"):
        main(words)
    main([*words, "--num_classes", "20"])  # of a data set of one's own


def test_coco(tmp_path, capsys):
    annotations = tmp_path / "instances.json"
    annotations.write_text(
        json.dumps({"images": [{"id": 7, "height": 2, "width": 2}], "categories": [{"id": 1}, {"id": 3}]})
    )
    entry = {"image_id": 7, "category_id": 3, "segmentation": {"size": [2, 2], "counts": "22"}, "score": 0.5}
    results = tmp_path / "coco_results.json"
    results.write_text(json.dumps([entry]))
    words = f"--layout coco --results {results} --annotations {annotations}".split()
    main(words)
    assert capsys.readouterr().out == "1 images pass; found: 3\n"
    results.write_text(json.dumps([entry | {"score": 5}]))
    with pytest.raises(ResultsError, match="1 with a score out of"):
        main(words)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (["--num_classes", "0"], r"num_classes=0: give a number from 1 to 254"),
        (["--num_classes", "255"], r"num_classes=255"),
        (["--annotations", "x.json"], r"annotations='x.json': --layout voc2012 has no use for it"),
        (["--pack", "x.zip"], r"pack='x.zip': .*\.tgz"),
    ],
)
def test_words_that_make_no_sense_together(words, change, expected):
    with pytest.raises(ArgumentError, match=expected):
        main([*words, *change])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--layout voc2012 --results x --ids y", "root=None: give --root; --layout voc2012 needs it"),
        ("--layout voc2012 --results x --root y", "ids=None: give --ids"),
        ("--layout coco --results x", "annotations=None: give --annotations; --layout coco needs it"),
        ("--layout coco --results x --annotations y --pack z.tgz", "pack='z.tgz': --layout coco has no use"),
    ],
)
def test_words_that_are_missing(text, expected):
    with pytest.raises(ArgumentError, match=expected):
        main(text.split())


@pytest.mark.parametrize("text", ["", "--layout other --results x", "--layout coco", "--layout coco --res x", "y"])
def test_words_that_cannot_be_parsed(text, capsys):
    with pytest.raises(SystemExit) as caught:
        main(text.split())
    assert caught.value.code == 2
    assert "rca check: error:" in capsys.readouterr().err


def test_help_tells_of_every_argument(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    told = capsys.readouterr().out
    for name in ("layout", "results", "ids", "root", "num_classes", "pack", "annotations"):
        assert f"--{name}" in told
