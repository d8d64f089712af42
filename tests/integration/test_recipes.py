"""Every file under experiments/ says what the command line understands; no data, no GPU."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
from pathlib import Path

import lightning as L
import pytest
import yaml
from jsonargparse import ArgumentParser, Namespace

from rca_lightning import (
    AffinityModule,
    FrozenSegmentationModule,
    OneStageModule,
    RCAModule,
    SegmentationModule,
    WSSSDataModule,
)
from rca_lightning.cli import masks, prompts
from rca_lightning.cli.affinity import AffinityCLI, task_words
from rca_lightning.cli.tasks import RCACLI, FrozenSegmentationCLI, OneStageCLI, SegmentationCLI
from rca_lightning.cli.trainer import find_task
from rca_lightning.data.classes import VOC_CLASSES
from rca_lightning.data.synthetic.dataset import CLASS_NAMES as SYNTHETIC_CLASSES
from tests.integration.commands import written_commands
from tests.quiet_trainer import quiet_trainer

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = ROOT / "experiments"
# Grids of ablations, which lie beside their results too, are no configurations; they have tests of their own.
CONFIGURATIONS = [
    path for path in EXPERIMENTS.rglob("*.yaml") if path.name != "grid.yaml" and "ablation" not in path.parts
]
RECIPES = sorted(path.relative_to(ROOT).as_posix() for path in CONFIGURATIONS)
SEGMENT_RECIPES = [recipe for recipe in RECIPES if find_task(["--config", str(ROOT / recipe)]) == "segment"]
BATCH_SCRIPTS = sorted(path.relative_to(ROOT).as_posix() for path in EXPERIMENTS.rglob("*.sbatch"))


class OnlyParsing:
    """The command line up to where it would build and run something."""

    def instantiate_classes(self) -> None:
        self.trainer = self.model = self.datamodule = None

    def after_instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


class OnlyParsingRCA(OnlyParsing, RCACLI): ...


class OnlyParsingSegmentation(OnlyParsing, SegmentationCLI): ...


class OnlyParsingFrozenSegmentation(OnlyParsing, FrozenSegmentationCLI): ...


class OnlyParsingOneStage(OnlyParsing, OneStageCLI): ...


class OnlyParsingAffinity(OnlyParsing, AffinityCLI):
    def before_instantiate_classes(self) -> None: ...


@pytest.fixture(scope="module")
def parsers() -> dict[str, ArgumentParser]:
    """The parser of `rca` by task; building one takes longer than any use of it."""
    args = {"subcommand": "fit", "fit": {"data": {"dataset": "synthetic"}}}  # no words, so of all subcommands
    return {
        "localize": OnlyParsingRCA(RCAModule, WSSSDataModule, args=args).parser,
        "segment": OnlyParsingSegmentation(SegmentationModule, WSSSDataModule, args=args).parser,
        "segment_frozen": OnlyParsingFrozenSegmentation(FrozenSegmentationModule, WSSSDataModule, args=args).parser,
        "one_stage": OnlyParsingOneStage(OneStageModule, WSSSDataModule, args=args).parser,
        "affinity": OnlyParsingAffinity(AffinityModule, WSSSDataModule, args=args).parser,
    }


@pytest.fixture(scope="module")
def first_stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoint of a small network with a frozen backbone for the classes of a data set."""
    folder, found = tmp_path_factory.mktemp("first_stages"), {}
    for dataset, names in (("voc2012", VOC_CLASSES), ("synthetic", SYNTHETIC_CLASSES)):
        module = RCAModule(len(names), list(names), backbone="resnet14", weights="none", backbone_mode="frozen")
        trainer = quiet_trainer(folder)
        trainer.strategy.connect(module)
        trainer.save_checkpoint(found.setdefault(dataset, folder / f"{dataset}.ckpt"))
    return found


