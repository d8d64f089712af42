"""Checkpoints of every task, of which the frozen ones are fitted, and small photographs."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from tests.frozen_fits import data, fit, frozen, generated
from tests.quiet_trainer import quiet_trainer

from rca_lightning import FeatureCacheCallback, FrozenSegmentationModule, OneStageModule, SegmentationModule
from rca_lightning.data.synthetic.dataset import CLASS_NAMES

SIZE = (52, 60)  # height and width of the photographs
NAMES = [*CLASS_NAMES]
TAGS = {"cmyk": ["kettle"], "deep": ["beetle", "lantern"], "turned": ["beetle", "kettle"]}


def save(module: L.LightningModule, path: Path) -> Path:
    trainer = quiet_trainer(path.parent)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated images."""
    return generated(tmp_path_factory.mktemp("generated"))


@pytest.fixture(scope="session")
def checkpoints(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By task."""
    folder = tmp_path_factory.mktemp("checkpoints")
    options = {"limit_val_batches": 0, "num_sanity_val_steps": 0}
    first = frozen(scales=(0.7, 1.0), class_names=NAMES)
    _, trainer = fit(images, folder, first, epochs=1, **options)
    trainer.save_checkpoint(folder / "localize.ckpt")
    second = FrozenSegmentationModule(6, first_stage=str(folder / "localize.ckpt"))
    trainer = quiet_trainer(folder, max_epochs=1, callbacks=[FeatureCacheCallback(str(folder / "second"))], **options)
    trainer.fit(second, datamodule=data(images))
    trainer.save_checkpoint(folder / "segment_frozen.ckpt")
    torch.manual_seed(0)
    common = {"class_names": NAMES, "backbone": "resnet14", "weights": "none"}
    others = {
        "segment": SegmentationModule(6, scales=(1.0, 1.3), head="linear", tag_weight=1.0, **common),
        "one_stage": OneStageModule(6, head="linear", embedding_dim=16, **common),
    }
    with torch.no_grad():
        for head in (others["segment"].network.head, others["one_stage"].teacher.head):
            for weight in head.parameters():
                weight *= 100  # else all is of one label
    paths = {task: folder / f"{task}.ckpt" for task in ("localize", "segment_frozen")}
    return paths | {task: save(module, folder / f"{task}.ckpt") for task, module in others.items()}


@pytest.fixture(scope="session")
def pixels(images: Path) -> list[np.ndarray]:
    """Photographs `(H, W, 3)` uint8."""
    files = sorted((images / "JPEGImages").iterdir())[:6]
    return [np.array(Image.open(file).convert("RGB"))[: SIZE[0], : SIZE[1]] for file in files]


@pytest.fixture(scope="session")
def folder(pixels: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs in the forms that files come in, with tags and classes."""
    root = tmp_path_factory.mktemp("photographs")
    (root / "images").mkdir()
    (root / "classes.txt").write_text("\n".join(NAMES))
    lines = [f"{image_id},{';'.join(tags)}" for image_id, tags in TAGS.items()]
    (root / "tags.csv").write_text("\n".join(["image,tags", *lines, ""]))
    Image.fromarray(pixels[0]).save(root / "images" / "plain.png")
    Image.fromarray(pixels[1]).convert("CMYK").save(root / "images" / "cmyk.jpg")
    deep = pixels[2][:, :, 0].astype(np.uint16) * 257
    Image.fromarray(deep).save(root / "images" / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels[3]).save(root / "images" / "turned.jpg", exif=exif)
    return root
