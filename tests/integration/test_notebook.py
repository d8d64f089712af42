"""The notebook runs from its first cell to its last, and is committed without outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).resolve().parents[2] / "experiments" / "notebooks"
ALL = sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("name", ALL)
def test_committed_without_outputs(name: str):
    cells = json.loads((NOTEBOOKS / name).read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 1
    assert [(cell["outputs"], cell["execution_count"]) for cell in code] == [([], None)] * len(code)


def test_quickstart_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    nbformat = pytest.importorskip("nbformat", reason="reads the notebook; pip install 'rca-lightning[notebook]'")
    nbclient = pytest.importorskip("nbclient", reason="runs the notebook; pip install 'rca-lightning[notebook]'")
    pytest.importorskip("ipykernel", reason="runs the notebook; pip install 'rca-lightning[notebook]'")
    pytest.importorskip("matplotlib", reason="draws in the notebook; pip install 'rca-lightning[notebook]'")
    settings = {
        "RCA_NOTEBOOK_EPOCHS": "2",
        "RCA_NOTEBOOK_TRAIN_IMAGES": "16",
        "RCA_NOTEBOOK_VAL_IMAGES": "5",
        "RCA_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    for key, value in settings.items():
        monkeypatch.setenv(key, value)
    notebook = nbformat.read(NOTEBOOKS / "quickstart.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    assert "val/seed_miou/image_tags: 0." in printed
    assert "regions in memory, cosine within the class" in printed
    assert "5 images; these with a background threshold of" in printed
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 4  # photographs, maps, prototypes, predictions
    # What it wrote is the generated data set where it was told to keep it.
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}
