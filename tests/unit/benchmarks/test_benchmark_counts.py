"""Counted operations, the peaks of devices, the model of growth and what it forecasts, against known numbers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import forecast as forecast_script
import pytest
import torch
import torch.nn.functional as F
from forecast import Project, forecast
from growth import fit
from growth_plot import modelled, plot
from measure.flops import count_flops
from measure.peak import measured_peak, on_data_sheet
from operation_counts import contrast_flops, kmeans_flops, network_flops

from rca_lightning import RCAModule, kmeans
from rca_lightning.rca import contrast
from rca_lightning.rca.contrast import region_contrast_loss

ROWS = [{"size": size, "words": words} for size in (1.0, 2.0, 5.0) for words in (10.0, 100.0, 1000.0)]


def test_fit_finds_the_coefficients_points_were_made_with():
    rows = [{**row, "seconds": 0.5 + 3 * row["size"] + 0.25 * row["words"]} for row in ROWS]
    found = fit(rows, "seconds", ("size", "words"))
    assert found.pop("median_error") == pytest.approx(0, abs=1e-9)
    assert found == pytest.approx({"constant": 0.5, "size": 3.0, "words": 0.25})


def test_no_term_of_the_fit_is_negative():
    rows = [{**row, "seconds": 2 + 0.25 * row["words"] - 0.1 * row["size"]} for row in ROWS]
    found = fit(rows, "seconds", ("size", "words"))
    assert found["size"] == 0
    assert found["words"] == pytest.approx(0.25, rel=0.05)
    assert 0 < found["median_error"] < 0.1


def test_a_product_forward_and_backward_is_three():
    one, other = torch.ones(3, 5, requires_grad=True), torch.ones(5, 7, requires_grad=True)
    assert count_flops(lambda: one @ other) == 2 * 3 * 5 * 7
    assert count_flops(lambda: (one @ other).sum().backward()) == 3 * 2 * 3 * 5 * 7


@pytest.mark.parametrize("by_blocks", [False, True])
def test_contrast_is_what_is_counted(by_blocks: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(contrast, "_reads_by_blocks", lambda queries, memory: by_blocks)
    regions, classes, slots, channels = 5, 4, 6, 8
    queries = torch.randn(regions, channels, requires_grad=True)
    absent = torch.arange(regions)[:, None] % 2 != torch.arange(classes)[None] % 2
    memory = F.normalize(torch.randn(classes, slots, channels), dim=2)
    valid = torch.ones(classes, slots, dtype=torch.bool)
    labels = torch.arange(regions) % 2
    counted = count_flops(lambda: region_contrast_loss(queries, labels, absent, memory, valid).backward())
    again = slots if by_blocks else 0  # slots of a region's own class
    assert counted == contrast_flops(regions, classes * slots + again, channels)


def test_kmeans_is_what_is_counted():
    """Of so many points in so many directions none stays where it is within three iterations."""
    points = torch.randn(3, 400, 16, generator=torch.Generator().manual_seed(0))
    counted = count_flops(lambda: kmeans(points, 7, iterations=3, backend="torch"))
    means = 3 * 3 * 2 * 400 * 7 * 16  # products on a GPU only
    assert counted + means == pytest.approx(3 * kmeans_flops(400, 7, 16, iterations=3), rel=0.02)


def test_what_prototypes_add_to_a_network():
    options = {"backbone": "resnet14", "num_prototypes": 2, "background_prototypes": 4}
    cam = network_flops(RCAModule(3, **options, contrast=False, aggregation=False), 64)
    module = RCAModule(3, **options)
    features, channels, cells = module.network.backbone.num_features, module.embedding_dim, 4 * 4
    # Second head on features; similarities with the 2 * 2 + 4 prototypes of two classes; forward, and two backward.
    least = 3 * 2 * cells * features * 3 + 2 * 2 * cells * channels * 8
    assert least < network_flops(module, 64, tags_per_image=2) - cam < 2 * least
    assert cam > 100 * least


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Tesla V100-SXM2-16GB", None),
        ("NVIDIA L40", None),
    ],
)
def test_peaks_of_known_devices(name: str, peak: float | None):
    assert on_data_sheet(name) == peak


def test_the_measured_peak_counts_all_products(monkeypatch: pytest.MonkeyPatch):
    ticks = iter(range(1000))
    monkeypatch.setattr("measure.timing.time.perf_counter", lambda: next(ticks))  # a second for ten products
    assert measured_peak(8, rounds=2) == pytest.approx(10 * 2 * 8**3 / 1e12)


def test_forecast_of_a_measured_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small = {"backbone": "resnet14", "prototypes": 2, "slots": 6, "side": 64}
    projects = {"one": Project(1600, 1, 2, 2, **small), "eight": Project(1600, 8, 30, 2, **small)}
    monkeypatch.setattr(forecast_script, "PROJECTS", projects)
    steps = [{"size": size, "images": "16 x 64 px", "way": "rca", "images_per_second": 100} for size in ("voc", "coco")]
    clustered = {name: {"rows": [{"way": "torch", "seconds": 0.5}]} for name in ("voc", "coco")}
    measured = {"machine": {"accelerator": "Fast"}, "parts": {"steps": {"rows": steps}, "clustering": clustered}}
    (tmp_path / "gpu-fast.json").write_text(json.dumps({**measured, "quick": False}))
    (tmp_path / "gpu-cpu.json").write_text(json.dumps({"quick": True}))
    rows = forecast({"constant": 1.0, "kmeans_products": 0.0}, tmp_path)
    found = {row["quantity"]: (row["one"], row["eight"]) for row in rows}
    assert found["steps an epoch"] == (100, 12)
    assert found["epoch of RCA, Fast, s"] == (16, 2)
    assert found["clustering an epoch here, s"] == (1, 1)
    channels = RCAModule(2, backbone="resnet14").embedding_dim
    assert found["memory on each GPU, MiB"] == pytest.approx((3 * 6 * channels / 2**18, 31 * 6 * channels / 2**18))
    assert found["regions all GPUs exchange a step, MiB"][1] == pytest.approx(16 * 8 * 3 * channels / 2**18)
    assert 0 < found["clustering an epoch, Fast, s"][0] < 0.5
    assert found["attention and second head over it, %"][0] > 0


def test_the_model_that_is_drawn():
    models = {"step_seconds": {"constant": 1.0, "words": 2.0, "median_error": 0.5}}
    assert modelled({"words": 3, "step_seconds": 9.0, "bank_mib": 4}, "step_seconds", models) == 7
    assert modelled({"words": 3, "bank_mib": 4}, "bank_mib", models) == 4


def test_without_matplotlib_the_picture_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    plot([], {}, tmp_path / "growth.png")
    assert "matplotlib is not installed; pip install 'rca-lightning[notebook]'" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
