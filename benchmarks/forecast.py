"""What the data sets of the field would take: bytes and operations, the same on any hardware, and seconds from them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clustering import SIZES
from operation_counts import contrast_flops, kmeans_flops, kmeans_passes, network_flops

from rca_lightning import RCAModule

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Project:
    """A training; `batch` crops of `side` pixels a GPU."""

    images: int
    gpus: int
    classes: int
    tags: float
    batch: int = 16
    side: int = 256
    slots: int = 500
    prototypes: int = 10
    backbone: str = "resnet50"


# Tags an image: "less than 2" in VOC, 3.5 in COCO (Lin et al. 2014, section 5).
PROJECTS = {
    "VOC 2012 trainaug, 1 GPU": Project(images=10582, gpus=1, classes=20, tags=2),
    "COCO 2014 train, 8 GPUs": Project(images=82783, gpus=8, classes=80, tags=3.5),
}


def forecast(kmeans_model: dict[str, float], results: Path = RESULTS) -> list[dict[str, Any]]:
    """A row for each quantity with a column for each project.

    Args:
        kmeans_model: seconds of k-means here; see `fit` of growth.py.
        results: folder whose gpu-*.json are read, where there are any.
    """
    columns = {name: _quantities(project, kmeans_model) for name, project in PROJECTS.items()}
    for path in sorted(results.glob("gpu-*.json")):
        measured = json.loads(path.read_text())
        if not measured.get("quick"):
            for name, project in PROJECTS.items():
                columns[name].update(_on_gpu(project, measured))
    quantities = list(dict.fromkeys(key for column in columns.values() for key in column))
    return [{"quantity": key, **{name: column.get(key) for name, column in columns.items()}} for key in quantities]


def _quantities(project: Project, kmeans_model: dict[str, float]) -> dict[str, float]:
    cam, rca = _module(project, rca=False), _module(project, rca=True)
    channels, queues = rca.embedding_dim, rca.memory_classes
    network = project.batch * network_flops(cam, project.side)
    tags = math.ceil(project.tags)
    attention = project.batch * network_flops(rca, project.side, tags_per_image=tags) - network
    contrast = contrast_flops(round(project.batch * project.tags), queues * project.slots, channels)
    steps = project.images // (project.batch * project.gpus)
    background = int(rca.hparams["background_prototypes"])
    products = project.slots * channels * (project.classes * project.prototypes + background)
    clustering = _clustering_flops(project, channels, background)
    bank = queues * project.slots * channels * 4
    regions = project.batch * project.gpus * (project.tags + bool(background))
    return {
        "steps an epoch": steps,
        "memory on each GPU, MiB": bank / 2**20,
        "regions all GPUs exchange a step, MiB": regions * channels * 4 / 2**20,
        "plain CAM, a step on a GPU, TFLOP": network / 1e12,
        "attention and second head over it, %": 100 * attention / network,
        "contrast over it, %": 100 * contrast / network,
        "clustering an epoch, TFLOP": clustering / 1e12,
        "clustering an epoch, GB read": kmeans_passes(project.prototypes) * bank / 1e9,
        "clustering over the plain CAM of an epoch on a GPU, %": 100 * clustering / (steps * network),
        "clustering an epoch here, s": kmeans_model["constant"] + kmeans_model["kmeans_products"] * products,
    }


def _module(project: Project, *, rca: bool) -> RCAModule:
    options = {} if rca else {"contrast": False, "aggregation": False}
    return RCAModule(project.classes, backbone=project.backbone, num_prototypes=project.prototypes, **options)


def _clustering_flops(project: Project, channels: int, background: int) -> int:
    own = project.classes * kmeans_flops(project.slots, project.prototypes, channels)
    return own + (kmeans_flops(project.slots, background, channels) if background else 0)


def _on_gpu(project: Project, measured: dict[str, Any]) -> dict[str, float]:
    """Seconds on a measured GPU: those of the epoch if every GPU were as fast as one alone, and of the clustering."""
    name, size = measured["machine"]["accelerator"], "voc" if project.classes <= 20 else "coco"
    found: dict[str, float] = {}
    for row in measured["parts"].get("steps", {}).get("rows", ()):
        wanted = f"{project.batch} x {project.side} px"
        if (row["size"], row["images"], row["way"]) == (size, wanted, "rca"):
            found[f"epoch of RCA, {name}, s"] = project.images / project.gpus / row["images_per_second"]
    for row in measured["parts"].get("clustering", {}).get(size, {}).get("rows", ()):
        if row["way"] == "torch":
            # Measured with fewer channels: its time goes with the operations.
            memory, module = SIZES[size], _module(project, rca=True)
            done = memory.classes * kmeans_flops(memory.points, memory.clusters, memory.channels)
            asked = _clustering_flops(project, module.embedding_dim, int(module.hparams["background_prototypes"]))
            found[f"clustering an epoch, {name}, s"] = row["seconds"] * asked / done
    return found
