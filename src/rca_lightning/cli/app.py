"""The command `rca app`: a page in the browser that draws the mask of a photograph."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

from rca_lightning.cli.console import load
from rca_lightning.errors import require_extra


def main(words: Sequence[str]) -> None:
    """Serves the page of a checkpoint until it is interrupted.

    Args:
        words: what stands after `rca app`.

    Raises:
        RCAError: for a checkpoint, a device, a host or a port that cannot be used, and without the extra `app`.
        SystemExit: for words that cannot be parsed, and after `--help`.
    """
    given = _parser().parse_args(list(words))
    # Ended either way, the page removes its files.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        require_extra("gradio", extra="app", needed_for="rca app")
        # Which imports it, and torch: only for words that can be used.
        server = load("rca_lightning.prediction.app_server")
        model = load("rca_lightning.prediction.loading").load(given.ckpt_path, device=given.device)
        with server.serve(model, host=given.host, port=given.port, browser=given.browser) as address:
            print(f"the page: {address} (Ctrl-C ends it)", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        print()  # below the ^C of the terminal
    finally:
        signal.signal(signal.SIGTERM, before)


def _port(text: str) -> int:
    port = int(text)
    if not 1 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text}: give 1 to 65535")
    return port


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rca app",
        description="A page in the browser: drop a photograph, tick what it shows or let the model decide, see its "
        "mask, maps and the prototypes that answered, move the threshold, save. It is served to this machine alone, "
        "and nothing leaves it.",
        allow_abbrev=False,
    )
    parser.add_argument("--ckpt_path", required=True, type=Path, metavar="FILE", help="checkpoint that predicts masks")
    parser.add_argument("--port", type=_port, metavar="N", help="port of it (default: the first free one from 7860)")
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS",
        help="address to listen at; at another than the default, everybody in the network can use the page "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")
    parser.add_argument("--browser", action="store_true", help="open the page in the browser")
    return parser
