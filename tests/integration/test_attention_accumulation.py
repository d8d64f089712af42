"""Accumulated maps through the command line: resumed, read in prediction, refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from rca_lightning import AttentionAccumulation
from rca_lightning.cli.main import main
from rca_lightning.cli.tasks import RCACLI
from rca_lightning.errors import ArgumentError
from tests.integration.conftest import write_config

ACCUMULATION = {"class_path": "rca_lightning.AttentionAccumulation", "init_args": {"cells": 16, "warmup_epochs": 1}}


def configured(config: Path, tmp_path: Path, folder: str, *callbacks: dict) -> Path:
    content = yaml.safe_load(config.read_text())
    content["model"] |= {"contrast": False, "aggregation": False, "backbone": "resnet14"}
    content["trainer"]["callbacks"][0]["init_args"]["dirpath"] = str(tmp_path / folder)
    content["trainer"]["callbacks"] += callbacks
    path = tmp_path / f"{folder}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def fit(path: Path, *more: object) -> RCACLI:
    return main(
        ["fit", "--config", str(path), "--trainer.max_epochs=4", "--trainer.limit_val_batches=0", *map(str, more)]
    )


def accumulation(cli: RCACLI) -> AttentionAccumulation:
    return next(callback for callback in cli.trainer.callbacks if isinstance(callback, AttentionAccumulation))


def assert_same(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        found = second[name]
        assert torch.equal(value, found) if isinstance(value, torch.Tensor) else value == found, name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, synthetic_root: Path) -> tuple[AttentionAccumulation, Path]:
    """The callback after a run of four epochs, and its last checkpoint."""
    folder = tmp_path_factory.mktemp("whole")
    cli = fit(configured(write_config(folder, synthetic_root), folder, "run", ACCUMULATION))
    return accumulation(cli), folder / "run" / "last.ckpt"


def test_resumed_store_equals_that_of_an_uninterrupted_run(config: Path, tmp_path: Path, whole):
    stop = {"class_path": "tests.integration.stopping.StopAfter", "init_args": {"epochs": 3}}
    stopped = fit(configured(config, tmp_path, "stopped", ACCUMULATION, stop))
    assert stopped.trainer.current_epoch == 3
    last = tmp_path / "stopped" / "last.ckpt"
    saved = torch.load(last, weights_only=True)["callbacks"]["AttentionAccumulation"]["store"]
    at_three = accumulation(stopped).store.state_dict()
    assert_same(saved, at_three)
    assert len(saved["image_ids"]) == 24
    resumed = fit(configured(config, tmp_path, "resumed", ACCUMULATION), "--ckpt_path", last)
    at_four = whole[0].store.state_dict()
    assert_same(at_four, accumulation(resumed).store.state_dict())
    assert not torch.equal(at_three["values"], at_four["values"])
    assert bool((at_three["values"] <= at_four["values"]).all())
    other = {**ACCUMULATION, "init_args": {"cells": 8}}
    with pytest.raises(ArgumentError, match="cells=8: the checkpoint holds maps made with 16"):
        fit(configured(config, tmp_path, "other", other), "--ckpt_path", last)


@pytest.mark.parametrize("final_map", ["coarse", "attention", "mean"])
def test_steps_hand_over_maps_without_their_graph(config: Path, tmp_path: Path, final_map: str):
    watch = {"class_path": "tests.integration.accumulated.Outputs"}
    path = configured(config, tmp_path, "run", watch)
    more = ["--model.aggregation=true", f"--model.final_map={final_map}", "--trainer.limit_val_batches=0"]
    cli = main(["fit", "--config", str(path), "--trainer.max_epochs=2", *more])
    graphs = next(callback for callback in cli.trainer.callbacks if hasattr(callback, "graphs")).graphs
    assert graphs == [False] * 6


def test_maps_come_back_in_prediction(config: Path, tmp_path: Path, whole):
    store, last = whole[0].store, whole[1]
    read = {"class_path": "tests.integration.accumulated.ReadAccumulated", "init_args": {"folder": str(tmp_path)}}
    path = configured(config, tmp_path, "read", ACCUMULATION, read)
    words = ["predict", "--config", str(path), "--ckpt_path", str(last), "--data.predict_split"]
    main([*words, "train"])
    names = store.state_dict()["image_ids"]
    drawn = 0
    for name in names:
        found = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert found["maps"].shape == (len(found["classes"]), 64, 64)
        assert torch.equal(found["maps"], store.read(name, found["classes"].tolist(), (64, 64)))
        drawn += bool((found["maps"].amax(dim=(1, 2)) == 1).any())
    assert drawn > len(names) / 2  # a CAM may be negative wherever a crop has seen
    main([*words, "val", "--trainer.default_root_dir", str(tmp_path / "val")])
    unseen = [path for path in tmp_path.glob("*.pt") if path.stem not in names]
    assert len(unseen) == 6
    assert all(torch.load(path, weights_only=True) is None for path in unseen)


def test_checkpoint_without_maps_is_refused_before_the_first_image(config: Path, tmp_path: Path):
    fit(configured(config, tmp_path, "run"), "--trainer.max_epochs=1")
    read = {"class_path": "tests.integration.accumulated.ReadAccumulated", "init_args": {"folder": str(tmp_path)}}
    words = ["--ckpt_path", str(tmp_path / "run" / "last.ckpt")]
    with pytest.raises(ArgumentError, match=r"last\.ckpt': no accumulated maps in it; train with AttentionAcc"):
        main(["predict", "--config", str(configured(config, tmp_path, "with", ACCUMULATION, read)), *words])
    with pytest.raises(ArgumentError, match=r"trainer\.callbacks=None: add AttentionAccumulation"):
        main(["predict", "--config", str(configured(config, tmp_path, "without", read)), *words])
    assert not list(tmp_path.glob("*.pt"))
    # Who does not ask for them is not kept from predicting.
    main(["predict", "--config", str(configured(config, tmp_path, "plain", ACCUMULATION)), *words])


def test_data_that_would_not_fit_is_refused_before_the_first_step(config: Path, tmp_path: Path):
    small = {**ACCUMULATION, "init_args": {"max_mib": 0.01}}
    watch = {"class_path": "tests.integration.accumulated.Outputs"}
    with pytest.raises(ArgumentError, match=r"max_mib=0\.01: \d+ maps may take 0\.\d MiB; give 1 MiB, or cells=1\d"):
        fit(configured(config, tmp_path, "run", small, watch))
    assert not list((tmp_path / "run").glob("*.ckpt"))
