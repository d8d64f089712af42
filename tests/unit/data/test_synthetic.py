from __future__ import annotations

import multiprocessing
import re
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rca_lightning.data.classes import voc_palette
from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.data.synthetic import dataset as synthetic
from rca_lightning.data.synthetic.dataset import CLASS_NAMES, generate
from rca_lightning.data.synthetic.placement import (
    LENGTHS,
    MAX_CLASSES,
    MIN_VISIBLE,
    PART_TURNED_AWAY,
    PlacedObject,
    make_frame,
    place_objects,
)
from rca_lightning.data.synthetic.scene import _choose_companions, _choose_ground, render_scene
from rca_lightning.data.synthetic.shapes import OBJECT_CLASSES
from rca_lightning.errors import ArgumentError, DataError, OutputError


def image_bytes(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for kind in ("JPEGImages", "SegmentationClass")
        for path in (folder / kind).iterdir()
    }


def read_tags(folder: Path) -> dict[str, list[str]]:
    rows = [line.split() for line in (folder / "image_labels.txt").read_text().splitlines()]
    return {row[0]: row[1:] for row in rows}


def read_mask(folder: Path, image_id: str) -> np.ndarray:
    return np.asarray(Image.open(folder / "SegmentationClass" / f"{image_id}.png"))


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("synthetic"), train_images=12, val_images=4, image_size=64)


def generate_few(root: Path) -> Path:
    return generate(root, train_images=6, val_images=2, image_size=48)


def generate_after(barrier: Barrier, root: Path) -> None:  # in another process
    barrier.wait(timeout=200)
    assert len(image_bytes(generate_few(root))) == 16


def test_class_names_are_distinct_single_words() -> None:
    assert 6 <= len(CLASS_NAMES) <= 8
    assert len(set(CLASS_NAMES)) == len(CLASS_NAMES)
    assert all(re.fullmatch("[a-z]+", name) for name in CLASS_NAMES)


def test_layout_is_that_of_voc(small_set: Path) -> None:
    train = (small_set / "ImageSets/Segmentation/train.txt").read_text().splitlines()
    val = (small_set / "ImageSets/Segmentation/val.txt").read_text().splitlines()
    assert (len(train), len(val)) == (12, 4)
    ids = train + val
    assert {path.stem for path in (small_set / "JPEGImages").glob("*.jpg")} == set(ids)
    assert {path.stem for path in (small_set / "SegmentationClass").glob("*.png")} == set(ids)
    assert list(read_tags(small_set)) == ids
    for image_id in ids:
        image = Image.open(small_set / "JPEGImages" / f"{image_id}.jpg")
        mask = Image.open(small_set / "SegmentationClass" / f"{image_id}.png")
        assert (image.mode, image.size, mask.mode, mask.size) == ("RGB", (64, 64), "P", (64, 64))


def test_masks_carry_the_palette_of_voc(small_set: Path) -> None:
    palette = Image.open(small_set / "SegmentationClass/train_00000.png").getpalette()
    assert palette is not None
    assert [palette[k : k + 3] for k in (0, 3, 6, 45, 765)] == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [192, 128, 128],
        [224, 224, 192],
    ]


def test_palette_follows_the_bits_of_the_label() -> None:
    for label, colour in enumerate(voc_palette()):
        expected, rest = [0, 0, 0], label
        for shift in range(7, -1, -1):
            for channel in range(3):
                expected[channel] |= ((rest >> channel) & 1) << shift
            rest >>= 3
        assert colour.tolist() == expected
    assert voc_palette(21).shape == (21, 3)
    assert voc_palette().dtype == np.uint8


def test_tags_are_the_visible_classes_of_the_mask(small_set: Path) -> None:
    for image_id, tags in read_tags(small_set).items():
        mask = read_mask(small_set, image_id)
        assert set(np.unique(mask)) <= {0, 255, *range(1, len(CLASS_NAMES) + 1)}
        assert [CLASS_NAMES[value - 1] for value in np.unique(mask) if 0 < value < 255] == tags
        assert tags
        for tag in tags:
            assert (mask == CLASS_NAMES.index(tag) + 1).mean() >= 0.01


