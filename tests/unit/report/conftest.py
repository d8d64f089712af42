"""Generated photographs with labels and maps, as entries of the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from report_classes import CLASSES

from rca_lightning.pseudo_labels.files import write_mask_file
from rca_lightning.report.entries import ReportEntry


@pytest.fixture
def entries(tmp_path: Path) -> Callable[[int], Iterator[ReportEntry]]:
    """Builder of entries of six files: a disc of class n % 3 whose map falls off towards its border."""
    folder = tmp_path / "files"
    folder.mkdir()
    rows, columns = np.mgrid[0:48, 0:64]
    files = []
    for number in range(6):
        map_ = np.clip(1 - np.hypot(rows - 24, columns - 20 - 4 * number) / (16 + 2 * number), 0, 1)
        photograph = np.stack([map_ * 200, map_ * 90 + 60, np.full_like(map_, 100)], axis=2)
        Image.fromarray(photograph.astype(np.uint8)).save(folder / f"{number}.jpg")
        label = (map_ > 0.4).astype(np.uint8) * (number % 3 + 1)
        write_mask_file(torch.from_numpy(label), folder / f"{number}.png")
        np.savez_compressed(
            folder / f"{number}.npz", maps=map_[None].astype(np.float16), classes=np.array([number % 3])
        )
        files.append(number)

    def build(count: int) -> Iterator[ReportEntry]:
        for place, number in enumerate(islice(cycle(files), count)):
            names = (folder / f"{number}{ending}" for ending in (".jpg", ".png", ".npz"))
            yield ReportEntry(f"photo_{place:05d}", *names, tags=(CLASSES[number % 3],))

    return build
