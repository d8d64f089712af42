"""The table in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ablate.prototypes import prototype_table
from ablate.publish import without_places
from ablate.spread import Spread, paired, ratio, spread
from ablate.summary import RowResults, Summary

_FEW = 5  # below that many seeds the extremes say more than the deviation


def markdown(summary: Summary, pictures: Sequence[str] = ()) -> str:
    """Title, a table for each group, what the numbers mean, and where they come from."""
    parts = [f"# {summary.grid.title}"]
    for group, rows in summary.groups().items():
        if group:
            parts.append(f"## {group}")
        parts.append(_table(summary, group, rows))
    if table := prototype_table(summary):
        parts.append(table)
    parts += [f"![{name.partition('.')[0]}]({name})" for name in pictures]
    parts.append(f"{_legend(summary)}\n{_origin(summary)}")
    return "\n\n".join(parts) + "\n"


def _table(summary: Summary, group: str, rows: list[RowResults]) -> str:
    head = ["row", "seeds", *(title for split in summary.splits for title in _split_titles(summary, split))]
    head += ["coverage", "cosine", "cost"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    reference, key = summary.reference, summary.varied(group)
    if reference is not None and reference not in rows:
        value = None if key is None else _text(reference.value(key))
        title = reference.row.title if value is None else f"{reference.row.title} ({value})"
        lines.append(_line(summary, reference, f"*{title}*"))
    lines += [_line(summary, results, results.row.title) for results in rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _split_titles(summary: Summary, split: str) -> list[str]:
    titles = [split]
    if summary.baseline is not None:
        titles.append(f"over {summary.baseline.row.title}")
    threshold = summary.grid.fixed_threshold
    if threshold != split:
        titles.append(f"{split} at {f'threshold of {threshold}' if isinstance(threshold, str) else threshold}")
    return titles


def _line(summary: Summary, results: RowResults, title: str) -> list[str]:
    cells = [title, ", ".join(map(str, sorted(results.runs)))]
    for split in summary.splits:
        values = results.best(split)
        cells.append(in_words(spread(values.values())))
        if summary.baseline is not None:
            is_itself = results is summary.baseline
            cells.append("" if is_itself else in_words(paired(values, summary.baseline.best(split)), signed=True))
        if summary.grid.fixed_threshold != split:
            cells.append(in_words(spread(results.fixed(split, summary.grid.fixed_threshold).values())))
    cells += [_mean(results.diagnostic("coverage")), _mean(results.cosine())]
    return [*cells, _cost(summary, results)]


def _cost(summary: Summary, results: RowResults) -> str:
    if results.row.fit is not None:
        return f"reads {summary.grid.rows[results.row.fit].title}"
    times = None if summary.baseline is None else ratio(results.cpu_minutes(), summary.baseline.cpu_minutes())
    return "-" if times is None else f"{'about ' * results.interrupted}{times:.2f}"


def in_words(found: Spread | None, *, signed: bool = False) -> str:
    """`50.5 ± 1.1 (49.2..51.3)`; the extremes only of few values, and no spread of one."""
    if found is None:
        return "-"
    text = f"{found.mean:{'+' * signed}.1f}"
    if found.deviation is None:
        return text
    text += f" ± {found.deviation:.1f}"
    if found.count < _FEW:
        text += f" ({found.low:{'+' * signed}.1f}..{found.high:{'+' * signed}.1f})"
    return text


def _mean(values: dict[int, float]) -> str:
    found = spread(values.values())
    return "-" if found is None else f"{found.mean:.2f}"


def _text(value: Any) -> str | None:
    return None if value is None or isinstance(value, (dict, list)) else str(value)


def _legend(summary: Summary) -> str:
    baseline = summary.baseline
    lines = [
        "mIoU in percent: mean over seeds ± standard deviation (smallest..largest), each run at its best background "
        "threshold, which is found on the masks of the split. A column that names a threshold is not tuned on its own "
        "split.",
        "Coverage: cosine of regions in memory to their nearest prototype. Cosine: between prototypes of a class, 1 "
        "means copies. Both are means over the classes.",
    ]
    if baseline is not None:
        minutes, title = spread(baseline.cpu_minutes().values()), baseline.row.title
        took = "" if minutes is None else f" ({minutes.mean:.1f} min)"
        lines.append(f"Over {title}: mean of the differences seed by seed, over the seeds that both have.")
        lines.append(f"Cost: processor time of the training relative to {title}{took}.")
    missing = [row for row in summary.grid.rows.values() if row.name not in summary.rows]
    same = [row.title for row in missing if summary.repeats_reference(row)]
    if same and summary.reference is not None:
        lines.append(f"The same as {summary.reference.row.title}: {', '.join(same)}.")
    if not_run := [row.title for row in missing if not summary.repeats_reference(row)]:
        lines.append(f"Not run: {', '.join(not_run)}.")
    return "\n".join(f"- {line}" for line in lines)


def _origin(summary: Summary) -> str:
    runs = [run for results in summary.rows.values() for run in results.runs.values()]
    days = sorted(str(run["date"])[:10] for run in runs)
    hardware = _each(_hardware(run["hardware"]) for run in runs)
    software = _each(", ".join(f"{name} {version}" for name, version in run["software"].items()) for run in runs)
    commits = _each(f"{str(run['commit'])[:10]}{' with changes' * bool(run['dirty'])}" for run in runs)
    return "\n".join(
        [
            f"- {len(runs)} runs, {' to '.join(dict.fromkeys([days[0], days[-1]]))}",
            f"- Hardware: {hardware}",
            f"- Software: {software}; commit {commits}",
            f"- Command: {_each('`' + without_places(run['command']) + '`' for run in runs)}",
        ]
    )


def _hardware(found: dict[str, Any]) -> str:
    processor = f"{found['cpu']}, {found['cores']} cores, OMP_NUM_THREADS={found['threads']}"
    return f"{found['gpu']}; {processor}" if found["gpu"] else processor


def _each(texts: Iterable[str]) -> str:
    return "; ".join(sorted(set(texts)))
