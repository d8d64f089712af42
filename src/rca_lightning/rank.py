"""Which of several processes this is, known without importing torch."""

from __future__ import annotations

import os
import sys

_NAMES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # the order of Lightning


def is_first_process() -> bool:
    """Tells whether this process is the first of a distributed run, or the only one.

    Where there is a process group, it knows; before, the variables of torchrun, Lightning's launcher and SLURM do.
    """
    group = sys.modules.get("torch.distributed")  # without torch there is no group
    if group is not None and group.is_available() and group.is_initialized():
        return bool(group.get_rank() == 0)
    return next((os.environ[name] for name in _NAMES if name in os.environ), "0") == "0"