def test_a_thin_void_border_parts_objects_from_background_and_each_other(small_set: Path) -> None:
    for image_id in read_tags(small_set):
        mask = read_mask(small_set, image_id)
        assert 0 < (mask == 255).mean() < 0.15
        for first, second in ((mask[:, :-1], mask[:, 1:]), (mask[:-1], mask[1:])):
            known = (first != 255) & (second != 255)
            assert (first == second)[known].all()
        blocks = np.lib.stride_tricks.sliding_window_view(mask == 255, (3, 3)).all(axis=(2, 3))
        assert not blocks.any()  # thin: nowhere a full block of void


@pytest.fixture(scope="module")
def placed() -> list[list[PlacedObject]]:
    return [place_objects(np.random.default_rng([9, number]), 48) for number in range(500)]


def test_share_of_objects_that_turn_their_part_away_is_the_documented_one(placed: list[list[PlacedObject]]) -> None:
    documented = re.search(r"About (\d+) % of the objects turn their part away", synthetic.__doc__ or "")
    assert documented
    objects = [item for scene in placed for item in scene]
    share = np.mean([item.turned_away for item in objects])
    assert all(item.turned_away != item.part.any() for item in objects)
    # Of about 1,100 objects, the standard deviation of 6 % is 0.7 %.
    assert abs(share - int(documented[1]) / 100) < 0.02
    assert share == pytest.approx(PART_TURNED_AWAY, abs=0.02)


def test_one_to_five_objects_of_up_to_three_classes_also_several_of_one(placed: list[list[PlacedObject]]) -> None:
    numbers = [len(scene) for scene in placed]
    classes = [len({item.label for item in scene}) for scene in placed]
    assert set(numbers) == {1, 2, 3, 4, 5}
    assert set(classes) == {1, 2, 3} == set(range(1, MAX_CLASSES + 1))
    assert np.mean([few < many for few, many in zip(classes, numbers, strict=True)]) > 0.3


def test_objects_have_any_size_any_turn_and_any_place_and_the_border_cuts_many(
    placed: list[list[PlacedObject]],
) -> None:
    objects = [item for scene in placed for item in scene]
    lengths = np.array([item.length / 48 for item in objects])
    documented = re.search(r"(\d+) to (\d+) % of the image's side long", synthetic.__doc__ or "")
    assert documented
    assert [int(number) / 100 for number in documented.groups()] == list(LENGTHS)
    assert lengths.min() < 0.3
    assert lengths.max() > 1.0
    assert 0.45 < np.mean(lengths < np.sqrt(np.prod(LENGTHS))) < 0.65  # as many small ones as large ones, or some more
    places = np.array([item.centre for item in objects]) / 48
    thirds = np.histogram2d(*places.T, bins=3, range=[[0, 1], [0, 1]])[0] / len(objects)
    assert thirds.min() > 0.06
    assert thirds[1, 1] < 0.2  # a ninth if they did not have to be visible
    turns = np.array([np.arctan2(item.frame.u[1, 0] - item.frame.u[0, 0], np.diff(item.frame.u[0, :2])[0])
                      for item in objects])  # fmt: skip
    assert np.histogram(turns, bins=4, range=(-np.pi, np.pi))[0].min() > 0.2 * len(objects)
    edges = np.zeros((48, 48), dtype=bool)
    edges[[0, -1]] = edges[:, [0, -1]] = True
    assert 0.3 < np.mean([item.body[edges[item.frame.window]].any() for item in objects]) < 0.8


def test_every_object_shows_enough_of_itself(placed: list[list[PlacedObject]]) -> None:
    for scene in placed[:100]:
        hidden = np.zeros((48, 48), dtype=bool)
        for item in reversed(scene):
            covered = np.zeros((48, 48), dtype=bool)
            covered[item.frame.window] = item.body | item.part
            whole = np.pi * item.kind.aspect * (item.length / 2) ** 2
            assert (covered & ~hidden).sum() >= MIN_VISIBLE * whole - 1e-6
            hidden |= covered


