"""Plain CAM against RCA on the generated images: same network, epochs and data, several seeds.

python experiments/quickstart/compare.py --seeds 0 1 2

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
import time
from pathlib import Path
from typing import Any

import torch

import rca_lightning

HERE = Path(__file__).parent
CONFIG = HERE.parent / "quickstart.yaml"
METHODS = {"cam": ["--model.contrast=false", "--model.aggregation=false"], "rca": []}


def run(method: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train and score once; returns what `validate.json` says and the seconds of the training."""
    score, clock = folder / "validate.json", folder / "seconds.txt"
    common = [f"--config={CONFIG}", f"--seed_everything={seed}", f"--trainer.default_root_dir={folder}"]
    if not score.is_file():
        start = time.perf_counter()
        _rca("fit", *common, *METHODS[method], "--trainer.limit_val_batches=0")
        clock.write_text(f"{time.perf_counter() - start:.0f}")
        _rca("validate", *common, *METHODS[method], f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}")
    return {**json.loads(score.read_text()), "fit_seconds": int(clock.read_text())}


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
    miou = {
        method: {seed: 100 * found["oracle_miou"] for seed, found in runs.items()} for method, runs in scores.items()
    }
    gains = [miou["rca"][seed] - miou["cam"][seed] for seed in options.seeds]
    results = {
        "command": "python experiments/quickstart/compare.py --seeds " + " ".join(map(str, options.seeds)),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} CPU cores, {torch.get_num_threads()} threads",
        "software": {"rca_lightning": rca_lightning.__version__, "torch": torch.__version__},
        "split": "val (held-out images, true tags, best threshold)",
        "seed_miou": miou,
        "mean": {method: statistics.mean(values.values()) for method, values in miou.items()},
        "gain_by_seed": gains,
        "gain": statistics.mean(gains),
        "classification_map": {m: {s: f["classification_map"] for s, f in runs.items()} for m, runs in scores.items()},
        "fit_seconds": {m: {s: f["fit_seconds"] for s, f in runs.items()} for m, runs in scores.items()},
    }
    (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
