"""What `from rca_lightning import ...` offers, and what it must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rca_lightning

LIGHT = ("rca.network", "rca.loss", "rca.prototypes", "rca.inference", "clustering.cluster", "backbones.build")


@pytest.mark.parametrize("name", rca_lightning.__all__)
def test_every_name_is_there(name: str):
    assert getattr(rca_lightning, name) is not None
    assert name in dir(rca_lightning)


def test_names_for_type_checkers_are_those_at_run_time():
    tree = ast.parse(Path(rca_lightning.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {name.name: node.module for node in block.body for name in node.names}
    assert typed == {name: f"rca_lightning.{module}" for name, module in rca_lightning._MODULES.items()}
    assert sorted(rca_lightning.__all__) == sorted([*typed, "__version__"])


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'RCAModul'"):
        _ = rca_lightning.RCAModul


def test_method_loads_neither_lightning_nor_what_reads_images():
    code = f"import sys; {'; '.join(f'import rca_lightning.{name}' for name in LIGHT)}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in loaded
    assert not {"lightning", "albumentations", "cv2", "jsonargparse", "torchmetrics"} & set(loaded)
