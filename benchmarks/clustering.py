"""Target 3: k-means of a whole memory by each backend, its time and its objective against scikit-learn's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from measure.result import Result
from measure.timing import as_rows, in_turns, ratio
from torch import Tensor

from rca_lightning.clustering.cluster import kmeans

_OBJECTIVE_LIMIT = 1.01  # of scikit-learn's default
_FAISS_LIMIT = 1.3


@dataclass(frozen=True)
class MemorySize:
    """Classes, points a class, channels and clusters of one memory; `limit` in seconds on two cores."""

    classes: int
    points: int
    channels: int
    limit: float
    clusters: int = 10


SIZES = {
    "voc": MemorySize(20, 500, 512, limit=0.15),
    "coco": MemorySize(80, 500, 512, limit=0.3),
    "thousand": MemorySize(1000, 500, 256, limit=3.0),
}
TINY = {"tiny": MemorySize(3, 40, 8, limit=9.0, clusters=4)}
_SKLEARN_CLASSES = 20  # of a larger memory, as many are compared: its loop over classes takes minutes


def run(*, quick: bool = False, rounds: int = 5, names: Collection[str] = tuple(SIZES)) -> Result:
    """Every backend that is here, at each size.

    Args:
        quick: one tiny size, to see that it runs.
        rounds: how often each backend is timed.
        names: which of `SIZES`.
    """
    backends = ["torch", *(["faiss"] if importlib.util.find_spec("faiss") else [])]
    result = Result("clustering", "k-means with 20 iterations, class by class", rows := [])
    sizes = {name: SIZES[name] for name in names}
    for name, size in (TINY if quick else sizes).items():
        points = memory_like(size)
        ways: dict[str, Callable[[], object]] = {
            backend: partial(kmeans, points, size.clusters, backend=backend) for backend in (*backends, "auto")
        }
        times = in_turns(ways, rounds=rounds)
        rows.extend({"size": name, **row} for row in as_rows(times, "auto"))
        result.at_most(f"{name}: seconds of auto", times["auto"].seconds, size.limit)
        if "faiss" in times:
            result.at_most(f"{name}: auto over FAISS", ratio(times["auto"], times["faiss"]), _FAISS_LIMIT)
        if not importlib.util.find_spec("sklearn"):
            result.notes["left out"] = "the objective of scikit-learn, which is not installed"
            continue
        compared = points[:_SKLEARN_CLASSES]
        found = float(kmeans(compared, size.clusters).objective.sum()) / objective_of_sklearn(compared, size.clusters)
        result.at_most(f"{name}: objective over scikit-learn's", found, _OBJECTIVE_LIMIT)
    return result


def memory_like(size: MemorySize) -> Tensor:
    """Unit vectors about overlapping centres, as regions of a class are: near each other, without clear clusters."""
    generator = torch.Generator().manual_seed(0)
    random = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    common = random(size.classes, 1, size.channels)
    centres = common + 0.6 * random(size.classes, 2 * size.clusters, size.channels)
    which = torch.randint(0, 2 * size.clusters, (size.classes, size.points), generator=generator)
    near = centres[torch.arange(size.classes)[:, None], which]
    points = F.normalize(near + 0.8 * random(size.classes, size.points, size.channels), dim=2)
    return points.to("cuda" if torch.cuda.is_available() else "cpu")


def objective_of_sklearn(points: Tensor, clusters: int) -> float:
    """Sum over the classes of the objective of scikit-learn's `KMeans` with its defaults."""
    from sklearn.cluster import KMeans  # a test dependency; not needed for the other benchmarks

    own = points.cpu().numpy()
    return sum(float(KMeans(clusters, random_state=0).fit(one).inertia_) for one in own)
