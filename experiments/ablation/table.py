"""Table of the results of a grid, in Markdown.

python experiments/ablation/table.py runs/ablation/synthetic --out experiments/ablation/results/synthetic

Writes table.md. With --out it copies grid and results beside it, small enough to be committed. With --chosen-on SPLIT
every threshold is the one that is best on that split, with the best one of each other split beside it, and what a row
gains over the row that it names as `over`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rca_lightning.errors import DataError, RCAError
from rca_lightning.io.atomic import write_atomically

Results = dict[str, dict[int, dict[str, Any]]]  # JSON by row and seed
SPLITS = ("train", "train_a", "train_b", "val")


def best_threshold(score: Mapping[str, Any]) -> str:
    """Background threshold with the highest mIoU of the curve of a split; the lowest of equals."""
    curve = {threshold: miou for threshold, miou in score["curve"].items() if miou is not None}
    return min(curve, key=lambda threshold: (-curve[threshold], float(threshold)))


def oracle(run: Mapping[str, Any], split: str) -> float:
    """mIoU in percent at the best threshold, which is found on the masks of the split itself."""
    score = run["splits"][split]
    return 100 * float(score["curve"][best_threshold(score)])


def transferred(run: Mapping[str, Any], split: str, source: str) -> float | None:
    """mIoU in percent at the threshold that is best on another split; `None` where that one has no score."""
    miou = run["splits"][split]["curve"].get(best_threshold(run["splits"][source]))
    return None if miou is None else 100 * float(miou)


def with_seeds(values: Sequence[float | None]) -> str:
    """Mean, and of several the number of each seed."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "-"
    each = f" ({', '.join(f'{value:.1f}' for value in numbers)})" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.1f}{each}"


