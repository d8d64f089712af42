"""Counts how many small faults in memory, losses and aggregation the unit tests notice.

    python -m tests.mutation.run --sample 200            # drawn by seed from all modules
    python -m tests.mutation.run --only rca.contrast  # every mutant of one

Writes a JSON of what survived; whether that is a fault of the tests is judged by hand in README.md beside this file.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
from pathlib import Path
from typing import Any

from rca_lightning.version import __version__
from tests.mutation.forks import PACKAGE, preload, run
from tests.mutation.mutants import Mutant, mutants

ROOT = Path(__file__).resolve().parents[2]
_BANK = (
    "rca/test_bank.py",
    "rca/test_bank_storage.py",
    "rca/test_bank_finite.py",
    "rca/test_no_copies.py",
    "rca/test_provenance.py",
)
_CLUSTERING = (
    "clustering/test_lloyd.py",
    "clustering/test_seeding.py",
    "clustering/test_drawing.py",
    "clustering/test_clustering.py",
    "rca/test_class_blocks.py",
    "clustering/test_cluster_methods.py",
)
TESTS = {
    "rca.memory_bank": _BANK,
    "clustering.cluster": _CLUSTERING,
    "clustering.kmeans": _CLUSTERING,
    "clustering.kmeans_faiss": ("clustering/test_lloyd_faiss.py", *_CLUSTERING),
    "rca.prototypes": (
        "rca/test_prototypes.py",
        "rca/test_class_blocks.py",
        "rca/test_pruning.py",
        "rca/test_allotment.py",
    ),
    "rca.contrast": ("rca/test_contrast_blocks.py", "rca/test_contrast.py", "rca/test_contrast_positives.py"),
    "rca.aggregation": ("rca/test_aggregation.py", "rca/test_network.py"),
}


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Run the mutants and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, help="how many mutants, drawn from all; default: every one")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--only", nargs="+", choices=sorted(TESTS), default=sorted(TESTS), help="modules")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.json"))
    given = parser.parse_args(words)
    preload()
    drawn = [(name, mutant) for name in given.only for mutant in mutants(_path(name).read_text())]
    of = len(drawn)
    if given.sample is not None and given.sample < of:
        drawn = random.Random(given.seed).sample(drawn, given.sample)  # in random order: half of them is a sample too
    limits: dict[tuple[str, ...], float] = {}  # of modules with the same tests
    rows: list[dict[str, Any]] = []
    for name, mutant in drawn:
        if TESTS[name] not in limits:
            limits[TESTS[name]] = _limit(name)
        outcome, seconds = _run(name, mutant, limits[TESTS[name]])
        rows.append({"module": name, "line": mutant.line, "change": mutant.change, "outcome": outcome})
        print(f"{len(rows)}/{len(drawn)} {outcome} {seconds:.1f} s {name}:{mutant.line} {mutant.change}", flush=True)
        content = _content(rows, given, of)
        given.out.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(content["modules"], indent=1), f"\nkilled {content['killed']} of {content['run']}")
    return content


def _path(name: str) -> Path:
    return ROOT / "src" / PACKAGE / (name.replace(".", "/") + ".py")


def _run(name: str, mutant: Mutant, limit: float) -> tuple[str, float]:
    files = [str(ROOT / "tests" / "unit" / file) for file in TESTS[name]]
    return run(f"{PACKAGE}.{name}", _path(name), mutant.tree, files, limit)


def _limit(name: str) -> float:
    """Seconds for a mutant: several times what the tests take without one, which must pass."""
    outcome, seconds = _run(name, Mutant(0, "nothing", ast.parse(_path(name).read_text())), 300)
    if outcome != "survived":
        raise SystemExit(f"the tests of {name} fail without a mutant")
    return 4 * seconds + 10


def _content(rows: list[dict[str, Any]], given: argparse.Namespace, of: int) -> dict[str, Any]:
    modules = {}
    for name in given.only:
        own = [row for row in rows if row["module"] == name]
        killed = sum(row["outcome"] != "survived" for row in own)
        modules[name] = {"run": len(own), "killed": killed}
    return {
        "rca_lightning": __version__,
        "seed": given.seed,
        "mutants": of,
        "run": len(rows),
        "killed": sum(part["killed"] for part in modules.values()),
        "timeouts": sum(row["outcome"] == "timeout" for row in rows),
        "modules": modules,
        "survivors": [row for row in rows if row["outcome"] == "survived"],
    }


if __name__ == "__main__":
    main()
