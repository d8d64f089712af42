"""Runs the command line in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rca_lightning.cli import main


def run(command: str, config: Path, *more: object) -> Any:
    """`rca <command> --config <config> ...`."""
    return main([command, "--config", str(config), *map(str, more)])