def in_words(values: Iterable[float | None], sign: str = "") -> str:
    """Mean and, of several, standard deviation."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "-"
    text = f"{statistics.mean(numbers):{sign}.1f}"
    return f"{text} ± {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else text


def gains(
    runs: Mapping[int, Mapping[str, Any]], others: Mapping[int, Mapping[str, Any]], split: str, source: str
) -> list[float]:
    """Differences seed by seed at the thresholds of `source`; a row of one seed does not depend on it.

    Args:
        runs: of the row, by seed.
        others: of the row that it is compared with.
        split: that is reported.
        source: that thresholds are chosen on.
    """
    single = next(iter(others.values())) if len(others) == 1 else None
    pairs = [(run, others.get(seed, single)) for seed, run in sorted(runs.items())]
    found = [
        (transferred(run, split, source), transferred(other, split, source))
        for run, other in pairs
        if other is not None and split in run["splits"] and split in other["splits"]
    ]
    return [own - theirs for own, theirs in found if own is not None and theirs is not None]


def with_range(values: Sequence[float]) -> str:
    """Mean of differences, and of several the least and the greatest."""
    if not values:
        return "-"
    between = f" ({min(values):+.1f} to {max(values):+.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):+.1f}{between}"


def read_results(folder: Path) -> tuple[dict[str, Any], Results, list[str]]:
    """The grid, its finished runs, and a line for each run that failed.

    Raises:
        DataError: if there is no finished run.
    """
    grid_file = folder / "grid.yaml"
    if not grid_file.is_file():
        raise DataError(f"{folder}: has no grid.yaml; give an output folder of run.py")
    grid: dict[str, Any] = yaml.safe_load(grid_file.read_text())
    results: Results = {name: {} for name in grid["rows"]}
    failed = []
    for path in sorted((folder / "results").glob("*.json")):
        run = json.loads(path.read_text())
        if "splits" in run:
            results.setdefault(run["row"], {})[run["seed"]] = run
        elif "error" in run:
            failed.append(f"- Failed: {path.stem}: {run['error']}")
    if not any(results.values()):
        raise DataError(f"{folder}: has no finished run; run run.py first")
    return grid, results, failed


def markdown(grid: Mapping[str, Any], results: Results, failed: Sequence[str]) -> str:
    """A table for each group of rows, and what the numbers mean."""
    baseline = grid.get("baseline", next(iter(grid["rows"])))
    reference = (grid["rows"][baseline] or {}).get("title", baseline)
    runs = [run for by_seed in results.values() for run in by_seed.values()]
    splits = [split for split in SPLITS if any(split in run["splits"] for run in runs)]
    source = next(split for split in ("train_a", "train", *splits) if split in splits)
    titles = ["row", "seeds"]
    for split in splits:
        titles += [split, f"over {reference}"] + [f"{split} at threshold of {source}"] * _is_other(split, source)
    numbers = {
        name: _numbers(by_seed, results[baseline], splits, source) for name, by_seed in results.items() if by_seed
    }
    notes = [
        "- mIoU in percent, mean over seeds ± standard deviation, at the best background threshold, which is found on "
        "the masks of the split (an oracle). A column that names a threshold is not tuned on its own split.",
        f"- Over {reference}: mean of the differences seed by seed, over the seeds that both have.",
    ]
    return _document(grid, results, titles, numbers, [*notes, *_provenance(grid, results), *failed])


def chosen_markdown(grid: Mapping[str, Any], results: Results, failed: Sequence[str], source: str) -> str:
    """A table for each group of rows, in which all thresholds are chosen on one split.

    Raises:
        DataError: no run has scored that split.
    """
    runs = [run for by_seed in results.values() for run in by_seed.values()]
    if not any(source in run["splits"] for run in runs):
        raise DataError(f"--chosen-on {source}: no run has scored that split; put it among the splits of the grid")
    others = [split for split in SPLITS if _is_other(split, source) and any(split in run["splits"] for run in runs)]
    titles = ["row", "threshold", source]
    for split in others:
        titles += [split, f"{split}, oracle"]
    compares = any((row or {}).get("over") for row in grid["rows"].values())
    titles += ["over", *[f"gain, {split}" for split in others]] * compares
    numbers = {}
    for name, by_seed in results.items():
        scored = [by_seed[seed] for seed in sorted(by_seed) if source in by_seed[seed]["splits"]]
        if not scored:
            continue
        thresholds = dict.fromkeys(f"{float(best_threshold(run['splits'][source])):.2f}" for run in scored)
        cells = [", ".join(thresholds), in_words([oracle(run, source) for run in scored])]
        for split in others:
            both = [run for run in scored if split in run["splits"]]
            cells.append(with_seeds([transferred(run, split, source) for run in both]))
            cells.append(in_words([oracle(run, split) for run in both]))
        if compares:
            over = (grid["rows"].get(name) or {}).get("over")
            cells.append("" if over is None else f"`{over}`")
            paired = [] if over is None else [gains(by_seed, results[over], split, source) for split in others]
            cells += [with_range(values) for values in paired] or [""] * len(others)
        numbers[name] = cells
    notes = [
        "- mIoU in percent, mean over seeds and in brackets each seed. Every run is scored at the background threshold "
        f"that is best on {source} for this row and seed; so the column of {source} itself is an oracle.",
        "- Oracle: at the best threshold of the split itself, mean over seeds ± standard deviation.",
        *["- Gain: over the row named, mean of the differences seed by seed, in brackets their range."] * compares,
    ]
    return _document(grid, results, titles, numbers, [*notes, *_provenance(grid, results), *failed])


def _document(
    grid: Mapping[str, Any],
    results: Results,
    titles: list[str],
    numbers: Mapping[str, list[str]],
    notes: Sequence[str],
) -> str:
    """A table for each group of rows, each row its title and its numbers."""
    head = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    groups: dict[str, list[list[str]]] = {}
    for name, row in grid["rows"].items():
        if name in numbers:
            line = [(row or {}).get("title", name), *numbers[name]]
            groups.setdefault((row or {}).get("group", ""), []).append(line)
    parts = [f"# {grid.get('title', 'Ablation')}"]
    for group, lines in groups.items():
        parts += [f"## {group}"] * bool(group)
        parts.append(
            "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in head + lines)
        )
    return "\n\n".join([*parts, "\n".join(notes)]) + "\n"


def _provenance(grid: Mapping[str, Any], results: Results) -> list[str]:
    """Where the numbers come from, and the rows that have none."""
    runs = [run for by_seed in results.values() for run in by_seed.values()]
    missing = [(row or {}).get("title", name) for name, row in grid["rows"].items() if not results[name]]
    days = sorted(str(run["date"])[:10] for run in runs)
    commits = ", ".join(sorted({str(run["commit"])[:7] for run in runs}))
    return [
        f"- {len(runs)} runs, {days[0]} to {days[-1]}, commits {commits}.",
        *[f"- Not run: {', '.join(missing)}."] * bool(missing),
    ]


def _is_other(split: str, source: str) -> bool:
    """Whether the threshold of `source` is fair to a split: none of its masks has chosen it."""
    return split != source and not (split == "train" and source == "train_a")


def _numbers(
    runs: Mapping[int, Mapping[str, Any]], baseline: Mapping[int, Mapping[str, Any]], splits: Sequence[str], source: str
) -> list[str]:
    cells = [", ".join(map(str, sorted(runs)))]
    for split in splits:
        scored = {seed: run for seed, run in runs.items() if split in run["splits"]}
        cells.append(in_words(oracle(run, split) for run in scored.values()))
        both = [seed for seed in scored if seed in baseline and split in baseline[seed]["splits"]]
        gains = [oracle(scored[seed], split) - oracle(baseline[seed], split) for seed in both]
        cells.append("" if runs is baseline else in_words(gains, "+"))
        if _is_other(split, source):
            fair = (transferred(run, split, source) for run in scored.values() if source in run["splits"])
            cells.append(in_words(fair))
    return cells


def main(words: Sequence[str] | None = None) -> None:
    """Write `table.md`, and with `--out` a copy of the results.

    Raises:
        RCAError: there are no results.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output folder of run.py")
    parser.add_argument("--out", type=Path, help="folder for table.md, grid and results; default the same")
    parser.add_argument("--chosen-on", metavar="SPLIT", help="split that thresholds are chosen on, such as train_a")
    options = parser.parse_args(words)
    read = read_results(options.folder)
    text = chosen_markdown(*read, options.chosen_on) if options.chosen_on else markdown(*read)
    out = options.out or options.folder
    if out.resolve() != options.folder.resolve():
        (out / "results").mkdir(parents=True, exist_ok=True)
        for path in [options.folder / "grid.yaml", *(options.folder / "results").glob("*.json")]:
            shutil.copyfile(path, out / path.relative_to(options.folder))
    write_atomically(out / "table.md", lambda file: file.write(text.encode()))
    print(f"{text}\nwritten to {out / 'table.md'}")


if __name__ == "__main__":
    try:
        main()
    except RCAError as error:
        sys.exit(f"ablation: {error}")
