"""Fixtures every test may use."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
torch.set_num_threads(1)
# The ablations and the benchmarks are folders of scripts, no installed packages. Of their two run.py, `import run`
# finds that of the ablation.
_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT / "experiments" / "ablation"))
sys.path.append(str(_ROOT / "benchmarks"))


@pytest.fixture(scope="session")
def shared_root() -> Path:
    """Folder with the real photographs and weights beside the checkout, where there is one."""
    root = Path(__file__).resolve().parents[2] / "shared"
    if not (root / "data").is_dir():
        pytest.skip("the real photographs are not beside this checkout (../shared/data)")
    return root
