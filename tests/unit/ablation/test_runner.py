"""`experiments/ablation/run.py` with a stand-in for `rca`: what is run, kept, resumed, refused and recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import run as script
import table
import yaml

from rca_lightning.errors import ArgumentError, DataError, OutputError

ROOT = Path(__file__).resolve().parents[3]


class StandIn:
    """Writes what `rca` would, at once; a row with 13 prototypes fails."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.before: Callable[[dict[str, str]], None] = lambda options: None

    def __call__(self, words: list[str]) -> Any:
        self.calls.append(words)
        options = dict(word[2:].partition("=")[::2] for word in words[1:])
        folder = Path(options["trainer.default_root_dir"])
        self.before(options)
        if options.get("model.num_prototypes") == "13":
            raise ValueError("unlucky")
        if words[0] == "fit":
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            (folder / "checkpoints" / "last.ckpt").touch()
        else:
            assert Path(options["ckpt_path"]).is_file()
            split = options["data.eval_split"]
            miou = int(options.get("model.num_prototypes", 10)) / 100 + int(options["seed_everything"]) / 1000
            curve = {"0.2": miou - 0.05, "0.3": miou, "0.4": miou + 0.02 * (split == "val")}
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "validate.json").write_text(json.dumps({"split": split, "curve": curve}))
        records = [SimpleNamespace(image_id=f"image{number}") for number in range(5)]
        source = SimpleNamespace(records=lambda split, with_masks: records)
        return SimpleNamespace(datamodule=SimpleNamespace(options=SimpleNamespace(open=lambda: source)))

    def subcommands(self) -> list[str]:
        return [words[0] for words in self.calls]


@pytest.fixture
def rca(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setattr(script, "rca", stand_in)
    monkeypatch.setattr(script.rival, "main", stand_in)
    return stand_in


@pytest.fixture
def grid(tmp_path: Path) -> Callable[..., list[str]]:
    """Writes a grid; returns the words that run it."""

    def write(rows: dict[str, Any], **content: Any) -> list[str]:
        (tmp_path / "config.yaml").write_text("model: {backbone: resnet14}\n")
        content = {"config": str(tmp_path / "config.yaml"), "rows": rows, **content}
        (tmp_path / "grid.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return [str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "out")]

    return write


def result(tmp_path: Path, name: str) -> dict[str, Any]:
    return json.loads((tmp_path / "out" / "results" / f"{name}.json").read_text())


def test_each_row_and_seed_is_trained_scored_and_recorded(rca: StandIn, grid: Any, tmp_path: Path):
    rows = {"rca": {}, "K5": {"set": {"model.num_prototypes": 5, "model.scales": [1.0]}, "seeds": [1]}}
    words = grid(rows, seeds=[0, 1], common={"trainer.max_epochs": 9})
    assert script.main([*words, "--data.root=/somebody/VOC2012", "--data.num_workers", "2"]) == 0
    assert rca.subcommands() == ["fit", "validate", "validate"] * 3
    fit = rca.calls[-3]
    assert {"--seed_everything=1", "--trainer.max_epochs=9", "--model.scales=[1.0]", "--ckpt_path=last"} <= set(fit)
    assert "--data.root=/somebody/VOC2012" in fit
    record = result(tmp_path, "K5-seed1")
    assert (record["row"], record["seed"], set(record["splits"])) == ("K5", 1, {"train", "val"})
    assert record["words"][-3:] == ["--data.root=VOC2012", "--data.num_workers", "2"]
    assert record["minutes"] is not None
    assert record["processor_minutes"] is not None
    assert {"date", "commit", "machine", "software", "config"} <= set(record)


def test_a_second_call_skips_what_is_finished_and_tries_again_what_failed(rca: StandIn, grid: Any, tmp_path: Path):
    rows = {"bad": {"set": {"model.num_prototypes": 13}}, "good": {}}
    assert script.main(grid(rows)) == 1
    assert result(tmp_path, "bad-seed0")["error"] == "ValueError: unlucky"
    assert "splits" in result(tmp_path, "good-seed0")
    rca.calls.clear()
    rows["bad"]["set"]["model.num_prototypes"] = 12
    assert script.main(grid(rows)) == 0
    assert rca.subcommands() == ["fit", "validate", "validate"]
    assert "error" not in result(tmp_path, "bad-seed0")


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(1), SystemExit(75)])
def test_a_stopped_training_goes_on_and_a_finished_one_is_only_scored(
    rca: StandIn, grid: Any, tmp_path: Path, stop: BaseException
):
    words = grid({"rca": {}})

    def stop_in(subcommand: str) -> None:
        def before(options: dict[str, str]) -> None:
            if rca.calls[-1][0] == subcommand:
                checkpoint = tmp_path / "out" / "work" / "rca-seed0" / "checkpoints" / "last.ckpt"
                checkpoint.parent.mkdir(parents=True, exist_ok=True)
                checkpoint.touch()
                raise stop

        rca.before = before

    for subcommand in ("fit", "validate"):
        stop_in(subcommand)
        with pytest.raises(type(stop)):
            script.main(words)
        assert "error" not in result(tmp_path, "rca-seed0")
    rca.before = lambda options: None
    rca.calls.clear()
    assert script.main(words) == 0
    # Of a training that was interrupted before, the time is not known: it looks for the checkpoint once more.
    assert rca.subcommands() == ["fit", "validate", "validate"]
    assert result(tmp_path, "rca-seed0")["minutes"] is None


