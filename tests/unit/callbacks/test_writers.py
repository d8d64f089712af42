"""The files that the writer leaves for one batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tests.folder_contents import file_bytes, file_names
from tests.tagged_images import tagged_images

from rca_lightning.callbacks.pseudo_label_writer import PseudoLabelWriter
from rca_lightning.data.sample import Batch, collate
from rca_lightning.data.visualization import denormalise, overlay_mask
from rca_lightning.errors import ArgumentError, OutputError
from rca_lightning.pseudo_labels import files as label_files
from rca_lightning.rca.inference import ClassMaps

H, W = 32, 40


def random_seeds(*classes: int, seed: int = 0) -> ClassMaps:
    maps = torch.rand(len(classes), H, W, generator=torch.Generator().manual_seed(seed)) ** 2
    return ClassMaps(maps, torch.tensor(classes, dtype=torch.long), torch.rand(20))


def write(writer: PseudoLabelWriter, *results: tuple[str, ClassMaps]) -> None:
    batch: Batch = collate(tagged_images(*(name for name, _ in results), height=H, width=W))
    prediction = [{"image_id": name, "seeds": seeds} for name, seeds in results]
    writer.write_on_batch_end(None, None, prediction, None, batch, 0, 0)
    writer._queue.join()


def palette_of_the_voc_kit() -> list[int]:
    colours = []
    for label in range(256):
        red = green = blue = 0
        for level in range(8):
            red |= ((label >> (3 * level)) & 1) << (7 - level)
            green |= ((label >> (3 * level + 1)) & 1) << (7 - level)
            blue |= ((label >> (3 * level + 2)) & 1) << (7 - level)
        colours += [red, green, blue]
    return colours


def test_npz_holds_maps_classes_and_size(tmp_path):
    seeds = random_seeds(3, 17)
    write(PseudoLabelWriter(str(tmp_path)), ("a.b", seeds))
    with np.load(tmp_path / "cams" / "a.b.npz", allow_pickle=False) as found:
        assert {"maps", "classes", "size"} <= set(found)
        assert (found["maps"].dtype, found["classes"].dtype, found["size"].dtype) == (np.float16, np.int64, np.int64)
        assert np.array_equal(found["maps"], seeds.maps.numpy().astype(np.float16))
        assert found["classes"].tolist() == [3, 17]
        assert found["size"].tolist() == [H, W]


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.7])
def test_png_labels_are_the_strongest_class_above_the_threshold(tmp_path, threshold):
    seeds = random_seeds(3, 17, 19)
    write(PseudoLabelWriter(str(tmp_path), background_threshold=threshold), ("photo", seeds))
    with Image.open(tmp_path / "pseudo_labels" / "photo.png") as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "P", (W, H))
        palette = picture.getpalette()
        assert palette == palette_of_the_voc_kit()[: len(palette)]
        assert len(palette) >= 3 * 21
        labels = np.asarray(picture)
    for row in range(H):
        for column in range(W):
            values = seeds.maps[:, row, column].tolist()
            best = values.index(max(values))
            expected = seeds.classes.tolist()[best] + 1 if values[best] > np.float32(threshold) else 0
            assert labels[row, column] == expected


def test_image_without_a_class_is_background(tmp_path):
    write(PseudoLabelWriter(str(tmp_path)), ("empty", random_seeds()))
    assert not np.asarray(Image.open(tmp_path / "pseudo_labels" / "empty.png")).any()
    with np.load(tmp_path / "cams" / "empty.npz", allow_pickle=False) as found:
        assert found["maps"].shape == (0, H, W)
        assert found["classes"].tolist() == []


def test_overlays_are_written_only_if_asked(tmp_path):
    seeds = random_seeds(0, 1)
    write(PseudoLabelWriter(str(tmp_path / "without")), ("photo", seeds))
    assert file_names(tmp_path / "without") == ["cams/photo.npz", "pseudo_labels/photo.png"]
    write(PseudoLabelWriter(str(tmp_path / "with"), overlays=True), ("photo", seeds))
    assert file_names(tmp_path / "with") == ["cams/photo.npz", "overlays/photo.jpg", "pseudo_labels/photo.png"]


def test_overlay_is_the_labels_over_the_photograph(tmp_path):
    maps = torch.zeros(2, H, W)
    maps[0, :16], maps[1, 16:, :24] = 1, 1
    batch = collate(tagged_images("photo", height=H, width=W))
    batch["image"] = torch.linspace(-1, 1, W).expand(1, 3, H, W)
    prediction = [{"image_id": "photo", "seeds": ClassMaps(maps, torch.tensor([3, 17]), torch.rand(20))}]
    writer = PseudoLabelWriter(str(tmp_path), overlays=True)
    writer.write_on_batch_end(None, None, prediction, None, batch, 0, 0)
    writer._queue.join()
    labels = np.zeros((H, W), dtype=np.uint8)
    labels[:16], labels[16:, :24] = 4, 18
    expected = overlay_mask(denormalise(batch["image"][0]), labels)
    with Image.open(tmp_path / "overlays" / "photo.jpg") as picture:
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (W, H))
        assert np.abs(np.asarray(picture).astype(float) - expected).mean() < 4


def test_without_a_data_module_complete_images_stay_as_they_are(tmp_path):
    writer = PseudoLabelWriter(str(tmp_path))
    write(writer, ("a", random_seeds(0)))
    before = file_bytes(tmp_path)
    again = PseudoLabelWriter(str(tmp_path))
    write(again, ("a", random_seeds(1, seed=5)), ("b", random_seeds(1)))
    assert {name: file_bytes(tmp_path)[name] for name in before} == before
    write(PseudoLabelWriter(str(tmp_path), existing="overwrite"), ("a", random_seeds(1, seed=5)))
    assert file_bytes(tmp_path)["cams/a.npz"] != before["cams/a.npz"]


def test_two_images_of_one_id_are_refused(tmp_path):
    writer = PseudoLabelWriter(str(tmp_path))
    with pytest.raises(OutputError, match="image_id='a' belongs to two images"):
        write(writer, ("a", random_seeds(0)), ("b", random_seeds(0)), ("a", random_seeds(1)))
    later = PseudoLabelWriter(str(tmp_path))
    write(later, ("c", random_seeds(0)))
    with pytest.raises(OutputError, match="'c'"):
        write(later, ("c", random_seeds(0)))


@pytest.mark.parametrize("image_id", ["../up", "a/b", "a\\b", "", ".", "..", "nul\0"])
def test_ids_that_could_leave_the_folder_are_refused(tmp_path, image_id):
    folder = tmp_path / "inner"
    with pytest.raises(OutputError, match="cannot be a file name"):
        write(PseudoLabelWriter(str(folder)), (image_id, random_seeds(0)))
    assert file_names(tmp_path) == []


@pytest.mark.parametrize("broken", ["npz", "png", "jpg"])
def test_failure_midway_leaves_former_files_whole(tmp_path, monkeypatch, broken):
    write(PseudoLabelWriter(str(tmp_path), overlays=True), ("a", random_seeds(0)))
    before = file_bytes(tmp_path)

    def fail(file, **_):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    if broken == "npz":
        monkeypatch.setattr(label_files.np, "savez_compressed", fail)
    else:
        real = Image.Image.save

        def save(picture, file, format=None, **options):
            if format == {"png": "PNG", "jpg": "JPEG"}[broken]:
                fail(file)
            real(picture, file, format=format, **options)

        monkeypatch.setattr(Image.Image, "save", save)
    writer = PseudoLabelWriter(str(tmp_path), overlays=True, existing="overwrite")
    with pytest.raises(OSError, match="No space left"):
        write(writer, ("a", random_seeds(1, seed=3)))
    after = file_bytes(tmp_path)
    assert set(after) == set(before)  # in particular no .part
    (name,) = [name for name in before if name.endswith(broken)]
    assert after[name] == before[name]
    with pytest.raises(OSError, match="No space left"):
        write(writer, ("b", random_seeds(1)))
    assert not writer.folder.is_complete("b")
    assert not any(name.endswith(".part") for name in file_names(tmp_path))


@pytest.mark.parametrize("threshold", [-0.1, 1.5])
def test_threshold_out_of_range_is_refused(tmp_path, threshold):
    with pytest.raises(ArgumentError, match="background_threshold="):
        PseudoLabelWriter(str(tmp_path), background_threshold=threshold)
