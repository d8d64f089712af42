"""Notebooks run from their first cell to their last, and are committed without outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).resolve().parents[2] / "experiments" / "notebooks"
ALL = sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("name", ALL)
def test_committed_without_outputs(name: str):
    cells = json.loads((NOTEBOOKS / name).read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 1
    assert [(cell["outputs"], cell["execution_count"]) for cell in code] == [([], None)] * len(code)


def outputs_of(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Outputs of the code cells of a notebook, run with few images in a folder that is empty before."""
    nbformat = pytest.importorskip("nbformat", reason="reads the notebook; pip install 'rca-lightning[notebook]'")
    nbclient = pytest.importorskip("nbclient", reason="runs the notebook; pip install 'rca-lightning[notebook]'")
    pytest.importorskip("ipykernel", reason="runs the notebook; pip install 'rca-lightning[notebook]'")
    pytest.importorskip("matplotlib", reason="draws in the notebook; pip install 'rca-lightning[notebook]'")
    settings = {
        "RCA_NOTEBOOK_EPOCHS": "2",
        "RCA_NOTEBOOK_TRAIN_IMAGES": "16",
        "RCA_NOTEBOOK_VAL_IMAGES": "5",
        "RCA_NOTEBOOK_FOLDER": str(folder / "own"),
        "RCA_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    for key, value in settings.items():
        monkeypatch.setenv(key, value)
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def printed_and_drawn(outputs: list[dict[str, Any]]) -> tuple[str, int]:
    """What was printed, and how many pictures there are."""
    printed = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    return printed, sum("image/png" in output.get("data", {}) for output in outputs)


def test_quickstart_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    printed, drawn = printed_and_drawn(outputs_of("quickstart.ipynb", tmp_path, monkeypatch))
    assert "val/miou_true_tags: 0." in printed
    assert "regions in memory, cosine within the class" in printed
    assert "5 images; these with a background threshold of" in printed
    assert drawn == 4  # photographs, maps, prototypes, predictions
    # What it wrote is the generated data set where it was told to keep it.
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}


def test_own_photographs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    printed, drawn = printed_and_drawn(outputs_of("own_photographs.ipynb", tmp_path, monkeypatch))
    assert "image,tags\ntrain_00000," in printed
    assert "16 masks" in printed  # of the five without tags too
    assert drawn == 2  # masks, thresholds
    assert {path.name for path in tmp_path.iterdir()} == {"own"}
    own = tmp_path / "own"
    assert len((own / "photographs" / "tags.csv").read_text().splitlines()) == 1 + 16 - 5
    assert (own / "rca.ckpt").is_file()
    for kind in ("cams", "overlays", "pseudo_labels"):
        assert len(list((own / "labels" / kind).iterdir())) == 16