def test_context_comes_along_with_a_class_but_does_not_name_it(placed: list[list[PlacedObject]]) -> None:
    generator = np.random.default_rng(0)
    pairs = np.zeros((2, 2))  # class shown, context there
    for scene in placed:
        shown, ground = {item.kind for item in scene}, _choose_ground(generator, scene)
        for kind in OBJECT_CLASSES:
            pairs[int(kind in shown), int(kind is ground)] += 1
        for item, centre in _choose_companions(generator, 48, scene):
            assert item in scene
            assert all(0 <= place < 48 for place in centre)
    without, with_class = pairs[:, 1] / pairs.sum(axis=1)
    assert 0.05 < without < 0.15
    assert 3 * without < with_class < 0.6
    beside = sum(len(_choose_companions(generator, 48, scene)) for scene in placed)
    assert 0.3 < beside / sum(map(len, placed)) < 0.5


@pytest.mark.parametrize("centre", [(30.0, 20.0), (1.0, 44.0), (-3.0, 60.0)])
def test_frame_is_a_window_of_the_coordinates_of_the_whole_image(centre: tuple[float, float]) -> None:
    frame = make_frame(48, centre, 7.0, 0.4)
    rows, columns = (np.arange(48)[part] for part in frame.window)
    for row, down in enumerate(rows):
        for column, across in enumerate(columns):
            x, y = (across - centre[0]) / 7, (down - centre[1]) / 7
            assert frame.u[row, column] == pytest.approx(np.cos(0.4) * x + np.sin(0.4) * y, abs=1e-5)
            assert frame.v[row, column] == pytest.approx(np.cos(0.4) * y - np.sin(0.4) * x, abs=1e-5)
    near = [
        (down, across)
        for down in range(48)
        for across in range(48)
        if np.hypot(across - centre[0], down - centre[1]) <= 1.35 * 7
    ]
    assert all(down in rows and across in columns for down, across in near)


def test_striking_parts_are_small_lie_on_objects_and_are_sometimes_missing() -> None:
    scenes = [render_scene(np.random.default_rng([3, number]), 48) for number in range(150)]
    shares = [scene.part.sum() / (scene.mask > 0).sum() for scene in scenes]
    assert all((scene.mask[scene.part] != 0).all() for scene in scenes)
    assert 0.05 < np.mean(shares) < 0.2
    assert any(share == 0 for share in shares)


def test_classes_and_numbers_of_classes_vary() -> None:
    masks = [render_scene(np.random.default_rng([5, number]), 48).mask for number in range(60)]
    shown = [set(np.unique(mask)) - {0, 255} for mask in masks]
    assert set().union(*shown) == set(range(1, len(CLASS_NAMES) + 1))
    assert {len(classes) for classes in shown} == {1, 2, 3}


def test_same_seed_same_bytes_other_seed_other_images(tmp_path: Path, small_set: Path) -> None:
    again = generate(tmp_path, train_images=12, val_images=4, image_size=64)
    other = generate(tmp_path, seed=1, train_images=12, val_images=4, image_size=64)
    assert again.name == small_set.name
    assert image_bytes(again) == image_bytes(small_set)
    assert read_tags(again) == read_tags(small_set)
    first, second = image_bytes(small_set), image_bytes(other)
    assert first.keys() == second.keys()
    assert all(first[name] != second[name] for name in first)


def test_train_and_val_images_differ(small_set: Path) -> None:
    files = image_bytes(small_set)
    jpegs = [content for name, content in files.items() if name.endswith(".jpg")]
    assert len(set(jpegs)) == len(jpegs) == 16


def test_more_images_extend_the_set(tmp_path: Path, small_set: Path) -> None:
    larger = generate(tmp_path, train_images=15, val_images=6, image_size=64)
    small, large = image_bytes(small_set), image_bytes(larger)
    assert small.items() < large.items()
    assert read_tags(small_set).items() < read_tags(larger).items()


def test_different_arguments_do_not_share_a_folder(tmp_path: Path) -> None:
    folders = [
        generate(tmp_path, train_images=1, val_images=0, image_size=48),
        generate(tmp_path, train_images=2, val_images=0, image_size=48),
        generate(tmp_path, train_images=1, val_images=1, image_size=48),
        generate(tmp_path, train_images=1, val_images=0, image_size=64),
        generate(tmp_path, train_images=1, val_images=0, image_size=48, seed=2),
    ]
    assert len(set(folders)) == 5
    assert all(folder.parent == tmp_path for folder in folders)
    assert (folders[0] / "ImageSets/Segmentation/val.txt").read_text() == ""


