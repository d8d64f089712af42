"""A segmentation network on annotations in COCO's form with categories of one's own, from the masks to the results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from rca_lightning.cli.main import main
from tests.integration.running import run

CATEGORIES = {30: "rust", 7: "crack"}


@pytest.fixture
def damage(tmp_path: Path) -> Path:
    """Eight grey photographs with a bright square (crack) on the left or a dark one (rust) on the right."""
    root = tmp_path / "damage"
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(8):
        pixels = np.full((64, 64, 3), 128, np.uint8)
        x, value, category = (4, 255, 7) if number % 2 else (36, 0, 30)
        pixels[20:44, x : x + 24] = value
        Image.fromarray(pixels).save(root / "images" / f"im{number}.png")
        images.append({"id": 100 + number, "file_name": f"im{number}.png", "height": 64, "width": 64})
        square = [[x, 20, x + 24, 20, x + 24, 44, x, 44]]
        annotations.append({"id": number, "image_id": 100 + number, "category_id": category, "segmentation": square})
    categories = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "instances.json").write_text(json.dumps(content))
    return root


def test_own_categories_from_masks_to_results(
    segment: Path, damage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    content = yaml.safe_load(segment.read_text())
    content["data"] = {
        **{"dataset": "coco2017", "root": str(damage), "annotation_file": "instances.json", "image_dir": "images"},
        **{"batch_size": 4, "crop_size": 64, "scale": [1.0, 1.0], "num_workers": 0, "color_jitter": 0.0},
    }
    segment.write_text(yaml.safe_dump(content))
    cli = run("fit", segment, "--trainer.max_epochs=15")
    assert cli.model.class_names == ["crack", "rust"]
    assert cli.model.hparams["num_classes"] == 2

    checkpoint = tmp_path / "run" / "last.ckpt"
    run("validate", segment, "--ckpt_path", checkpoint)
    assert set(json.loads((tmp_path / "run" / "validate.json").read_text())["per_class_iou"]) == {
        "background",
        "crack",
        "rust",
    }
    out = tmp_path / "masks"
    writer = ("--trainer.callbacks+=rca_lightning.MaskWriter", f"--trainer.callbacks.output_dir={out}")
    run("predict", segment, "--ckpt_path", checkpoint, *writer, "--trainer.callbacks.coco_results=true")
    results = json.loads((out / "coco_results.json").read_text())
    assert results
    for entry in results:
        number = entry["image_id"] - 100
        values = np.unique(np.array(Image.open(out / "masks" / f"im{number}.png")))
        assert {7: 1, 30: 2}[entry["category_id"]] in values
    capsys.readouterr()
    results, annotations = str(out / "coco_results.json"), str(damage / "instances.json")
    main(["check", "--layout", "coco", "--results", results, "--annotations", annotations])
    assert "images pass; found: " in capsys.readouterr().out
