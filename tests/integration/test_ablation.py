"""`experiments/ablation`: a real run that is stopped and goes on, and all the rest with a stand-in for `rca`."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import run as run_script
import table as table_script
import torch
from ablate.lock import locked
from ablate.markdown import markdown
from ablate.summary import read_results
from PIL import Image

from rca_lightning.errors import ArgumentError, DataError, MissingExtraError, OutputError, RCAError
from tests.integration.grids import result, without_dirpath, write_grid

pytestmark = pytest.mark.usefixtures("one_thread_at_the_root")


@pytest.mark.timeout(900)  # five processes that each import torch, perhaps on a busy machine
def test_stopped_run_goes_on(config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    mark, out = tmp_path / "waiting", tmp_path / "out"
    pause = {"class_path": "tests.integration.grids.PauseAfter", "init_args": {"mark": str(mark)}}
    grid = write_grid(
        tmp_path,
        config=without_dirpath(config, pause),
        seeds=[1],
        splits=["val_a"],
        halves=True,
        rows={"rca": {}, "guessed": {"fit": "rca", "set": {"model.eval_tags": "predicted"}}},
    )
    words = [str(grid), "--out", str(out), "--processes", "2", "--rows", "guessed"]  # and the training that it reads

    def stop_when_it_waits() -> None:
        while not mark.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop_when_it_waits, daemon=True)
    stopper.start()
    assert run_script.main(words) == 128 + signal.SIGTERM
    stopper.join()
    assert not list((out / "results").glob("*"))
    with locked(out):  # no child holds it any more
        pass
    assert "stopped: fit rca-seed1" in capfd.readouterr().out

    assert run_script.main(words) == 0
    printed = capfd.readouterr().out
    assert "resumed: fit rca-seed1" in printed
    assert "Restor" in (out / "work" / "rca-seed1" / "log.txt").read_text()
    checkpoint = torch.load(out / "work" / "rca-seed1" / "checkpoints" / "last.ckpt", weights_only=True)
    assert (checkpoint["epoch"], checkpoint["global_step"]) == (1, 6)

    assert [path.stem for path in (out / "results").iterdir()] == ["guessed-seed1"]
    full = result(out, "guessed-seed1")
    assert (full["checkpoint_of"], full["overrides"]) == ("rca", {"model.eval_tags": "predicted"})
    assert (full["fit"]["attempts"], full["fit"]["complete"]) == (2, True)
    assert full["fit"]["cpu_seconds"] > 0
    assert full["settings"]["model"]["num_prototypes"] == 3
    assert full["hardware"]["threads"] == 1
    assert full["prototypes"]["classes_with_one"] > 0
    assert sum(full["regions"].values()) == int(
        checkpoint["callbacks"]["RegionMemoryCallback"]["memory"]["counts"].sum()
    )
    assert full["splits"]["val_a"]["images"] == 3  # every other one of six
    assert set(full["splits"]["val_a"]["per_class_iou"]) > {"background"}
    assert full["splits"]["val_a"]["tags"] == "predicted"


# Does what `rca` does as far as the tool can see, at once. A row with 13 prototypes fails.
STAND_IN = """
import json, os, pathlib, shutil, sys
options = dict(word[2:].split("=", 1) for word in sys.argv[2:])
folder = pathlib.Path(options["trainer.default_root_dir"])
folder.mkdir(parents=True, exist_ok=True)
print("stand-in", sys.argv[1], flush=True)
if options.get("model.num_prototypes") == "13":
    sys.exit("unlucky")
if sys.argv[1] == "fit":
    (folder / "checkpoints").mkdir(exist_ok=True)
    shutil.copyfile(os.environ["STAND_IN_CHECKPOINT"], folder / "checkpoints" / "last.ckpt")
else:
    assert pathlib.Path(options["ckpt_path"]).is_file()
    prototypes = int(options.get("model.num_prototypes", 10))
    miou = prototypes / 100 + int(options["seed_everything"]) / 1000 + (options["data.eval_split"] == "train") / 10
    report = {"split": options["data.eval_split"], "images": 6, "tags": "image", "threshold": 0.3, "miou": miou,
              "curve": {"0.2": miou - 0.05, "0.3": miou, "0.4": miou - 0.02}, "per_class_iou": {"background": miou},
              "classification_map": 0.5}
    (folder / "validate.json").write_text(json.dumps(report))
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """A program in the place of `rca` that takes no time."""
    state = {"prototypes": torch.ones(6, 2), "valid": torch.ones(6, dtype=torch.bool)}
    content = {
        "state_dict": {f"network.aggregation.{name}": value for name, value in state.items()},
        "hyper_parameters": {"num_classes": 2, "class_names": ["a", "b"], "num_prototypes": 2},
        "callbacks": {"RegionMemoryCallback": {"diagnostics": {"a": {"coverage": 0.75}, "b": {"coverage": 0.25}}}},
    }
    torch.save(content, tmp_path / "stand_in.ckpt")
    monkeypatch.setenv("STAND_IN_CHECKPOINT", str(tmp_path / "stand_in.ckpt"))
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    return sys.executable, "-S", str(script)


