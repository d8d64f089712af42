"""Memory that a large photograph takes behind a transformer of timm."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import re, torch
from rca_lightning.modules.rca_module import RCAModule

torch.set_num_threads(1)
module = RCAModule(
    20, backbone="timm:vit_small_patch14_dinov2", weights="none", backbone_mode="frozen",
    propagation_affinity="attention", flip=False,
).eval()
module.network.pca.learned.fill_(True)
module.network.pca.weight.normal_()
aggregation = module.network.aggregation
aggregation.write(torch.randn_like(aggregation.prototypes), torch.ones_like(aggregation.valid))
tags = torch.zeros(1, 20)
tags[0, :3] = 1
with torch.no_grad():
    [maps] = module.seeds(torch.randn(1, 3, 667, 1000), tags)
assert maps.maps.shape == (3, 667, 1000)
# Not ru_maxrss: that counts what the process took that started this one.
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak is read from /proc")
def test_photograph_of_1000_pixels_takes_less_than_two_gib():
    pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)
    run = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    kibibytes = int(run.stdout.split()[-1])
    # 48 x 72 cells: their attention alone is 46 MiB, that of six heads and eight blocks in one piece would be 2.2 GiB.
    assert kibibytes < 2 * 2**20, f"{kibibytes / 2**20:.2f} GiB"
