"""Moments of a training at which it is killed, drawn at random."""

from __future__ import annotations

import io
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

KINDS = ("clock", "step", "clustering", "writing", "written", "validation", "epoch")


@dataclass(frozen=True)
class Moment:
    """When a child dies of SIGKILL.

    Attributes:
        kind: "clock": after some seconds, by the parent; else the child kills itself at its n-th training "step",
            within a "clustering", when it is "writing" a checkpoint (after a part of its bytes), when it has "written"
            one under the temporary name, in "validation", or at the start of an "epoch".
        number: n.
        part: seconds of "clock", share of the bytes of "writing".
    """

    kind: str
    number: int
    part: float

    @staticmethod
    def drawn(generator: random.Random, kind: str) -> Moment:
        """A random moment of this kind."""
        return Moment(kind, generator.randint(1, 3), round(generator.uniform(0.0, 1.0), 3))

    def prepare(self) -> None:
        """Patch this process so that it kills itself; nothing for "clock"."""
        from rca_lightning.callbacks import region_memory
        from rca_lightning.checkpoints import writing as atomic_io
        from rca_lightning.modules.rca_module import RCAModule

        count = _Count(self.number)
        if self.kind in ("writing", "written"):
            part = self.part if self.kind == "writing" else 1.0
            atomic_io.torch = _TorchThatDies(atomic_io.torch, part, count)
        elif self.kind == "clustering":
            _patch(region_memory, "broadcast_from_first", count)  # clustered, and not yet written
        elif self.kind in ("step", "validation", "epoch"):
            name = {"step": "training_step", "validation": "validation_step", "epoch": "on_train_epoch_start"}
            _patch(RCAModule, name[self.kind], count)

    def strike(self, process: BaseProcess) -> None:
        """Kill the child if that is for the parent to do."""
        if self.kind == "clock":
            time.sleep(3 * self.part)
            process.kill()


class _Count:
    def __init__(self, number: int) -> None:
        self.left = number

    def reached(self) -> bool:
        self.left -= 1
        return self.left == 0


class _TorchThatDies:
    def __init__(self, torch: Any, part: float, count: _Count) -> None:
        self.torch, self.part, self.count = torch, part, count

    def save(self, content: object, file: io.BufferedWriter) -> None:
        buffer = io.BytesIO()
        self.torch.save(content, buffer)
        whole = buffer.getvalue()
        if self.count.reached():
            file.write(whole[: int(self.part * len(whole))])
            file.flush()
            die()
        file.write(whole)


def _patch(owner: Any, name: str, count: _Count) -> None:
    function: Callable[..., Any] = getattr(owner, name)

    def dying(*args: Any, **kwargs: Any) -> Any:
        if count.reached():
            die()
        return function(*args, **kwargs)

    setattr(owner, name, dying)


def die() -> None:
    """SIGKILL to this process."""
    os.kill(os.getpid(), signal.SIGKILL)
