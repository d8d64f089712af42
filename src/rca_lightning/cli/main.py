"""The command line: finds the command, and imports what it needs only then."""

from __future__ import annotations

import difflib
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from rca_lightning.cli.console import load, own_reason, set_up_console
from rca_lightning.errors import ArgumentError, RCAError
from rca_lightning.version import __version__

if TYPE_CHECKING:
    from rca_lightning.cli.trainer import TaskCLI

# Commands that need no configuration of a Trainer, each in a module whose `main` takes the words after it. It parses
# them before it imports torch or Lightning, which take seconds; what these words are is in signatures for labels alone.
COMMANDS = {
    "masks": "rca_lightning.cli.masks",
    "labels": "rca_lightning.cli.labels",
    "export": "rca_lightning.cli.export",
    "check": "rca_lightning.cli.check",
    "weights": "rca_lightning.cli.weights",
    "convert": "rca_lightning.cli.convert",
    "app": "rca_lightning.cli.app",
    "prompts": "rca_lightning.cli.prompts",
    "calibrate": "rca_lightning.cli.calibrate",
    "compare": "rca_lightning.cli.compare",
}
ABOUT = {
    "masks": "All at once: a folder of photographs and tags to a mask of each.",
    "fit": "Trains.",
    "validate": "Scores a checkpoint on a split with masks.",
    "test": "The same, on another split.",
    "calibrate": "Chooses the background threshold from a few masks.",
    "compare": "Two scores: their difference, and whether they may be compared.",
    "predict": "Writes maps and labels, or masks.",
    "atlas": "Draws what each prototype stands for.",
    "affinity": "Learns boundaries that refine maps.",
    "app": "A page in the browser that draws the mask of a photograph.",
    "labels": "Pseudo labels from stored maps.",
    "convert": "Label images for COCO, YOLO, LabelMe and Label Studio.",
    "export": "A trained segmentation network as ONNX or torch.export program.",
    "check": "Whether files for a benchmark server are as it wants them.",
    "weights": "Published weights of backbones.",
    "prompts": "Text embeddings of classes by a language-image model.",
}
EPILOG = "rca masks does all at once: rca masks photographs/ --out masks/. Each command has a --help of its own."


def main(args: list[str] | dict[str, Any] | None = None) -> TaskCLI | None:
    """Runs the command line in this process.

    Args:
        args: words after `rca`, or a configuration; default the words of the process.

    Returns:
        The CLI object, with `model`, `datamodule` and `trainer`; `None` for a command without a Trainer, and after
        `rca affinity --help`.

    Raises:
        RCAError: for arguments and files that cannot be used.
        SystemExit: for arguments that cannot be parsed, and after `--help` and `--version`.
    """
    set_up_console()
    words = sys.argv[1:] if args is None else args
    if isinstance(words, list):
        first = words[0] if words else None
        if first in ("-h", "--help"):
            print(_help())
            raise SystemExit(0)
        if first == "--version":
            print(f"rca {__version__}")
            raise SystemExit(0)
        if first in COMMANDS:
            load(COMMANDS[first]).main(words[1:])
            return None
        if first is None or not (first in ABOUT or str(first).startswith("-")):
            near = difflib.get_close_matches(str(first), ABOUT, n=1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise ArgumentError("command", first, f"{meant}give one of {', '.join(ABOUT)}; see rca --help")
    return load("rca_lightning.cli.tasks").run_task(args)  # type: ignore[no-any-return]


def _help() -> str:
    width = max(map(len, ABOUT))
    lines = ["usage: rca COMMAND [options]", "", "Pixel masks from image tags.", ""]
    lines += [f"  {name:{width}}  {about}" for name, about in ABOUT.items()]
    options = [("-h, --help", "show this and end"), ("--version", "show the version and end")]
    lines += ["", *(f"  {name:{width}}  {about}" for name, about in options), "", *textwrap.wrap(EPILOG, 79)]
    return "\n".join(lines)


def console() -> None:
    """Runs `rca`; an error of the user is reported in one line, without a traceback."""
    try:
        main()
    except RCAError as error:
        sys.exit(f"rca: {error}")
    except Exception as error:
        reason = own_reason(error)
        if reason is None:
            raise
        sys.exit(f"rca: {reason}")
