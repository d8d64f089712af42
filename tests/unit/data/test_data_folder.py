"""A folder of one's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.errors import ArgumentError, DataError, DatasetNotFoundError

TAGS = "image,tags\na.png,cat\nb.png,cat;guinea pig\nc.png,\n"


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., WSSSDataModule]:
    """Four images a, b, c, d; c has an empty line of tags and d none at all."""

    def make(*, tags: str | None = TAGS, images: str = "images", **arguments: object) -> WSSSDataModule:
        root = tmp_path / "mine"
        (root / images).mkdir(parents=True, exist_ok=True)
        for name in "abcd":
            Image.new("RGB", (30, 20), (10, 20, 30)).save(root / images / f"{name}.png")
        (root / "classes.txt").write_text("cat\nguinea pig\n")
        if tags is not None:
            (root / "tags.csv").write_text(tags)
        given = {"crop_size": 16, "num_workers": 0, "batch_size": 2, **arguments}
        return WSSSDataModule("folder", root, **given)

    return make


def masks_for(data: WSSSDataModule, names: str, *, size: tuple[int, int] = (30, 20), folder: str = "masks") -> Path:
    path = Path(data.options.root) / folder
    path.mkdir(exist_ok=True)
    for name in names:
        Image.fromarray(np.full(size[::-1], 2, np.uint8)).save(path / f"{name}.png")
    return path


def test_class_names_are_known_before_setup(make_folder: Callable[..., WSSSDataModule]) -> None:
    data = make_folder()
    assert data.num_classes == 2
    assert data.class_names == ["cat", "guinea pig"]


@pytest.mark.parametrize("images", ["images", "."])
def test_training_leaves_out_images_without_tag(
    make_folder: Callable[..., WSSSDataModule], caplog: pytest.LogCaptureFixture, images: str
) -> None:
    data = make_folder(images=images)
    data.setup("fit")
    assert "1 images left out of training, no tag: c" in caplog.text
    assert "1 images left out of training, unknown tags: d" in caplog.text
    assert "predicted tags stand in for 1 images of unknown tags: d" in caplog.text
    assert "4 of 4 images have no mask" in caplog.text
    batch = next(iter(data.train_dataloader()))
    assert sorted(batch["image_id"]) == ["a", "b"]
    tags = {name: row.tolist() for name, row in zip(batch["image_id"], batch["tags"], strict=True)}
    assert tags == {"a": [1.0, 0.0], "b": [1.0, 1.0]}
    assert "mask" not in batch
    assert {b["image_id"][0]: b["tags"][0].tolist() for b in data.val_dataloader()} == {
        "a": [1.0, 0.0],
        "b": [1.0, 1.0],
        "c": [0.0, 0.0],
        "d": [-1.0, -1.0],
    }


def test_prediction_needs_no_tags(make_folder: Callable[..., WSSSDataModule]) -> None:
    data = make_folder(tags=None)
    data.setup("predict")
    samples = list(data.predict_dataloader())
    assert len(samples) == 4
    assert (torch.stack([sample["tags"] for sample in samples]) == -1).all()
    with pytest.raises(DatasetNotFoundError, match=r"tags_file: split 'train' has no tags at all; give tags_file"):
        data.setup("fit")


def test_split_files(make_folder: Callable[..., WSSSDataModule], tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("d\nb\n")
    data = make_folder(predict_split="some", split_files={"some": str(tmp_path / "p.txt")})
    data.setup("predict")
    assert [sample["image_id"] for sample in data.predict_dataloader()] == [["d"], ["b"]]
    (tmp_path / "p.txt").write_text("d\nz\n")
    with pytest.raises(DataError, match=r"p\.txt: 1 of its 2 images are not in .*: z"):
        data.setup("predict")


def test_masks_are_required_to_validate(make_folder: Callable[..., WSSSDataModule]) -> None:
    data = make_folder()
    with pytest.raises(DataError, match=r"split 'val': 4 of 4 images are without a mask: a, b, c, \.\.\. \(4 in all\)"):
        data.setup("validate")
    masks_for(data, "abc")
    with pytest.raises(DataError, match="1 of 4 images are without a mask: d"):
        data.setup("test")
    masks_for(data, "d")
    data.setup("test")
    assert next(iter(data.test_dataloader()))["mask"].unique().tolist() == [2]


def test_train_mask_dir_is_for_training_only(make_folder: Callable[..., WSSSDataModule]) -> None:
    data = make_folder(train_mask_dir="pseudo", scale=(2.0, 2.0))
    with pytest.raises(DatasetNotFoundError, match=r"mask_dir='.*pseudo': no such folder"):
        data.setup("fit")
    masks_for(data, "a", folder="pseudo")
    with pytest.raises(DataError, match="split 'train': 1 of 2 images are without a mask: b; add them"):
        data.setup("fit")
    masks_for(data, "b", folder="pseudo")
    data.setup("fit")
    assert next(iter(data.train_dataloader()))["mask"].shape == (2, 16, 16)
    assert "mask" not in next(iter(data.val_dataloader()))


def test_train_masks_can_be_switched_off(make_folder: Callable[..., WSSSDataModule]) -> None:
    data = make_folder(train_masks=False)
    masks_for(data, "abcd")
    data.setup("fit")
    assert "mask" not in next(iter(data.train_dataloader()))
    assert "mask" in next(iter(data.val_dataloader()))


def test_mask_of_another_size(make_folder: Callable[..., WSSSDataModule]) -> None:
    data = make_folder()
    masks_for(data, "abcd", size=(20, 30))
    data.setup("validate")
    with pytest.raises(DataError, match=r"a\.png is 20 x 30 pixels, but its image .*a\.png is 30 x 20"):
        next(iter(data.val_dataloader()))


def test_mask_is_drawn_for_the_upright_image(make_folder: Callable[..., WSSSDataModule]) -> None:
    data = make_folder()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 30)).save(Path(data.options.root) / "images" / "a.png", exif=exif)
    masks_for(data, "abcd", size=(30, 20))
    data.setup("validate")
    sample = next(iter(data.val_dataloader()))
    assert sample["image"].shape == (1, 3, 20, 30)
    assert sample["mask"].shape == (1, 20, 30)
    assert sample["original_size"].tolist() == [[20, 30]]


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ("image,tags\na.png,cta\n", r"tags\.csv, line 2: unknown tag 'cta'; did you mean 'cat'"),
        ("image,tags\nzz.png,cat\n", r"tags\.csv: 1 of its 1 images are not in .*: zz"),
        ("image,tags\na.png,\n", r"split 'train': none of its 4 images has a tag"),
    ],
)
def test_bad_tags_are_reported_by_setup(make_folder: Callable[..., WSSSDataModule], tags: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_folder(tags=tags).setup("fit")


def test_missing_folders_and_files(make_folder: Callable[..., WSSSDataModule], tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"class_file='.*none\.txt': no such file"):
        make_folder(class_file="none.txt")
    for name in ("tags_file", "image_dir", "mask_dir", "saliency_dir"):
        with pytest.raises(DatasetNotFoundError, match=f"{name}='.*none': no such"):
            make_folder(**{name: "none"}).setup("fit")
    (tmp_path / "mine" / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no image in it; give image_dir"):
        make_folder(image_dir="empty").setup("fit")


def test_saliency_without_any_match(make_folder: Callable[..., WSSSDataModule], tmp_path: Path) -> None:
    data = make_folder(saliency_dir="maps", scale=(1.0, 1.0))
    (tmp_path / "mine" / "maps").mkdir()
    with pytest.raises(DataError, match=r"saliency_dir='maps': no map for any of the 2 training images, such as a"):
        data.setup("fit")
    for name in "ab":
        Image.new("L", (30, 20), 51).save(tmp_path / "mine" / "maps" / f"{name}.png")
    data.setup("fit")
    saliency = next(iter(data.train_dataloader()))["saliency"]
    assert saliency.shape == (2, 16, 16)
    assert saliency.unique().tolist() == pytest.approx([0.0, 0.2])


def test_root_must_be_given() -> None:
    with pytest.raises(ArgumentError, match="root=None: give the folder of the data set 'folder'"):
        WSSSDataModule("folder")
