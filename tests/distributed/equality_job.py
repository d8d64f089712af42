"""The cases on so many processes: `python -m tests.distributed.equality_job FOLDER PROCESSES [fork]`.

With "fork" processes are started before Lightning looks, as `torchrun` and `srun` do it, and then all cases run on a
single process; without, Lightning starts them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from tests.distributed import equality_cases


def _forked(folder: Path, processes: int) -> None:
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            os.environ.update(LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
            equality_cases.run(folder, processes)
            sys.exit()
        children.append(child)
    for child in children:
        if os.waitpid(child, 0)[1]:
            sys.exit("a process failed")


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, count = Path(sys.argv[1]), int(sys.argv[2])
    if sys.argv[3:] == ["fork"]:
        _forked(place / str(count), count)
        equality_cases.run(place / "1", 1)
    else:
        equality_cases.run(place / str(count), count)