def test_a_complete_set_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = generate(tmp_path, train_images=1, val_images=1, image_size=48)
    monkeypatch.setattr(synthetic, "render_scene", None)  # any use would fail
    assert generate(tmp_path, train_images=1, val_images=1, image_size=48) == first


def test_an_interrupted_run_leaves_nothing_that_counts_as_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_at_third(rng: np.random.Generator, size: int):
        stop_at_third.calls += 1
        if stop_at_third.calls == 3:
            raise KeyboardInterrupt
        return render_scene(rng, size)

    stop_at_third.calls = 0
    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "render_scene", stop_at_third)
        with pytest.raises(KeyboardInterrupt):
            generate(tmp_path, train_images=4, val_images=1, image_size=48)
    assert list(tmp_path.iterdir()) == []
    assert len(image_bytes(generate(tmp_path, train_images=4, val_images=1, image_size=48))) == 10


def test_the_temporary_folder_of_a_killed_process_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:  # a killed process neither renames nor cleans up
        patch.setattr(Path, "rename", lambda work, target: None)
        patch.setattr(synthetic.shutil, "rmtree", lambda *args, **kwargs: None)
        target = generate(tmp_path, train_images=2, val_images=1, image_size=48)
        assert not target.exists()
    left = next(tmp_path.iterdir())
    (left / "image_labels.txt").unlink()
    assert generate(tmp_path, train_images=2, val_images=1, image_size=48) == target
    assert len(image_bytes(target)) == 6


def test_processes_that_generate_at_once_return_the_same_complete_set(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    other = context.Process(target=generate_after, args=(barrier, tmp_path))
    other.start()
    barrier.wait(timeout=200)
    folder = generate_few(tmp_path)
    assert len(image_bytes(folder)) == 16
    other.join(timeout=200)
    assert other.exitcode == 0
    assert list(tmp_path.iterdir()) == [folder]


def test_the_slower_of_two_processes_keeps_the_faster_ones_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = Path.rename

    def overtaken(work: Path, target: Path) -> None:
        monkeypatch.setattr(Path, "rename", publish)
        assert generate(tmp_path, train_images=1, val_images=1, image_size=48) == target
        (target / "winner").touch()
        publish(work, target)

    monkeypatch.setattr(Path, "rename", overtaken)
    target = generate(tmp_path, train_images=1, val_images=1, image_size=48)
    assert (target / "winner").exists()
    assert list(tmp_path.iterdir()) == [target]


def test_a_damaged_set_is_reported(tmp_path: Path) -> None:
    folder = generate(tmp_path, train_images=1, val_images=0, image_size=48)
    (folder / "image_labels.txt").unlink()
    with pytest.raises(DataError, match=r"image_labels\.txt.*delete the folder"):
        generate(tmp_path, train_images=1, val_images=0, image_size=48)


def test_a_folder_that_takes_no_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    message = r"^root='.*file.*' cannot be written to \(.*\); give a root where files can be made; without.*RCA_CACHE"
    with pytest.raises(OutputError, match=message):
        generate_few(tmp_path / "file")
    monkeypatch.setenv("RCA_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match=message):
        WSSSDataModule("synthetic").prepare_data()


def test_a_folder_that_cannot_be_looked_into_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refused)
    with pytest.raises(OutputError, match=r"^root='.*' cannot be written to \(\[Errno 13\] Permission denied\)"):
        generate_few(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("seed", -1), ("train_images", 0), ("val_images", -1), ("image_size", 47), ("image_size", 1025)]
)
def test_arguments_out_of_range_are_named(tmp_path: Path, name: str, value: int) -> None:
    with pytest.raises(ArgumentError, match=f"{name}={value}"):
        generate(tmp_path, **{name: value})
    assert list(tmp_path.iterdir()) == []


def test_an_image_without_room_still_shows_an_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rca_lightning.data.synthetic.placement.MAX_TRIES", 0)
    mask = render_scene(np.random.default_rng(0), 48).mask
    assert len(set(np.unique(mask)) - {0, 255}) == 1
