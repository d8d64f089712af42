"""Maps of other models: every form, against plain loops, and everything that can be wrong with them."""

from __future__ import annotations

import logging
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.unit.data.conftest import write_mask, write_photo

from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.data.records import Record, RecordTable
from rca_lightning.data.seed_maps import UNDECIDED, SeedMaps, Seeds
from rca_lightning.errors import DataError, DatasetNotFoundError

SIZE = (24, 36)
CLASSES = 4
TAGS = (3, 1)


@pytest.fixture
def photograph(tmp_path: Path) -> Record:
    write_photo(tmp_path / "images" / "a.png", height=SIZE[0], width=SIZE[1])
    return Record("a", tmp_path / "images" / "a.png", TAGS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "seeds").mkdir()
    return tmp_path / "seeds"


def opened(folder: Path, *records: Record) -> SeedMaps:
    return SeedMaps(folder, RecordTable.of(records), num_classes=CLASSES)


def random_maps(count: int) -> np.ndarray:
    return np.random.default_rng(count).random((count, *SIZE), dtype=np.float32) - 0.1


def plain_cells(image: np.ndarray, cells: tuple[int, int]) -> np.ndarray:
    """Means over cells, one pixel at a time, in float64; the size is a multiple of the cells."""
    height, width = image.shape[0] // cells[0], image.shape[1] // cells[1]
    sums = np.zeros(cells)
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            sums[row // height, column // width] += max(0.0, float(image[row, column]))
    return sums / (height * width)


def test_npz_gives_the_maps_of_tags_in_the_order_of_classes(folder, photograph):
    maps = random_maps(3)
    np.savez(folder / "a.npz", maps=maps.astype(np.float16), classes=np.array([3, 0, 1]), other=np.zeros(2))
    seeds = opened(folder, photograph).read("a")
    assert seeds.classes.tolist() == [1, 3]
    torch.testing.assert_close(seeds.maps, torch.from_numpy(maps[[2, 0]]), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8, np.bool_])
def test_npy_is_a_map_for_each_class_or_for_each_tag(folder, photograph, dtype):
    maps = (random_maps(CLASSES) * 9).clip(0).astype(dtype)
    np.save(folder / "a.npy", np.asfortranarray(maps))
    of_all = opened(folder, photograph).read("a")
    np.save(folder / "a.npy", maps[[1, 3]])
    of_tags = opened(folder, photograph).read("a")
    for seeds in (of_all, of_tags):
        assert seeds.classes.tolist() == [1, 3]
        assert torch.equal(seeds.maps, torch.from_numpy(maps[[1, 3]].astype(np.float32)))


def test_label_images_give_shares_of_cells_and_undecided_ones_in_between(folder, photograph):
    labels = np.random.default_rng(0).choice([0, 1, 2, 4, 255], SIZE)
    labels[:4, :4], labels[4:8, :4], labels[8:12, :4] = 255, 0, 2
    write_mask(folder / "a.png", labels)
    seeds = opened(folder, photograph).read("a")
    assert seeds.classes.tolist() == [1, 3]
    found = seeds.on_grid((6, 9)).double().numpy()
    share = plain_cells(labels == 255, (6, 9))
    for place, value in enumerate((2, 4)):
        own = plain_cells(labels == value, (6, 9))
        np.testing.assert_allclose(found[place], np.maximum(own / own.max(), UNDECIDED * share), atol=1e-6)
    assert found[:, 0, 0].tolist() == [UNDECIDED] * 2, "neither a region nor background"
    assert found[:, 1, 0].tolist() == [0, 0]
    assert found[0, 2, 0] == 1


def test_maps_on_the_grid_are_means_divided_by_their_peak():
    maps = random_maps(2) * 7
    found = Seeds(torch.tensor([0, 2]), torch.from_numpy(maps)).on_grid((8, 6)).double().numpy()
    for place in range(2):
        expected = plain_cells(maps[place], (8, 6))
        np.testing.assert_allclose(found[place], expected / expected.max(), atol=1e-6)


def test_a_tag_without_a_map_or_with_an_empty_one_has_no_seeds(folder, photograph):
    maps = random_maps(2)
    maps[0] = -0.5
    np.savez(folder / "a.npz", maps=maps, classes=np.array([1, 3]))
    assert opened(folder, photograph).read("a").classes.tolist() == [3]
    np.savez(folder / "a.npz", maps=maps[1:], classes=np.array([2]))
    assert opened(folder, photograph).read("a") is None, "of no tag at all"
    (folder / "a.npz").unlink()
    write_mask(folder / "a.png", np.full(SIZE, 255))
    assert opened(folder, photograph).read("a") is None, "nothing but undecided"