def test_other_settings_under_the_same_name_are_refused(rca: StandIn, grid: Any):
    assert script.main(grid({"rca": {}})) == 0
    with pytest.raises(OutputError, match=r"rca-seed0\.json: was begun with other settings"):
        script.main([*grid({"rca": {}}), "--model.lr=1"])


def test_a_row_may_read_the_checkpoint_of_another(rca: StandIn, grid: Any, tmp_path: Path):
    rows = {"rca": {"set": {"model.lr": 1}}, "coarse": {"fit": "rca", "set": {"model.final_map": "coarse"}}, "cam": {}}
    assert script.main([*grid(rows), "--rows=coarse", "--delete-checkpoints"]) == 0
    assert rca.subcommands() == ["fit", "validate", "validate", "validate", "validate"]
    assert {"--model.lr=1", "--model.final_map=coarse"} <= set(rca.calls[-1])
    assert not (tmp_path / "out" / "work" / "rca-seed0" / "checkpoints").exists()


def test_a_row_of_a_failed_training_says_what_it_needs(rca: StandIn, grid: Any, tmp_path: Path):
    rows = {"bad": {"set": {"model.num_prototypes": 13}}, "reads": {"fit": "bad", "set": {"model.num_prototypes": 3}}}
    checkpoint = tmp_path / "out" / "work" / "bad-seed0" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()  # of its first epoch
    (tmp_path / "out" / "results").mkdir()
    words = grid(rows)
    run = script.plan(script.load_grid(Path(words[0])), tmp_path / "out", [], None, None)[0]
    begun = {"row": "bad", "seed": 0, "config": run.config, "words": list(run.words), "minutes": None}
    (tmp_path / "out" / "results" / "bad-seed0.json").write_text(json.dumps(begun))
    assert script.main(words) == 1
    assert "'bad' with this seed" in result(tmp_path, "reads-seed0")["error"]


def test_halves_of_train_have_every_other_image(rca: StandIn, grid: Any, tmp_path: Path):
    assert script.main(grid({"rca": {}}, halves=True)) == 0
    assert list(result(tmp_path, "rca-seed0")["splits"]) == ["train", "train_a", "train_b", "val"]
    first, second = tmp_path / "out" / "halves" / "train_a.txt", tmp_path / "out" / "halves" / "train_b.txt"
    assert first.read_text().split() == ["image0", "image2", "image4"]
    assert second.read_text().split() == ["image1", "image3"]
    assert f"--data.split_files.train_a={first}" in rca.calls[2]
    first.write_text("image9\n")
    with pytest.raises(OutputError, match="lists other images"):
        script.write_halves(rca(["fit", f"--trainer.default_root_dir={tmp_path}"]).datamodule, tmp_path / "out")


def test_a_row_with_a_context_runs_by_the_rival_module(
    rca: StandIn, grid: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    rivals = StandIn()
    monkeypatch.setattr(script.rival, "main", rivals)
    assert script.main(grid({"object": {"context": "object_context"}})) == 0
    assert rca.calls == []
    assert all("--model.context=object_context" in words for words in rivals.calls)
    assert len(rivals.calls) == 3


@pytest.mark.parametrize("row", ["cam", "co-attention"])
def test_words_that_the_parser_refuses_are_found_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str
):
    monkeypatch.chdir(ROOT)
    words = ["experiments/ablation/voc2012_mini.yaml", f"--out={tmp_path / 'out'}", f"--rows={row}", "--dry-run"]
    assert script.main(words) == 0
    assert capsys.readouterr().out.startswith(
        f"{'rca' if row == 'cam' else 'python experiments/ablation/rival.py'} fit"
    )
    with pytest.raises(ArgumentError, match=rf"row='{row}': .*model\.nonsense"):
        script.main([*words, "--model.nonsense=3"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "content", "message"),
    [
        ({"a": {"sets": {}}}, {}, r"rows\.a\.sets: is no key here"),
        ({"a": {}}, {"seed": 1}, "seed: is no key here"),
        ({"a": {"fit": "b"}, "b": {}}, {}, "no row 'b' that trains stands before it"),
        ({"a": {}}, {"baseline": "b"}, "there is no row 'b'"),
        ({"../a": {}}, {}, "use letters"),
        ({"a": {}}, {"config": "none.yaml"}, r"none\.yaml: is not there"),
    ],
)
def test_mistakes_in_a_grid_are_named(grid: Any, rows: dict[str, Any], content: dict[str, Any], message: str):
    with pytest.raises(DataError, match=message):
        script.main(grid(rows, **content))


