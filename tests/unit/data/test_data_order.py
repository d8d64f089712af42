"""Which images come when: a function of the seed and the epoch, and of nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tests.quiet_trainer import quiet_trainer

from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.data.loaders import EpochSampler, ShardSampler
from rca_lightning.errors import ArgumentError

Seen = list[tuple[tuple[str, ...], float]]


@pytest.fixture(autouse=True)
def seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the seed of a test when it ends."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")


def module(root: Path, *, seed: int = 1, num_workers: int = 0, **arguments: object) -> WSSSDataModule:
    L.seed_everything(seed, verbose=False)
    options = {"batch_size": 4, "crop_size": 32, "train_masks": False} | arguments
    return WSSSDataModule("voc2012", root, num_workers=num_workers, **options)


def digest(batch: dict) -> tuple[tuple[str, ...], float]:
    weights = torch.linspace(1, 2, batch["image"].numel(), dtype=torch.float64)
    return tuple(batch["image_id"]), float(batch["image"].flatten().double() @ weights)


def epochs(data: WSSSDataModule, numbers: list[int]) -> list[Seen]:
    data.setup("fit")
    loader = data.train_dataloader()
    seen = []
    for number in numbers:
        loader.sampler.set_epoch(number)
        seen.append([digest(batch) for batch in loader])
    return seen


def test_same_seed_gives_equal_batches_for_any_number_of_workers(make_voc: Callable[..., Path]) -> None:
    root = make_voc(12)
    reference = epochs(module(root), [0, 1])
    assert epochs(module(root), [0, 1]) == reference
    assert epochs(module(root, num_workers=2), [0, 1]) == reference
    assert epochs(module(root), [1, 0]) == reference[::-1]


def test_epochs_and_seeds_differ_in_order_and_in_pixels(make_voc: Callable[..., Path]) -> None:
    root = make_voc(12)
    (first, second), (other,) = epochs(module(root), [0, 1]), epochs(module(root, seed=5), [0])
    assert len({tuple(names for names, _ in seen) for seen in (first, second, other)}) == 3
    plain = epochs(module(root, shuffle=False), [0, 1])
    assert [names for names, _ in plain[0]] == [names for names, _ in plain[1]]
    assert not {pixels for _, pixels in plain[0]} & {pixels for _, pixels in plain[1]}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_equal_photographs_are_augmented_differently(make_voc: Callable[..., Path], num_workers: int) -> None:
    root = make_voc(8)
    content = (root / "JPEGImages" / "img_000.jpg").read_bytes()
    for file in (root / "JPEGImages").iterdir():
        file.write_bytes(content)
    data = module(root, num_workers=num_workers, shuffle=False)
    data.setup("fit")
    images = torch.cat([batch["image"] for batch in data.train_dataloader()])  # a batch from each worker
    assert len({image.numpy().tobytes() for image in images}) == 8


def test_loading_leaves_the_generator_of_the_network_alone(make_voc: Callable[..., Path]) -> None:
    data = module(make_voc(4))
    data.setup("fit")
    before = torch.get_rng_state()
    list(data.train_dataloader())
    list(data.val_dataloader())
    assert torch.equal(before, torch.get_rng_state())


class Recorder(L.LightningModule):
    """Notes what each training epoch shows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: dict[int, Seen] = {}

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        self.seen.setdefault(self.current_epoch, []).append(digest(batch))
        return self.layer(batch["tags"][:, :1]).mean()

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        pass

    def predict_step(self, batch: dict, batch_idx: int) -> list[str]:
        return batch["image_id"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(tmp_path: Path, *, save_on_train_epoch_end: bool = False, **arguments: object) -> L.Trainer:
    every_epoch = ModelCheckpoint(
        dirpath=tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=save_on_train_epoch_end
    )
    return quiet_trainer(tmp_path, enable_checkpointing=True, callbacks=[every_epoch], **arguments)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("at_end", [False, True])
def test_resumed_run_sees_what_an_uninterrupted_one_sees(
    make_voc: Callable[..., Path], tmp_path: Path, num_workers: int, at_end: bool
) -> None:
    root = make_voc(8)
    whole, first, rest = Recorder(), Recorder(), Recorder()
    trainer(tmp_path / "a", max_epochs=4).fit(whole, module(root, num_workers=num_workers))
    trainer(tmp_path / "b", max_epochs=2, save_on_train_epoch_end=at_end).fit(
        first, module(root, num_workers=num_workers)
    )
    resumed = trainer(tmp_path / "c", max_epochs=4)
    resumed.fit(rest, module(root, num_workers=num_workers), ckpt_path=tmp_path / "b" / "epoch=1.ckpt")
    assert sorted(rest.seen) == [2, 3]
    assert {**first.seen, **rest.seen} == whole.seen
    assert len({tuple(seen) for seen in whole.seen.values()}) == 4


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_overfitting_and_predicting_through_the_trainer(make_voc: Callable[..., Path], tmp_path: Path) -> None:
    root = make_voc(8)
    recorder = Recorder()
    trainer(tmp_path, max_epochs=2, overfit_batches=1, limit_val_batches=0).fit(recorder, module(root))
    assert recorder.seen[0] == recorder.seen[1]
    predicted = trainer(tmp_path).predict(recorder, module(root), weights_only=None)
    assert predicted == [[f"img_{number:03d}"] for number in range(8)]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_validation_part_is_needed_without_validation(make_voc: Callable[..., Path], tmp_path: Path) -> None:
    root = make_voc(4)
    (root / "ImageSets" / "Segmentation" / "val.txt").unlink()
    recorder = Recorder()
    trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(recorder, module(root))
    assert len(recorder.seen[0]) == 1


class SaveAt(L.Callback):
    """Writes a checkpoint after a number of batches, and stops."""

    def __init__(self, path: Path, batches: int) -> None:
        self.path, self.left = path, batches

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.left -= 1
        if self.left == 0:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt


def stopped(root: Path, tmp_path: Path, batches: int) -> Path:
    path = tmp_path / "stopped.ckpt"
    run = trainer(tmp_path / "b", max_epochs=2)
    run.callbacks.append(SaveAt(path, batches))
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run.fit(Recorder(), module(root))
    return path


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 2}, "^batch_size=2: the checkpoint was saved within an epoch, with 4: .*; give 4, or a"),
        ({"seed": 5}, "^seed_everything=5: .* with 1"),
        ({"shuffle": False}, "^shuffle=False: .* with True"),
        ({"images": 7}, "^number of training images=7: .* with 8"),
        ({"devices": 2}, "^devices=2: .* with 1"),
    ],
    ids=str,
)
def test_another_order_within_an_epoch_is_refused(
    make_voc: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, message: str
) -> None:
    root = make_voc(8)
    path = stopped(root, tmp_path, 1)
    if "images" in changes:
        names = root / "ImageSets" / "Segmentation" / "train.txt"
        names.write_text("".join(names.read_text().splitlines(keepends=True)[: changes.pop("images")]))
    if "devices" in changes:
        monkeypatch.setattr(L.Trainer, "world_size", changes.pop("devices"))
    with pytest.raises(ArgumentError, match=message):
        trainer(tmp_path / "c", max_epochs=2).fit(Recorder(), module(root, **changes), ckpt_path=path)


def in_world(monkeypatch: pytest.MonkeyPatch, size: int, rank: int) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: size)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda *_: rank)


def test_processes_share_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for rank in range(3):
        in_world(monkeypatch, 3, rank)
        sampler = EpochSampler(range(10), seed=7)
        sampler.set_epoch(2)
        share = list(sampler)
        assert {epoch for epoch, _ in share} == {2}
        assert len(share) == len(sampler) == 4
        shares.append([index for _, index in share])
    together = [index for share in shares for index in share]
    assert set(together) == set(range(10))
    assert len(together) == 12


def test_evaluation_gives_each_image_to_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for rank in range(3):
        in_world(monkeypatch, 3, rank)
        sampler = ShardSampler(range(10))
        assert len(list(sampler)) == len(sampler)
        shares.append(list(sampler))
    assert sorted(index for share in shares for index in share) == list(range(10))
    assert [len(share) for share in shares] == [4, 3, 3]
    with pytest.raises(ArgumentError, match="devices=3: more processes than the 2 images"):
        ShardSampler(range(2))
