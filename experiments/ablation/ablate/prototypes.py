"""The table of what the prototypes and the memory of each row are like."""

from __future__ import annotations

from ablate.spread import paired, spread
from ablate.summary import RowResults, Summary

_MEASURES = {
    "prototypes": "number",
    "mean_cosine": "mean cosine",
    "max_cosine": "max cosine",
    "effective_rank": "rank",
    "coverage": "coverage",
    "gain": "gain",
    "assignment_entropy": "entropy",
    "dead": "dead",
    "fill": "fill",
    "mean_age": "age",
}
_WHOLE = ("prototypes", "effective_rank", "dead", "mean_age")


def prototype_table(summary: Summary) -> str | None:
    """Measures of the last clustering, each the mean over classes and seeds, beside the seeds; None without any."""
    rows = [r for r in summary.rows.values() if r.row.fit is None and r.diagnostic("coverage")]
    if not rows:
        return None
    split = summary.splits[0]
    reference = summary.reference
    against = [] if reference is None else [f"{split} over {reference.row.title}"]
    head = ["row", "seeds", *_MEASURES.values(), *against]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for results in rows:
        name = f"{results.row.group}: {results.row.title}" if results.row.group else results.row.title
        cells = [name, str(len(results.runs)), *(_cell(results, measure) for measure in _MEASURES)]
        lines.append([*cells, *([] if reference is None else [_difference(results, reference, split)])])
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"## What the prototypes are like\n\n{table}\n\n{_LEGEND}"


_LEGEND = """\
- Means over classes and seeds at the last clustering. Cosines are between prototypes of a class; rank: directions in
  which they differ from their mean; coverage: cosine of a region to its nearest prototype; gain: share of the distance
  to a single prototype that all of them take away; entropy: of the cluster sizes, 1 for equal ones; dead: prototypes
  without a region; fill: used share of the slots; age: steps since a region was written.
- No number is good by itself: random vectors have mean cosine 0 and cover nothing."""


def _cell(results: RowResults, measure: str) -> str:
    found = spread(results.diagnostic(measure).values())
    return "-" if found is None else f"{found.mean:.{1 if measure in _WHOLE else 2}f}"


def _difference(results: RowResults, reference: RowResults, split: str) -> str:
    found = paired(results.best(split), reference.best(split))
    return "" if results is reference or found is None else f"{found.mean:+.1f}"