WRONG = {
    "size": ({"maps": np.ones((1, 5, 5)), "classes": np.array([1])}, "a.npz is 5 x 5 pixels, but its image"),
    "class": ({"maps": np.ones((1, *SIZE)), "classes": np.array([CLASSES])}, "class 4 of classes 0 to 3"),
    "negative class": ({"maps": np.ones((1, *SIZE)), "classes": np.array([-1])}, "class -1 of classes 0 to 3"),
    "class twice": ({"maps": np.ones((2, *SIZE)), "classes": np.array([1, 1])}, "name one of them twice"),
    "classes that are no integers": (
        {"maps": np.ones((1, *SIZE)), "classes": np.array([1.0])},
        "classes \\(1,\\) float",
    ),
    "fewer classes than maps": ({"maps": np.ones((2, *SIZE)), "classes": np.array([1])}, "of classes \\(1,\\)"),
    "NaN": ({"maps": np.full((1, *SIZE), np.nan), "classes": np.array([1])}, "864 of 864 values NaN or infinite"),
    "beyond float32": ({"maps": np.full((1, *SIZE), 1e300), "classes": np.array([1])}, "NaN or infinite"),
    "no maps": ({"cams": np.ones((1, *SIZE)), "classes": np.array([1])}, "could not be read"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_archives_are_one_line(name, folder, photograph):
    arrays, message = WRONG[name]
    np.savez(folder / "a.npz", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        opened(folder, photograph).read("a")
    assert "\n" not in str(caught.value)
    assert "seed_dir" in str(caught.value) or name == "size"


def test_pickles_are_refused_with_what_to_do_about_them(folder, photograph, tmp_path):
    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harmed",))

    np.save(folder / "a.npy", {"cam": np.ones((1, *SIZE)), "keys": Harm()}, allow_pickle=True)
    with pytest.raises(DataError, match=r"Python objects, which are not unpickled; .*numpy\.savez\('<id>\.npz', maps="):
        opened(folder, photograph).read("a")
    (folder / "a.npy").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(DataError, match="its array could not be read"):
        opened(folder, photograph).read("a")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("shape", [(3, *SIZE), SIZE, (2, 5, 5), (CLASSES, 6, 9)])
def test_plain_arrays_of_other_shapes_are_one_line(shape, folder, photograph):
    np.save(folder / "a.npy", np.ones(shape))
    expected = "give \\(4, H, W\\), a map for each class, or \\(2, H, W\\)" if shape[0] not in (2, 4) else "pixels, but"
    with pytest.raises(DataError, match=expected):
        opened(folder, photograph).read("a")


def test_damaged_and_colour_files_are_one_line(folder, photograph):
    np.savez(folder / "a.npz", maps=np.ones((1, *SIZE)), classes=np.array([1]))
    (folder / "a.npz").write_bytes((folder / "a.npz").read_bytes()[:-200])
    with pytest.raises(DataError, match="could not be read"):
        opened(folder, photograph).read("a")
    (folder / "a.npz").unlink()
    Image.new("RGB", SIZE[::-1]).save(folder / "a.png")
    with pytest.raises(DataError, match="a colour image"):
        opened(folder, photograph).read("a")
    write_mask(folder / "a.png", np.full(SIZE, CLASSES + 1))
    with pytest.raises(DataError, match=r"values \[5\] in the mask"):
        opened(folder, photograph).read("a")


def test_two_files_of_a_photograph_and_a_folder_of_others_are_errors(folder, photograph):
    with pytest.raises(DataError, match="no file for any of the 1 training images, such as a; name them like the im"):
        opened(folder, photograph)
    write_mask(folder / "a.png", np.zeros(SIZE))
    np.save(folder / "a.npy", np.zeros((2, *SIZE)))
    with pytest.raises(DataError, match=r"a\.npy and a\.png would share the id 'a'"):
        opened(folder, photograph)
    with pytest.raises(DatasetNotFoundError, match=r"seed_dir=.*no such folder"):
        opened(folder / "none", photograph)


def make_data(root: Path, **options) -> WSSSDataModule:
    return WSSSDataModule("folder", root, eval_split="train", num_workers=0, **options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "mine"
    for number, name in enumerate("abcd"):
        write_photo(root / "images" / f"{name}.png", height=SIZE[0], width=SIZE[1], seed=number)
    (root / "classes.txt").write_text("cat\ndog\nbird\ncow\n")
    (root / "tags.csv").write_text("image,tags\na,dog;cow\nb,cat\nc,cat;bird\nd,\n")
    (root / "seeds").mkdir()
    return root


def test_setup_reads_all_and_counts_what_the_cam_stands_in_for(root, caplog):
    np.save(root / "seeds" / "a.npy", random_maps(2))
    write_mask(root / "seeds" / "b.png", np.zeros(SIZE))  # of no tag
    write_mask(root / "seeds" / "d.png", np.full(SIZE, 9))  # not trained on, so not read
    data = make_data(root, seed_dir="seeds")
    with caplog.at_level(logging.INFO):
        data.setup("fit")
        data.open_seeds()
    assert "1 of 3 photographs have maps, for 2 of their 5 tags" in caplog.text
    assert "the CAM stands in for 2 photographs without maps of their tags: b, c" in caplog.text
    assert data.seed_maps.read("a").classes.tolist() == [1, 3]
    assert data.seed_maps.read("c") is data.seed_maps.read("../images/a") is None
    data.setup("predict")
    assert data.seed_maps is None, "only a fit reads them"


def test_setup_names_the_file_that_is_wrong(root):
    np.save(root / "seeds" / "a.npy", random_maps(2))
    np.save(root / "seeds" / "c.npy", np.full((2, *SIZE), np.inf))
    data = make_data(root, seed_dir="seeds")
    data.setup("fit")
    with pytest.raises(DataError, match=re.escape(str(root / "seeds" / "c.npy"))):
        data.open_seeds()


def test_a_photograph_that_cannot_be_read_and_is_skipped_needs_no_seeds(root):
    for name in "ab":
        write_mask(root / "seeds" / f"{name}.png", np.ones(SIZE))
    (root / "images" / "b.png").write_bytes(b"nothing")
    data = make_data(root, seed_dir="seeds", on_bad_image="skip", max_bad_images=1.0)
    data.setup("fit")
    data.open_seeds()
    data = make_data(root, seed_dir="seeds")
    data.setup("fit")
    with pytest.raises(DataError, match=r"b\.png"):
        data.open_seeds()


def test_maps_of_other_classes_are_refused(root):
    (root / "made" / "cams").mkdir(parents=True)
    (root / "made" / "predict.json").write_text('{"class_names": ["dog", "cat", "bird", "cow"]}')
    with pytest.raises(DataError, match="class 1 is 'dog' in seed_dir="):
        make_data(root, seed_dir="made/cams").setup("fit")
