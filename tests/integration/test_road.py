"""The whole road in a small form: the commands of `scripts/road`, stopped and started again."""

from __future__ import annotations

import json
import re
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rca_lightning.cli.main import main
from rca_lightning.modules.affinity_module import load_affinity
from tests.folder_contents import file_bytes
from tests.integration.children import finish, send, start, wait_for

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "--data.synthetic_train_images=16",
    "--data.synthetic_val_images=4",
    "--data.synthetic_image_size=48",
    "--data.crop_size=48",
    "--data.batch_size=8",
    "--trainer.max_epochs=2",
    "--trainer.check_val_every_n_epoch=2",
)


def commands(run: Path) -> list[list[str]]:
    """What `scripts/road` calls `rca` with, on a few small images."""
    text = (ROOT / "scripts" / "road").read_text().replace("\\\n", " ")
    variables = dict(re.findall(r"^(maps|affinity|segment)=(.*)$", text, flags=re.MULTILINE)) | {"run": str(run)}
    found = []
    for line in text.splitlines():
        if not line.startswith("rca "):
            continue
        folder = re.search(r'\$\(last "(.*?)"\)', line)
        further = [*SMALL] if '"$@"' in line else []
        line = re.sub(r'\$\(last ".*?"\)', "", line).replace('"$@"', "")
        if folder:
            line += f" {last(Path(expand(folder[1], variables)))}"
        words = [expand(word, variables) for word in shlex.split(line, comments=True)[1:]]
        early = ["--model.warmup_epochs=1"] if variables["maps"] in words else []
        found.append([*words, *further, *early])
    return found


def expand(word: str, variables: dict[str, str]) -> str:
    return re.sub(r"\$(\w+)", lambda match: variables[match[1]], word)


def last(folder: Path) -> str:
    checkpoint = folder / "checkpoints" / "last.ckpt"
    return f"--ckpt_path {checkpoint}" if checkpoint.exists() else ""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RCA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path / "road"


def walk(run: Path) -> None:
    # Each command is read when its turn comes: only then is it known whether there is a checkpoint to go on with.
    for number in range(len(commands(run))):
        main(commands(run)[number])


def test_from_tags_to_the_score_of_a_segmenter_and_again(run: Path):
    steps = ["fit", "predict", "affinity", "labels", "fit", "validate", "predict"]
    assert [words[0] for words in commands(run)] == steps
    walk(run)
    labels = sorted((run / "labels" / "pseudo_labels").glob("*.png"))
    masks = sorted((run / "masks" / "masks").glob("*.png"))
    assert (len(labels), len(masks)) == (16, 4)
    assert all(np.asarray(Image.open(path)).shape == (48, 48) for path in (*labels, *masks))
    for name in ("labels/quality.json", "labels/pseudo_labels.json", "segment/validate.json"):
        assert (run / name).stat().st_size > 0
    for name in ("labels/pseudo_labels.json", "segment/validate.json"):
        guesses = json.loads((run / name).read_text())["without_network"]
        assert guesses.keys() == {"disc", "tag_prior"}
        assert all(0 < guess["miou"] < 1 for guess in guesses.values())
    settings = json.loads((run / "labels" / "predict.json").read_text())
    learned = load_affinity(run / "affinity" / "checkpoints" / "last.ckpt")
    assert (settings["refine"], settings["affinity"]) == (["affinity", "pamr"], learned.digest())

    before = file_bytes(run)
    kept = [
        *(run / step / "checkpoints" / "last.ckpt" for step in ("maps", "affinity", "segment")),
        *labels[1:],
        *masks,
    ]
    times = {path: path.stat().st_mtime_ns for path in kept}
    labels[0].unlink()
    walk(run)
    assert {path: path.stat().st_mtime_ns for path in kept} == times, "nothing that was finished is made again"
    after = file_bytes(run)
    assert after.keys() == before.keys()
    assert after[str(labels[0].relative_to(run))] == before[str(labels[0].relative_to(run))]


def test_killed_predictions_go_on_without_half_a_file(run: Path, tmp_path: Path):
    fit, predict, *_ = commands(run)
    main([*fit, "--trainer.max_epochs=1"])
    more = ["--data.synthetic_train_images=60", "--data.eval_batch_size=1"]
    folder = run / "predictions"
    process = start([*predict, *more], tmp_path / "killed")
    wait_for(lambda: len(list(folder.glob("pseudo_labels/*.png"))) >= 3, process)
    send(process, signal.SIGKILL)
    assert finish(process) == -signal.SIGKILL
    whole = sorted((folder / "pseudo_labels").glob("*.png"))
    assert 3 <= len(whole) < 60
    for path in whole:
        assert np.asarray(Image.open(path)).shape == (48, 48)
    for path in folder.glob("cams/*.npz"):
        with np.load(path, allow_pickle=False) as arrays:
            assert arrays["maps"].shape[1:] == (48, 48)
    times = {path: path.stat().st_mtime_ns for path in whole}
    main([*predict, *more])
    assert len(list((folder / "pseudo_labels").glob("*.png"))) == 60
    assert {path: path.stat().st_mtime_ns for path in whole} == times
