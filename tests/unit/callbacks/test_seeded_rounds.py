"""The first round of a frozen fit cuts its regions from seed maps; later ones from the attention."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tests.frozen_fits import TRAIN, data, fit, frozen, generated
from tests.quiet_trainer import quiet_trainer

from rca_lightning.callbacks.region_memory import RegionMemoryCallback
from rca_lightning.data.seed_maps import Seeds
from rca_lightning.errors import ArgumentError, DataError
from rca_lightning.modules.rca_module import RCAModule, _with_seeds
from rca_lightning.modules.segmentation_module import SegmentationModule
from rca_lightning.rca.memory_bank import encode_ids


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generated(tmp_path_factory.mktemp("generated"))


def records(root: Path):
    photographs = data(root)
    photographs.setup("fit")
    return list(photographs._train.records)


def write_boxes(root: Path, folder: Path, *, every: int = 1) -> dict[str, np.ndarray]:
    """Label images that show each tag in a box of its own; of every so many photographs."""
    folder.mkdir()
    made = {}
    for number, record in enumerate(records(root)[::every]):
        label = np.zeros((64, 64), dtype=np.uint8)
        for place, index in enumerate(record.tags):
            top, left = 8 * (number % 4), 16 * place
            label[top : top + 24, left : left + 16] = index + 1
        Image.fromarray(label).save(folder / f"{record.image_id}.png")
        made[record.image_id] = label
    return made


class Watch(L.Callback):
    """Memory, prototypes and what batches held, of each epoch."""

    def __init__(self) -> None:
        self.memories: list[dict] = []
        self.seeded: list[int] = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.seeded.append(0)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seeded[-1] += sum(seeds is not None for seeds in batch.get("seeds", ()))

    def on_train_epoch_end(self, trainer, pl_module):
        self.memories.append({name: getattr(pl_module.memory, name).clone() for name in ("embeddings", "valid", "ids")})


def stored(memory: dict, image_id: str, label: int) -> torch.Tensor:
    """Embeddings of a photograph and class in a memory, `(R, D)`."""
    mine = (memory["ids"][label] == encode_ids([image_id])[0]).all(1)
    return memory["embeddings"][label][mine & memory["valid"][label]]


def pooled_by_loops(features: torch.Tensor, label: np.ndarray, value: int) -> np.ndarray:
    """Mean feature of the cells `(8 x 8 pixels)` that lie in the box of a class."""
    cells = [
        features[:, row, column].double().numpy()
        for row in range(features.shape[1])
        for column in range(features.shape[2])
        if (label[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] == value).mean() > 0.5
    ]
    return np.mean(cells, axis=0)


def test_regions_of_the_first_round_are_those_of_the_seeds(root, tmp_path):
    labels, watch = write_boxes(root, tmp_path / "seeds"), Watch()
    module = frozen(contrast=False)
    photographs = data(root, seed_dir=str(tmp_path / "seeds"))
    fit(root, tmp_path, module, epochs=2, callbacks=[watch], limit_val_batches=0, dataset=photographs)
    assert watch.seeded == [TRAIN, 0], "the second round reads the attention"
    cached, checked = photographs.cached_features(), 0
    for row, record in enumerate(records(root)):
        features = cached[row]["features"][0][0].float()
        for index in record.tags:
            (found,) = stored(watch.memories[0], record.image_id, index)
            expected = torch.from_numpy(pooled_by_loops(features, labels[record.image_id], index + 1)).float()
            torch.testing.assert_close(found, F.normalize(expected, dim=0), atol=1e-5, rtol=1e-4)
            checked += 1
        background = stored(watch.memories[0], record.image_id, 6)
        assert len(background) == 4, "a region of each tile of the grid"
    assert checked >= TRAIN


def test_where_there_are_no_seeds_the_cam_stands_in(root, tmp_path):
    plain, some = Watch(), Watch()
    fit(root, tmp_path, frozen(), epochs=1, callbacks=[plain], limit_val_batches=0)
    seeded = write_boxes(root, tmp_path / "seeds", every=2)
    photographs = data(root, seed_dir=str(tmp_path / "seeds"))
    fit(root, tmp_path, frozen(), epochs=1, callbacks=[some], limit_val_batches=0, dataset=photographs)
    assert some.seeded == [len(seeded)]
    same = {True: 0, False: 0}
    for record in records(root):
        for index in record.tags:
            before, now = (stored(watch.memories[0], record.image_id, index) for watch in (plain, some))
            equal = before.shape == now.shape and torch.allclose(before, now, atol=1e-6)
            same[equal] += 1
            assert equal or record.image_id in seeded
    assert same[True] >= len(records(root)) - len(seeded)
    assert same[False] > 0


def test_maps_of_every_round_come_from_the_seeds_where_none_reads_the_attention(root, tmp_path):
    write_boxes(root, tmp_path / "seeds")
    watch, photographs = Watch(), data(root, seed_dir=str(tmp_path / "seeds"))
    module = frozen(region_map="coarse")
    fit(root, tmp_path, module, epochs=2, callbacks=[watch], limit_val_batches=0, dataset=photographs)
    assert watch.seeded == [TRAIN, TRAIN]
    assert module.network.has_prototypes


def test_seeds_of_all_rounds_are_contrasted_with_too(root, tmp_path):
    write_boxes(root, tmp_path / "seeds")
    found = {}
    for rounds in ("first", "all"):
        watch = Watch()
        photographs = data(root, seed_dir=str(tmp_path / "seeds"), seed_rounds=rounds)
        module = frozen()
        _, trainer = fit(root, tmp_path, module, epochs=3, callbacks=[watch], limit_val_batches=0, dataset=photographs)
        assert watch.seeded == ([TRAIN] * 3 if rounds == "all" else [TRAIN, 0, 0])
        found[rounds] = module.network.aggregation.prototypes, float(trainer.callback_metrics["train/label_change"])
    assert not torch.allclose(found["first"][0], found["all"][0], atol=1e-3)
    assert found["all"][1] == 0 < found["first"][1], "labels are read from the maps that regions are cut from"


def test_seeds_take_the_place_of_maps_also_in_the_mirror_image():
    cam = torch.rand(2, 3, 4, 5) - 0.5
    seeds = Seeds(torch.tensor([2]), torch.rand(1, 8, 15))
    found = _with_seeds(cam, seeds)
    assert torch.equal(found[:, :2], cam[:, :2])
    assert torch.equal(found[0, 2], seeds.on_grid((4, 5))[0])
    assert torch.equal(found[1, 2], found[0, 2].flip(1))
    assert float(found[0, 2].max()) == 1
    assert _with_seeds(cam[:1], seeds).shape == (1, 3, 4, 5)


def test_wrong_seeds_are_refused_before_features_are_computed(root, tmp_path):
    labels = write_boxes(root, tmp_path / "seeds")
    np.save(tmp_path / "seeds" / f"{min(labels)}.npy", np.full((6, 64, 64), np.nan))
    (tmp_path / "seeds" / f"{min(labels)}.png").unlink()
    photographs = data(root, seed_dir=str(tmp_path / "seeds"))
    with pytest.raises(DataError, match="NaN or infinite"):
        fit(root, tmp_path, frozen(), dataset=photographs)
    assert not list(tmp_path.rglob("features/*/*/*.npy"))


def test_a_trained_backbone_and_other_modules_refuse_seeds(root, tmp_path):
    write_boxes(root, tmp_path / "seeds")
    for module, callbacks in (
        (RCAModule(6, backbone="resnet14", weights="none"), [RegionMemoryCallback(backend="torch")]),
        (frozen(contrast=False, aggregation=False), []),
        (SegmentationModule(6, backbone="resnet14", weights="none"), []),
    ):
        trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=callbacks)
        with pytest.raises(ArgumentError, match=r"^seed_dir='.*': only regions of RCAModule behind a frozen backbone"):
            trainer.fit(module, data(root, seed_dir=str(tmp_path / "seeds")))