def cells_by_row(text: str) -> dict[str, list[str]]:
    """Cells of the lines of a table in Markdown, by the first one."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return {line.split(" | ")[0].strip("| "): [cell.strip() for cell in line.split(" | ")] for line in lines}


@pytest.fixture
def grid(config: Path, tmp_path: Path) -> Path:
    """Two rows with two seeds, one of them with another number of prototypes, a reading row, and one that fails."""
    return write_grid(
        tmp_path,
        title="A small grid",
        config=without_dirpath(config),
        seeds=[0, 1],
        reference="K3",
        rows={
            "cam": {"title": "plain CAM", "set": {"model.num_prototypes": 1}},
            "K3": {"group": "Prototypes", "set": {"model.num_prototypes": 3}},
            "K5": {"group": "Prototypes", "seeds": [0], "set": {"model.num_prototypes": 5}},
            "same": {"group": "Prototypes", "set": {"model.num_prototypes": 3}, "title": "K 3 again"},
            "bad": {"group": "Prototypes", "seeds": [0], "set": {"model.num_prototypes": 13}},
            "read": {"group": "Reading", "fit": "K3", "set": {"model.flip": False, "model.final_map": "coarse"}},
        },
    )


def test_failing_row_is_told_and_the_others_go_on(
    grid: Path, tmp_path: Path, stand_in: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    words = [str(grid), "--out", str(out), "--processes", "2", "--data.num_workers", "0"]
    assert run_script.main(words, program=stand_in) == 1
    printed = capsys.readouterr().out
    assert re.search(r"FAILED: fit bad-seed0: exit status 1; .*:\nstand-in fit\nunlucky\n", printed)
    assert "LEFT OUT: score bad-seed0 on val" in printed
    assert "not done: fit bad-seed0" in printed
    assert "the same as K3, so not run: same" in printed
    assert "6 trainings and 16 scorings to begin" in printed
    assert "[22/22]" in printed
    finished = {path.stem for path in (out / "results").iterdir()}
    assert finished == {"cam-seed0", "cam-seed1", "K3-seed0", "K3-seed1", "K5-seed0", "read-seed0", "read-seed1"}
    found = result(out, "K3-seed1")
    assert found["splits"]["val"]["best"] == {"threshold": 0.3, "miou": pytest.approx(0.031)}
    assert found["splits"]["val"]["fixed"] == {"threshold": 0.3, "miou": pytest.approx(0.031), "chosen_on": "train"}
    assert found["prototypes"]["per_class"] == {"a": 2, "b": 2}
    assert found["further"] == ["--data.num_workers=0"]
    assert found["command"].startswith("python experiments/ablation/run.py")
    assert found["fit"]["attempts"] == 1

    # Finished runs are kept as they are; what failed is tried again.
    before = {path: path.stat().st_mtime_ns for path in (out / "results").iterdir()}
    assert run_script.main(words, program=stand_in) == 1
    assert {path: path.stat().st_mtime_ns for path in (out / "results").iterdir()} == before
    assert len(re.findall("started: ", capsys.readouterr().out)) == 1

    # Another split is added to what is there.
    grid.write_text(grid.read_text() + "halves: true\n")
    assert run_script.main([*words, "--rows", "K5", "--splits", "val_b"], program=stand_in) == 0
    assert set(result(out, "K5-seed0")["splits"]) == {"train", "val", "val_b"}
    assert len((out / "halves" / "val_b.txt").read_text().split()) == 3

    grid.write_text(grid.read_text().replace("model.num_prototypes: 5", "model.num_prototypes: 6"))
    with pytest.raises(OutputError, match=r"model.num_prototypes=5 and now would be with 6"):
        run_script.main(words, program=stand_in)


def test_table_and_plots(grid: Path, tmp_path: Path, stand_in: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    out, report = tmp_path / "out", tmp_path / "report"
    words = [str(grid), "--out", str(out), "--rows", "cam,K3,K5,read,same", "--delete-checkpoints"]
    assert run_script.main(words, program=stand_in) == 0
    assert not list(out.rglob("*.ckpt"))
    capsys.readouterr()
    table_script.main([str(out), "--out", str(report)])
    text = (report / "table.md").read_text()
    assert text in capsys.readouterr().out
    assert text.startswith("# A small grid\n\n")
    scores, prototypes = text.split("## What the prototypes are like")
    cells = cells_by_row(scores)
    # mIoU of the stand-in: 1 a prototype, 0.1 a seed, 10 more on train.
    assert cells["plain CAM"][1:4] == ["0, 1", "11.1 ± 0.1 (11.0..11.1)", ""]
    assert cells["K3"][1:4] == ["0, 1", "13.1 ± 0.1 (13.0..13.1)", "+2.0 ± 0.0 (+2.0..+2.0)"]
    assert cells["K5"][1:6] == ["0", "15.0", "+4.0", "5.0", "+4.0"]
    assert cells["K5"][-3:-1] == ["0.50", "1.00"]  # coverage and cosine of the stand-in's checkpoint
    assert cells["read"][-1].startswith("reads K3")
    assert cells["*K3*"][2] == cells["K3"][2]  # in the group of the reading rows, to compare with
    measured = cells_by_row(prototypes)
    assert list(measured) == ["row", "---", "plain CAM", "Prototypes: K3", "Prototypes: K5"]  # a reading row has none
    found = dict(zip(measured["row"], measured["Prototypes: K5"], strict=True))
    assert (found["seeds"], found["coverage"], found["rank"]) == ("1", "0.50", "-")
    assert [measured[name][-1] for name in list(measured)[2:]] == ["-2.0 |", "|", "+2.0 |"]  # on train, over K3
    assert "- The same as K3: K 3 again.\n- Not run: bad." in text
    for name in ("miou.png", "curves.png", "prototypes.png", "cost.png"):
        assert f"]({name})" in text
        with Image.open(report / name) as picture:
            assert min(picture.size) > 150
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 20  # not an empty sheet
    # The copies can be committed, and a table can be made from them.
    copies = sorted((report / "results").iterdir())
    assert [path.name for path in copies] == sorted(path.name for path in (out / "results").iterdir())
    assert not any(str(tmp_path) in path.read_text() for path in copies)  # no place of this machine
    assert markdown(read_results(report), ["miou.png", "curves.png", "prototypes.png", "cost.png"]) == text


def test_without_matplotlib_the_command_that_brings_it_is_named(
    grid: Path, tmp_path: Path, stand_in: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    assert run_script.main([str(grid), "--out", str(out), "--rows", "K5", "--splits", "val"], program=stand_in) == 0
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'rca-lightning[notebook]'")):
        table_script.main([str(out)])
    (out / "results" / "K5-seed0.json").unlink()
    with pytest.raises(DataError, match="holds no result"):
        table_script.main([str(out)])


def test_dry_run_lists_commands_and_leaves_nothing(grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    words = [str(grid), "--out", str(out), "--dry-run", "--seeds", "1", "--data.root", "/no/such/folder"]
    assert run_script.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["fit", "validate", "validate"] * 2 + ["validate"] * 2
    assert all("--seed_everything=1" in line and "--data.root=/no/such/folder" in line for line in lines)
    assert not out.exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--rows=cam,dog", "rows='dog': "),
        ("--seeds=7", "seeds=[7]: "),
        ("--processes=0", "processes=0: "),
        ("--row=cam", "argument='--row=cam': "),
        ("--model.nonsense=3", "row='cam': unrecognized arguments: --model.nonsense=3"),
    ],
)
def test_mistakes_are_found_before_anything_runs(grid: Path, tmp_path: Path, option: str, message: str):
    with pytest.raises(ArgumentError, match=f"^{re.escape(message)}"):
        run_script.main([str(grid), "--out", str(tmp_path / "out"), option])
    assert not (tmp_path / "out").exists()


def test_missing_data(grid: Path, tmp_path: Path, stand_in: tuple[str, ...]):
    with pytest.raises(RCAError, match="nothing"):
        run_script.main([str(grid), "--out", str(tmp_path / "out"), "--data.image_dir=nothing"], program=stand_in)
    assert not (tmp_path / "out" / "work").exists()