def test_rows_and_seeds_that_are_not_there_are_refused(grid: Any):
    with pytest.raises(ArgumentError, match="rows='b'"):
        script.main([*grid({"a": {}}), "--rows=b"])
    with pytest.raises(ArgumentError, match=r"seeds=\[3\]"):
        script.main([*grid({"a": {}}), "--seeds=3"])


def test_table_has_means_gains_and_thresholds_that_were_not_tuned(rca: StandIn, grid: Any, tmp_path: Path, capsys: Any):
    rows = {"cam": {"title": "plain CAM"}, "K20": {"set": {"model.num_prototypes": 20}}, "bad": {}}
    rows["bad"] = {"set": {"model.num_prototypes": 13}}
    script.main(grid(rows, title="Title", seeds=[0, 10], halves=True))
    table.main([str(tmp_path / "out"), "--out", str(tmp_path / "kept")])
    lines = (tmp_path / "kept" / "table.md").read_text().splitlines()
    cells = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in lines if line.startswith("|")}
    columns = dict(zip(cells["row"], cells["K20"], strict=True))
    assert columns["seeds"] == "0, 10"
    assert columns["train"] == columns["train_a"] == "20.5 ± 0.7"  # 20.0 and 21.0
    assert cells["row"].count("over plain CAM") == 4
    assert columns["over plain CAM"] == "+10.0 ± 0.0"
    assert (columns["val"], columns["val at threshold of train_a"]) == ("22.5 ± 0.7", "20.5 ± 0.7")
    assert "train at threshold of train_a" not in columns
    assert any("Failed: bad-seed0: ValueError: unlucky" in line for line in lines)
    assert "- Not run: bad." in lines
    # The copy makes the same table anew.
    text = (tmp_path / "kept" / "table.md").read_text()
    table.main([str(tmp_path / "kept")])
    assert (tmp_path / "kept" / "table.md").read_text() == text


def test_thresholds_are_chosen_on_one_split_and_reported_on_the_others(
    rca: StandIn, grid: Any, tmp_path: Path, capsys: Any
):
    rows = {"K40": {"set": {"model.num_prototypes": 40}}, "again": {"fit": "K40"}}
    script.main(grid(rows, seeds=[0, 10], splits=["train_a", "val"]))
    table.main([str(tmp_path / "out"), "--chosen-on", "train_a"])
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert "| row | threshold | train_a | val | val, oracle |" in lines
    # At 0.3, which is best on train_a; the best of val is two points higher at 0.4.
    assert "| K40 | 0.30 | 40.5 ± 0.7 | 40.5 (40.0, 41.0) | 42.5 ± 0.7 |" in lines
    with pytest.raises(DataError, match="--chosen-on train_b: no run has scored that split"):
        table.main([str(tmp_path / "out"), "--chosen-on", "train_b"])


def test_table_of_the_kept_runs_is_that_of_the_code_that_made_them():
    text = table.markdown(*table.read_results(ROOT / "experiments" / "ablation" / "results" / "confirm"))
    assert "| RCA | 0, 1, 2 | 46.5 ± 0.6 | +5.3 ± 0.6 | 45.9 ± 0.8 | +8.9 ± 0.9 | 45.6 ± 0.7 |" in text


def test_no_results_make_no_table(tmp_path: Path):
    with pytest.raises(DataError, match=r"has no grid\.yaml"):
        table.main([str(tmp_path)])


def test_gains_are_taken_seed_by_seed_at_the_threshold_of_the_source():
    def scored(source: dict[str, float], split: dict[str, float]) -> dict[str, Any]:
        return {"splits": {"train_a": {"curve": source}, "val": {"curve": split}}}

    base = {0: scored({"0.1": 0.4, "0.2": 0.3}, {"0.1": 0.30, "0.2": 0.90})}
    rows = {
        0: scored({"0.1": 0.1, "0.2": 0.5}, {"0.1": 0.90, "0.2": 0.40}),
        1: scored({"0.1": 0.5, "0.2": 0.1}, {"0.1": 0.32, "0.2": 0.90}),
    }
    assert table.gains(rows, base, "val", "train_a") == pytest.approx([10.0, 2.0])
    assert table.gains(rows, {**base, 2: base[0]}, "val", "train_a") == pytest.approx([10.0])
    grid = {"rows": {"base": {"title": "base"}, "row": {"title": "row", "over": "base"}}}
    results = {
        name: {seed: {**run, "date": "2026-01-01", "commit": "0" * 40} for seed, run in runs.items()}
        for name, runs in (("base", base), ("row", rows))
    }
    text = table.chosen_markdown(grid, results, [], "train_a")
    assert "| row | threshold | train_a | val | val, oracle | over | gain, val |" in text
    assert "| `base` | +6.0 (+2.0 to +10.0) |" in text


def test_a_row_is_compared_with_one_that_exists(grid: Any):
    with pytest.raises(DataError, match=r"rows\.rca\.over: there is no row 'cma'"):
        script.main(grid({"cam": {}, "rca": {"over": "cma"}}))
