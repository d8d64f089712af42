"""Target 7: what importing the library and asking the command line for help costs."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable

from measure.result import Result
from measure.timing import Times, as_rows, in_turns

_IMPORT_LIMIT = 0.3  # seconds over lightning alone
_HELP_LIMIT = 6.0  # seconds


def run(*, quick: bool = False, rounds: int = 5) -> Result:
    """Processes of their own, in turns, after one of each has filled the disk cache."""
    ways = {
        "import lightning": _process("import lightning"),
        "import rca_lightning": _process("import rca_lightning"),
        "rca fit --help": _process(
            "import sys; from rca_lightning.cli.main import console; sys.exit(console())", "fit", "--help"
        ),
    }
    times = in_turns(ways, rounds=1 if quick else rounds, warmup=0 if quick else 1)
    result = Result("startup", "a new process", as_rows(times, "import lightning"))
    extra = _extra(times["import rca_lightning"], times["import lightning"])
    result.at_most("seconds of the import over that of lightning", extra, _IMPORT_LIMIT)
    result.at_most("seconds of rca fit --help", times["rca fit --help"].seconds, _HELP_LIMIT)
    return result


def _process(code: str, *words: str) -> Callable[[], None]:
    def start() -> None:
        subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True)

    return start


def _extra(times: Times, reference: Times) -> float:
    return statistics.median(a - b for a, b in zip(times.processor, reference.processor, strict=True))
