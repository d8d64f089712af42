"""Maps and masks of other models on the command line: seeds of a fit, and proposals that labels are merged over."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rca_lightning.cli.main import main
from rca_lightning.errors import ArgumentError, DataError, DatasetNotFoundError, OutputError
from tests.folder_contents import file_bytes
from tests.integration.conftest import write_frozen_config
from tests.integration.running import run


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, synthetic_root: Path) -> tuple[Path, Path]:
    """Configuration of a fit behind a frozen backbone, and the folder of its maps, which the masks are."""
    folder = tmp_path_factory.mktemp("fitted")
    config = write_frozen_config(folder, synthetic_root)
    run("fit", config, "--trainer.max_epochs", 1, "--trainer.limit_val_batches", 0)
    writer = [
        "--trainer.callbacks+=rca_lightning.PseudoLabelWriter",
        f"--trainer.callbacks.output_dir={folder / 'out'}",
    ]
    run("predict", config, "--ckpt_path", folder / "run" / "last.ckpt", *writer)
    return config, folder


def prototypes(folder: Path) -> torch.Tensor:
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]["network.aggregation.prototypes"]


def test_a_fit_starts_from_seeds_and_its_checkpoint_needs_them_no_more(fitted, synthetic_root, tmp_path, caplog):
    _, folder = fitted
    config, seeds = write_frozen_config(tmp_path, synthetic_root), tmp_path / "seeds"
    seeds.mkdir()
    masks = sorted((synthetic_root / "SegmentationClass").glob("train*.png"))
    for number, path in enumerate(masks):
        values = np.asarray(Image.open(path))
        if number == 2:
            continue
        if number % 3 == 0:
            (seeds / path.name).write_bytes(path.read_bytes())
        elif number % 3 == 1:
            np.save(seeds / f"{path.stem}.npy", np.stack([values == index + 1 for index in range(6)]))
        else:
            maps = np.stack([values == index + 1 for index in range(6)]).astype(np.float16)
            np.savez_compressed(seeds / f"{path.stem}.npz", maps=maps, classes=np.arange(6))
    options = ["--data.seed_dir", seeds, "--trainer.max_epochs", 2, "--trainer.limit_val_batches", 0]
    with caplog.at_level(logging.INFO):
        run("fit", config, *options)
    assert f"seed_dir: {len(masks) - 1} of {len(masks)} photographs have maps" in caplog.text
    assert f"the CAM stands in for 1 photographs without maps of their tags: {masks[2].stem}" in caplog.text
    assert not torch.allclose(prototypes(tmp_path / "run"), prototypes(folder / "run"), atol=1e-3)
    seeds.rename(tmp_path / "elsewhere")
    run("validate", config, "--ckpt_path", tmp_path / "run" / "last.ckpt", "--data.seed_dir", seeds)


def test_wrong_seeds_end_a_fit_before_it_begins(fitted, synthetic_root, tmp_path):
    config, _ = fitted
    with pytest.raises(DatasetNotFoundError, match=r"seed_dir='.*none': no such folder"):
        run("fit", config, "--data.seed_dir", "none")
    with pytest.raises(DataError, match=r"no file for any of the 24 training images"):
        run("fit", config, "--data.seed_dir", tmp_path)
    name = min((synthetic_root / "SegmentationClass").glob("train*.png")).stem
    np.save(tmp_path / f"{name}.npy", {"keys": [0], "cam": np.ones((1, 64, 64))})
    with pytest.raises(DataError, match=r"Python objects, which are not unpickled; if you trust it, load it"):
        run("fit", config, "--data.seed_dir", tmp_path)
    np.save(tmp_path / f"{name}.npy", np.ones((6, 32, 32)))
    with pytest.raises(DataError, match=r"is 32 x 32 pixels, but its image"):
        run("fit", config, "--data.seed_dir", tmp_path)
    with pytest.raises(ArgumentError, match=r"^seed_dir=.*only regions of RCAModule behind a frozen backbone"):
        run("fit", config, "--data.seed_dir", tmp_path, "--model.backbone_mode", "trained")


def write_proposals(folder: Path, photographs: list[str]) -> None:
    """The left half of each photograph; of the first one all of it."""
    folder.mkdir()
    for number, image_id in enumerate(photographs):
        half = {"size": [64, 64], "counts": [0, 64 * 64] if number == 0 else [0, 32 * 64, 32 * 64]}
        (folder / f"{image_id}.json").write_text(json.dumps([{"segmentation": half}]))


def label(folder: Path, image_id: str) -> np.ndarray:
    return np.asarray(Image.open(folder / "pseudo_labels" / f"{image_id}.png"))


def test_labels_are_merged_over_proposals_from_stored_maps_and_while_predicting(fitted, tmp_path, caplog):
    config, folder = fitted
    maps = folder / "out" / "cams"
    ids = sorted(path.stem for path in maps.glob("*.npz"))
    write_proposals(tmp_path / "proposals", ids[:-1])
    words = ["labels", "--config", str(config), "--maps", str(maps), "--refine=[proposals]"]
    words += ["--proposals_dir", str(tmp_path / "proposals"), "--background_threshold", "0.3"]
    main([*words, "--output_dir", str(tmp_path / "labels")])
    assert "1 photographs have no proposals" in caplog.text
    for number, image_id in enumerate(ids):
        with np.load(maps / f"{image_id}.npz") as stored:
            scores, classes = stored["maps"].astype(np.float64), stored["classes"]
        if number < len(ids) - 1:
            left = slice(None) if number == 0 else slice(32)
            scores[:, :, left] = scores[:, :, left].mean(axis=(1, 2), keepdims=True)
        expected = np.where(scores.max(0) > 0.3, classes[scores.argmax(0)] + 1, 0)
        assert (label(tmp_path / "labels", image_id) == expected).mean() > 0.999
    before = file_bytes(tmp_path / "labels")
    main([*words, "--output_dir", str(tmp_path / "labels")])
    assert file_bytes(tmp_path / "labels") == before, "complete"
    writer = ["rca_lightning.PseudoLabelWriter", f"output_dir={tmp_path / 'predicted'}", "refine=[proposals]"]
    writer += [f"proposals_dir={tmp_path / 'proposals'}", "background_threshold=0.3", "workers=0"]
    run(
        "predict", config, "--ckpt_path", folder / "run" / "last.ckpt", f"--trainer.callbacks+={writer[0]}",
        *(f"--trainer.callbacks.{option}" for option in writer[1:]),
    )  # fmt: skip
    for image_id in ids:
        assert (label(tmp_path / "predicted", image_id) == label(tmp_path / "labels", image_id)).mean() > 0.98
    (tmp_path / "proposals" / f"{ids[0]}.json").write_text("[]  ")
    with pytest.raises(OutputError, match="proposals: "):
        main([*words, "--output_dir", str(tmp_path / "labels")])


def test_wrong_proposals_are_one_line(fitted, tmp_path):
    config, folder = fitted
    maps = folder / "out" / "cams"
    words = ["labels", "--config", str(config), "--maps", str(maps), "--output_dir", str(tmp_path / "labels")]
    given = ["--proposals_dir", str(tmp_path / "proposals"), "--background_threshold", "0.3"]
    with pytest.raises(ArgumentError, match=r"proposals_dir=.*nothing reads it"):
        main([*words, *given])
    with pytest.raises(DatasetNotFoundError, match=r"proposals_dir=.*no such folder"):
        main([*words, *given, "--refine=[proposals]"])
    write_proposals(tmp_path / "proposals", [path.stem for path in maps.glob("*.npz")])
    damaged = min((tmp_path / "proposals").iterdir())
    damaged.write_text(damaged.read_text()[:30])
    with pytest.raises(DataError, match=rf"{damaged.name}: not JSON"):
        main([*words, *given, "--refine=[proposals]", "--workers", "1"])
