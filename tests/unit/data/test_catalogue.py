"""List of photographs on disk: the same as dicts in memory, and in memory that does not grow with it."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from tests.unit.data.test_tagged_folder import photograph

from rca_lightning.data.catalogue import Catalogue, CatalogueSource, Listing
from rca_lightning.data.coco_shapes import CocoShapes
from rca_lightning.data.records import Record, RecordTable, sort_key
from rca_lightning.data.tagged_folder import read_tagged_folder
from rca_lightning.errors import DataError

NAMES = ["a", "A", "a-1", "a.b", "ab", "b", "é", "ζ", "\U0001d538", "\udce9", "z" * 100]
FACTS = {"origin": "file", "described": "tags.csv", "class_names": ["cat", "dog"]}


def records(count: int = len(NAMES)) -> list[Record]:
    tags = [(0, 1), (), None, (1,)]
    names = sorted(NAMES[:count], key=sort_key)
    return [Record(name, Path(f"/p/{name}.jpg"), tags[place % 4]) for place, name in enumerate(names)]


def test_views_are_those_of_dicts(tmp_path: Path):
    catalogue = Catalogue.write(tmp_path, records(), **FACTS)
    images = {record.image_id: record.image for record in records()}
    tags = {record.image_id: record.tags for record in records() if record.tags is not None}
    assert catalogue.images == images
    assert catalogue.tags == tags
    assert list(catalogue.tags) == list(tags)
    assert list(catalogue.images.items()) == list(images.items())
    assert (len(catalogue.images), len(catalogue.tags)) == (len(images), len(tags))
    for name in ("0", "aa", "zz", "", "z" * 101):
        assert name not in catalogue.images
        assert catalogue.images.get(name) is None
    unknown = next(record.image_id for record in records() if record.tags is None)
    assert unknown not in catalogue.tags
    with pytest.raises(KeyError):
        catalogue.tags[unknown]
    facts = catalogue.facts
    assert (facts.images, facts.known, facts.tagged) == (11, 8, 5)
    assert facts.class_names == ("cat", "dog")


def test_order_of_names_is_that_of_strings():
    plain = [name for name in NAMES if name.isprintable()]
    assert sorted(plain, key=sort_key) == sorted(plain)


def test_table_written_one_by_one_is_the_one_written_at_once(tmp_path: Path):
    RecordTable.of(records()).write(tmp_path / "once", key="k")
    RecordTable.write_each(tmp_path / "each", iter(records()), key=lambda: "k")
    assert (tmp_path / "each").read_bytes() == (tmp_path / "once").read_bytes()
    assert list(RecordTable.read(tmp_path / "each", key="k")) == records()
    RecordTable.write_each(tmp_path / "none", [], key=lambda: "k")
    assert len(RecordTable.read(tmp_path / "none", key="k")) == 0
    drawn = Record("a", Path("a.jpg"), mask=CocoShapes(height=1, width=1, where="x.json", packed=b""))
    with pytest.raises(DataError, match="annotated objects"):
        RecordTable.write_each(tmp_path / "drawn", [drawn], key=lambda: "k")
    assert not (tmp_path / "drawn").exists()


def test_digests_change_with_ids_and_tags_alone(tmp_path: Path):
    first = Catalogue.write(tmp_path, records(), **FACTS).facts
    moved = [Record(one.image_id, Path("elsewhere") / one.image.name, one.tags) for one in records()]
    assert Catalogue.write(tmp_path, moved, **FACTS).facts.digest == first.digest
    untagged = [one if one.tags is not None else Record(one.image_id, one.image, ()) for one in records()]
    other = Catalogue.write(tmp_path, untagged, **FACTS).facts
    assert other.digest != first.digest
    assert other.digest_of_tagged == first.digest_of_tagged
    fewer = Catalogue.write(tmp_path, records(5), **FACTS).facts
    assert fewer.digest_of_tagged != first.digest_of_tagged


def test_what_is_damaged_or_half_there_is_no_list(tmp_path: Path):
    assert Catalogue.read(tmp_path) is None
    written = Catalogue.write(tmp_path, records(), **FACTS)
    read = Catalogue.read(tmp_path)
    assert read is not None
    assert (read.facts, list(read.table)) == (written.facts, records())
    facts, table = tmp_path / "photographs.json", tmp_path / "photographs.index"
    for path in (facts, table):
        whole = path.read_bytes()
        for damaged in (whole[:-9], whole.replace(b"cat", b"cow"), whole.replace(b"jpg", b"png"), b"", b"{}"):
            if damaged != whole:
                path.write_bytes(damaged)
                found = Catalogue.read(tmp_path)
                assert found is None or path is facts  # names of classes have no checksum of their own
        path.write_bytes(whole)
    before = facts.read_bytes()
    Catalogue.write(tmp_path, records(5), **FACTS)
    facts.write_bytes(before)  # as a kill between the two files leaves them
    assert Catalogue.read(tmp_path) is None
    assert list(written.table) == records()  # mapped before, and not disturbed


def test_source_serves_all_and_chosen_photographs(tmp_path: Path):
    catalogue = Catalogue.write(tmp_path, records(), **FACTS)
    source = CatalogueSource(tmp_path, catalogue, {"part": np.array([1, 4])})
    assert source.splits() == ("all", "part")
    assert list(source.records("all", with_masks=True)) == records()
    part = source.records("part", with_masks=False)
    assert list(part) == [records()[1], records()[4]]
    assert list(pickle.loads(pickle.dumps(part))) == list(part)
    assert len(pickle.dumps(source.records("all", with_masks=False))) < 500  # a worker maps the file again


def test_listing_refuses_what_shares_a_name(tmp_path: Path):
    with Listing(tmp_path) as listing:
        listing.add_photographs([("b", "b.jpg"), ("a", "a.png"), ("a", "a.jpg")])
        with pytest.raises(DataError, match=r"a.jpg and a.png would share the id 'a'; rename one"):
            listing.sort()
    root = tmp_path / "p"
    for value, name in enumerate(("x/y_a", "x_y/a", "x/b", "x_y/b")):  # none like another
        photograph(root / f"{name}.jpg", value)
    photograph(root / "x_y" / "y_a.jpg", 9)
    photograph(root / "x" / "a.jpg", 8)
    with pytest.raises(DataError, match=r"another photograph has the name 'x_y_a'"):
        read_tagged_folder(root, catalogue=tmp_path / "catalogue")
    photograph(root / "x" / "b.png", 7)
    with pytest.raises(DataError, match=r"b.jpg and b.png would share the id 'b'"):
        read_tagged_folder(root, catalogue=tmp_path / "catalogue")


def test_tags_given_twice_or_to_nobody_are_named_by_their_place(tmp_path: Path):
    root = tmp_path / "p"
    for name in ("a", "b"):
        photograph(root / f"{name}.jpg")
    (root / "tags.csv").write_text("image,tags\nb,dog\na,cat\nb.jpg,cat\n")
    with pytest.raises(DataError, match=r"tags.csv, line 4: image 'b' has tags in an earlier line"):
        read_tagged_folder(root, catalogue=tmp_path / "catalogue")
    (root / "tags.csv").write_text("image,tags\nz,dog\na,cat\ny,dog\nb,cat\n")
    with pytest.raises(DataError, match=r"tags.csv: 2 of its 4 images are not in .*: z, y; add them"):
        read_tagged_folder(root, catalogue=tmp_path / "catalogue")
    assert not (tmp_path / "catalogue").exists()


def test_known_list_is_taken_until_a_folder_or_a_list_changes(tmp_path: Path):
    root, place = tmp_path / "p", tmp_path / "catalogue"
    photograph(root / "images" / "a.jpg")
    (root / "tags.csv").write_text("image,tags\na,dog\n")

    def again(known: Catalogue | None) -> Catalogue:
        return read_tagged_folder(root, catalogue=place, known=known)

    first = again(None)
    assert again(first) is first
    assert again(Catalogue.read(place)).facts == first.facts
    photograph(root / "images" / "b.jpg")
    second = again(first)
    assert list(second.images) == ["a", "b"]
    (root / "tags.csv").write_text("image,tags\na,cat\n")
    third = again(second)
    assert third.facts.class_names == ("cat",)
    (root / "classes.txt").write_text("cat\ndog\n")
    assert again(third).facts.class_names == ("cat", "dog")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10,000 and 20,000 empty files, with tags in another order."""
    root = tmp_path_factory.mktemp("many")
    for count in (10_000, 20_000):
        folder = root / str(count)
        folder.mkdir()
        for number in range(count):
            (folder / f"photograph-{number:06}.jpg").touch()
        numbers = (number * 7919 % count for number in range(count))
        lines = (f"photograph-{number:06},{'dog;cat' if number % 3 else 'cow'}\n" for number in numbers)
        (folder / "tags.csv").write_text("image,tags\n" + "".join(lines))
    return root


def test_memory_does_not_grow_with_the_photographs(many: Path, tmp_path: Path):
    def peak(count: int) -> int:
        tracemalloc.start()
        catalogue = read_tagged_folder(many / str(count), catalogue=tmp_path / str(count))
        assert sum(1 for _ in catalogue.tags.items()) == len(catalogue.images) == count
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(10_000)  # caches
    # 8 bytes a photograph, in an array that grows by steps; names and paths alone would be 4 MiB. Once of three times:
    # what other threads of this process allocate meanwhile is counted too.
    assert any(peak(20_000) - peak(10_000) < 1 << 19 for _ in range(3))