@pytest.fixture
def parser(parsers: dict[str, ArgumentParser]) -> ArgumentParser:
    """That of the task which needs not be named."""
    return parsers["localize"]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are written for the root of a checkout."""
    monkeypatch.chdir(ROOT)


def parse(parser: ArgumentParser, words: list[str]) -> Namespace:
    parsed = parser.parse_args(words)
    return parsed[parsed["subcommand"]]


def test_recipes_are_found():
    assert {"experiments/quickstart.yaml", "experiments/coco2014/rca_resnet50.yaml"} <= set(RECIPES)
    assert {"experiments/voc2012_mini/segment.yaml", "experiments/quickstart_segment.yaml"} <= set(SEGMENT_RECIPES)
    assert {"experiments/voc2012_mini/affinity.yaml", "experiments/quickstart_affinity.yaml"} <= set(RECIPES)
    assert {"experiments/voc2012_mini/one_stage.yaml", "experiments/quickstart_one_stage.yaml"} <= set(RECIPES)
    assert "experiments/voc2012_mini/segment_frozen.yaml" in RECIPES
    assert "experiments/slurm/ddp.sbatch" in BATCH_SCRIPTS


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_builds_everything(
    parsers: dict[str, ArgumentParser], first_stages: dict[str, Path], recipe: str, tmp_path: Path
):
    given = ["fit", "--config", recipe, "--trainer.accelerator=cpu", "--trainer.devices=1"]
    parser = parsers[find_task(given)]
    content = yaml.safe_load((ROOT / recipe).read_text())
    if content["model"].get("backbone", "").startswith(("timm:", "clip:")):
        pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)
    if content["data"]["dataset"] != "synthetic":
        given += ["--data.root", str(tmp_path)]
    if find_task(given) == "segment_frozen":  # built of a checkpoint, which is not there
        given += ["--model.first_stage", str(first_stages[content["data"]["dataset"]])]
    built = parser.instantiate_classes(parser.parse_args(given))["fit"]
    assert built.model.hparams["num_classes"] == {"coco2014": 80, "coco2017": 80, "synthetic": 6}.get(
        content["data"]["dataset"], 20
    )
    # Photographs are trained with weights that the command names; the generated images ask for random ones.
    assert content["model"].pop("weights", None) == ("none" if content["data"]["dataset"] == "synthetic" else None)
    # What the file says is what was built, not a default.
    assert {name: built.model.hparams[name] for name in content["model"]} == {
        name: tuple(value) if isinstance(value, list) else value for name, value in content["model"].items()
    }
    trainer = L.Trainer(**{name: value for name, value in built.trainer.items() if name != "logger"}, logger=False)
    assert trainer.max_epochs == content["trainer"]["max_epochs"]
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("recipe", RECIPES)
def test_commands_in_the_header_are_understood(parsers: dict[str, ArgumentParser], recipe: str):
    text = (ROOT / recipe).read_text()
    commands = written_commands(text)
    assert commands, f"{recipe} says no command in its header"
    folder = yaml.safe_load(text)["trainer"]["default_root_dir"]
    for words in commands:
        assert words[0] == "rca"
        if words[1] == "prompts":
            prompts._parser().parse_args(words[2:])
            continue
        words = ["rca", *task_words(words[2:])] if words[1] == "affinity" else words
        options = parse(parsers[find_task(words)], words[1:])
        assert [Path(str(path)).as_posix() for path in options.config] == [recipe]
        if words[1] != "fit":
            assert options.ckpt_path == f"{folder}/checkpoints/last.ckpt"


@pytest.mark.parametrize(
    "recipe", [recipe for recipe in RECIPES if find_task(["--config", str(ROOT / recipe)]) == "segment"]
)
def test_averaged_weights_are_one_uncommenting_away(parsers: dict[str, ArgumentParser], recipe: str, tmp_path: Path):
    text = (ROOT / recipe).read_text()
    path = tmp_path / "averaged.yaml"
    path.write_text(re.sub(r"^( +)# (?=- class_path: .*WeightAveraging|  init_args: \{decay)", r"\1", text, flags=re.M))
    options = parse(parsers["segment"], ["fit", "--config", str(path)])
    names = [callback.class_path.rpartition(".")[2] for callback in options.trainer.callbacks]
    assert names == ["ModelCheckpoint", "EMAWeightAveraging"]
    assert 0.9 < options.trainer.callbacks[1].init_args.decay < 1


def test_ids_of_a_split_are_given_on_the_command_line(parser: ArgumentParser):
    recipe = "experiments/voc2012/rca_vgg16.yaml"
    options = parse(parser, ["fit", "--config", recipe, "--data.split_files.trainaug", "mine.txt"])
    assert options.data.split_files == {"trainaug": "mine.txt"}
    assert options.data.train_split == "trainaug"


@pytest.mark.parametrize(
    "place", [(), ("trainer",), ("model",), ("data",), ("trainer", "callbacks", 0, "init_args")], ids=str
)
def test_misspelt_key_is_refused(
    parser: ArgumentParser, tmp_path: Path, place: tuple[str | int, ...], capsys: pytest.CaptureFixture[str]
):
    content = yaml.safe_load((EXPERIMENTS / "quickstart.yaml").read_text())
    path = tmp_path / "misspelt.yaml"
    path.write_text(yaml.safe_dump(content))
    parser.parse_args(["fit", "--config", str(path)])  # all that is wrong in a moment is the one key
    part = content
    for step in place:
        part = part[step]
    part["sloots"] = 3
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(SystemExit):
        parser.parse_args(["fit", "--config", str(path)])
    assert "sloots" in capsys.readouterr().err


@pytest.mark.parametrize("script", BATCH_SCRIPTS)
def test_batch_script(parser: ArgumentParser, script: str, tmp_path: Path):
    """Run with a `srun` that writes down what it was asked to do."""
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    fake = tmp_path / "srun"
    fake.write_text("#!/usr/bin/env bash\nprintf '%s\\n' \"$@\"\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    text = (ROOT / script).read_text()
    header = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", text, flags=re.MULTILINE))
    slurm = {
        "SLURM_JOB_NUM_NODES": header["nodes"],
        "SLURM_NTASKS_PER_NODE": header["ntasks-per-node"],
        "SLURM_CPUS_PER_TASK": header["cpus-per-task"],
    }
    environment = {**os.environ, **slurm, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    (command,) = written_commands(text, program="sbatch")
    assert command[:2] == ["sbatch", script]
    done = subprocess.run(["bash", *command[1:]], env=environment, capture_output=True, text=True, check=True)
    # Without that option tasks would wait for one that was killed.
    kill, *words = done.stdout.splitlines()
    assert kill == "--kill-on-bad-exit=1"
    assert words[:2] == ["rca", "fit"]
    options = parse(parser, words[1:])
    assert (ROOT / command[2]).is_file()
    assert str(options.trainer.num_nodes) == header["nodes"]
    # Lightning starts nothing itself under Slurm: there must be a task for every device.
    assert str(options.trainer.devices) == header["ntasks-per-node"] == header["gpus-per-node"]
    assert options.trainer.strategy == "ddp"
    assert header["signal"].startswith("SIGUSR1@")
    assert "#SBATCH --requeue\n" in text
    assert options.data.root == "VOCdevkit"
    # Without a configuration it says how it is used, and starts nothing.
    refused = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert shlex.split(refused.stderr.split("usage:")[1])[:2] == ["sbatch", script]
    assert refused.stdout == ""


@pytest.mark.parametrize("segmenter", [False, True])
def test_chain_of_masks(tmp_path: Path, segmenter: bool):
    """Run with an `sbatch` that writes down what it was asked to do, and then the jobs with an `rca` that does."""
    for name, content in (
        (
            "sbatch",
            'printf "%s\\0" "$@" > "$TOLD/$(ls "$TOLD" | wc -l)"; echo "$((100 + $(ls "$TOLD" | wc -l)));cluster"',
        ),
        ("rca", 'printf "%s\\n" "$@"'),
    ):
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{content}\n")
        (tmp_path / name).chmod(0o755)
    told = tmp_path / "told"
    told.mkdir()
    script = "experiments/slurm/masks.sh"
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "TOLD": str(told), "RCA_SBATCH": "--mem=1G --gpus=1"}
    words = ["my photographs", "--out", "masks", *["--segmenter"] * segmenter]
    command = ["bash", script, "3", *words]
    subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    jobs = [(told / str(number)).read_text().split("\0")[:-1] for number in range(len(list(told.iterdir())))]
    names = ["features", "model", "labels", *["segmenter", "drawn"] * segmenter, "report"]
    assert [f"--job-name=rca-{name}" in job for name, job in zip(names, jobs, strict=True)] == [True] * len(jobs)
    for number, (name, job) in enumerate(zip(names, jobs, strict=True)):
        is_array = name in ("features", "labels", "drawn")
        assert ("--array=1-3" in job) == is_array
        assert {"--mem=1G", "--gpus=1"} <= set(job)
        after = [word for word in job if word.startswith("--dependency")]
        assert after == ([f"--dependency=afterok:{100 + number}"] if number else [])
        shell = ["bash", "-c", job[job.index("--wrap") + 1]]
        asked = subprocess.run(
            shell, env=environment | {"SLURM_ARRAY_TASK_ID": "2"}, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        assert asked == ["masks", *words, *["--shard", "2/3"] * is_array]
        assert masks._parser().parse_args(asked[1:]).shard == ("2/3" if is_array else None)
    refused = subprocess.run(["bash", script, "3"], env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "usage: bash experiments/slurm/masks.sh" in refused.stderr
