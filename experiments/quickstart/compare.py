"""Plain CAM against RCA on the generated images, beside guesses without a network: same network, epochs and images.

python experiments/quickstart/compare.py --seeds 0 1 2

A seed is that of the images and of the training. Generator and recipe were chosen on seed 0: means are of the others.

Runs that have a score already are kept, so an interrupted comparison goes on. Writes results.json beside this file.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import rca_lightning

HERE = Path(__file__).parent
CONFIG = HERE.parent / "quickstart.yaml"
CHOSEN_ON = 0  # the seed of images that generator and recipe were chosen on
METHODS = {"cam": ["--model.contrast=false", "--model.aggregation=false"], "rca": []}


def run(method: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train and score once; returns what `validate.json` says and the processor seconds of the training."""
    score, clock = folder / "validate.json", folder / "seconds.txt"
    common = [f"--config={CONFIG}", f"--seed_everything={seed}", f"--data.synthetic_seed={seed}"]
    common += [f"--trainer.default_root_dir={folder}"]
    if not score.is_file():
        start = os.times()
        _rca("fit", *common, *METHODS[method], "--trainer.limit_val_batches=0")
        end = os.times()  # of the processor, so that other jobs do not count
        clock.write_text(f"{end.children_user + end.children_system - start.children_user - start.children_system:.0f}")
        _rca("validate", *common, *METHODS[method], f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}")
    return {**json.loads(score.read_text()), "fit_processor_seconds": int(clock.read_text())}


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.mean(found) if found else None


def _rca(command: str, *words: str) -> None:
    subprocess.run([sys.executable, "-m", "rca_lightning", command, *words], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/quickstart_comparison"))
    options = parser.parse_args()
    scores: dict[str, dict[int, dict[str, Any]]] = {
        method: {seed: run(method, seed, options.folder / f"{method}-{seed}") for seed in options.seeds}
        for method in METHODS
    }
    found = {method: {seed: 100 * run["oracle_miou"] for seed, run in runs.items()} for method, runs in scores.items()}
    guesses = {seed: run["without_network"] for seed, run in scores["cam"].items()}  # those of RCA are the same
    miou = {guess: {seed: 100 * of[guess]["miou"] for seed, of in guesses.items()} for guess in ("disc", "tag_prior")}
    miou |= found
    reported = [seed for seed in options.seeds if seed != CHOSEN_ON]
    results = {
        "command": "python experiments/quickstart/compare.py --seeds " + " ".join(map(str, options.seeds)),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} CPU cores, {torch.get_num_threads()} threads",
        "software": {"rca_lightning": rca_lightning.__version__, "torch": torch.__version__},
        "split": "val (held-out images, true tags, best threshold; guesses: chosen on train)",
        "settings_chosen_on_seed": CHOSEN_ON,
        "seed_miou": miou,
        "mean_of_other_seeds": {name: _mean(values[seed] for seed in reported) for name, values in miou.items()},
        "gain_by_seed": {seed: miou["rca"][seed] - miou["cam"][seed] for seed in options.seeds},
        "miou_at_default_threshold": {
            method: {seed: 100 * run["miou"] for seed, run in runs.items()} for method, runs in scores.items()
        },
        "guesses": guesses,
        "classification_map": {m: {s: f["classification_map"] for s, f in runs.items()} for m, runs in scores.items()},
        "fit_processor_seconds": {
            m: {s: f["fit_processor_seconds"] for s, f in runs.items()} for m, runs in scores.items()
        },
    }
    (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
