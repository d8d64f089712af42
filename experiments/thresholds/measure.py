"""Measures what a background threshold loses that no mask chose, against the best one, the default, and a few masks.

python experiments/thresholds/measure.py --config experiments/voc2012_mini/rca.yaml --root VOC2012 --split val \\
    --maps predictions/cams --crf --draws 20 --out scores.json

Maps are those that `rca predict` has written of the photographs of the split. Scored are all classes, and draws of five
of them: only photographs tagged with one of the five, only their maps, everything else background in the masks. The
regret is the mIoU at the best threshold of these photographs less that at the chosen one. "masks of 10 photographs" is
the best threshold of ten of them, the mean over 20 draws of the ten. Label images are drawn and scored on the means of
`--side` x `--side` pixels.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
import yaml

from rca_lightning import WSSSDataModule
from rca_lightning.data.dataset import load_mask
from rca_lightning.data.images import read_image
from rca_lightning.evaluation.auto_threshold import AutoThreshold, otsu_threshold
from rca_lightning.evaluation.map_kinds import MapKind, map_kind, thresholds_of
from rca_lightning.io.output_folder import stored_settings
from rca_lightning.io.progress import show_progress
from rca_lightning.pseudo_labels.dense_crf import COLOUR_REACH, SMOOTH_REACH, dense_crf
from rca_lightning.pseudo_labels.files import read_maps

THRESHOLDS = tuple(round(0.025 * step, 3) for step in range(2, 39))
CRF_THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 17))
MASKS, TRIES, CLASSES = 10, 20, 5


class Photograph:
    """Maps, mask and colours of a photograph, on the means of `side` x `side` pixels."""

    def __init__(
        self, maps: torch.Tensor, classes: list[int], mask: np.ndarray, colours: np.ndarray, *, side: int
    ) -> None:
        height, width = mask.shape[0] // side, mask.shape[1] // side
        self.maps = F.interpolate(maps[None], (height, width), mode="area")[0] if len(maps) else maps
        self.classes = classes
        self.mask = mask[side // 2 :: side, side // 2 :: side][:height, :width]
        self.side = side
        picture = torch.from_numpy(colours).permute(2, 0, 1)[None].float() / 255  # (H, W, 3) -> (1, 3, H, W)
        self.colours = F.interpolate(picture, (height, width), mode="area")
        self._drawn: dict[tuple[tuple[int, ...], bool], np.ndarray] = {}

    def rows(self, known: list[int]) -> tuple[int, ...]:
        """Rows of the maps whose class is one of `known`."""
        return tuple(row for row, one in enumerate(self.classes) if one in known)

    def drawn(self, rows: tuple[int, ...], *, crf: bool) -> np.ndarray:
        """Row that is drawn at each threshold, `(T, H, W)`; 0 is background, 1 the first of `rows`."""
        if (rows, crf) not in self._drawn:
            maps = self.maps[list(rows)]
            labels = []
            for threshold in CRF_THRESHOLDS if crf else THRESHOLDS:
                scores = torch.cat([torch.full_like(maps[:1], threshold), maps])
                if crf:
                    reach = {"smooth_reach": SMOOTH_REACH / self.side, "colour_reach": COLOUR_REACH / self.side}
                    scores = dense_crf(scores[None], self.colours, **reach)[0]
                labels.append(scores.argmax(0).to(torch.uint8).numpy())
            self._drawn[rows, crf] = np.stack(labels)
        return self._drawn[rows, crf]

    def confusion(self, known: list[int], *, crf: bool) -> np.ndarray:
        """Pixels by threshold, true and drawn class, `(T, L + 1, L + 1)`, where no other class than `known` exists."""
        rows, count = self.rows(known), len(known) + 1
        true = np.zeros(256, dtype=np.int64)
        true[[one + 1 for one in known]] = range(1, count)
        scored = self.mask != 255
        of_row = np.array([0, *(known.index(self.classes[row]) + 1 for row in rows)])
        drawn = of_row[self.drawn(rows, crf=crf)[:, scored]]  # (T, N)
        cells = true[self.mask[scored]] * count + drawn
        cells += np.arange(len(cells))[:, None] * count**2
        return np.bincount(cells.ravel(), minlength=len(cells) * count**2).reshape(len(cells), count, count)


def miou(confusion: np.ndarray) -> np.ndarray:
    """Mean IoU in percent over the classes that occur, of confusion matrices `(..., C, C)`."""
    hit = np.diagonal(confusion, axis1=-2, axis2=-1).astype(float)
    union = confusion.sum(-1) + confusion.sum(-2) - hit
    with np.errstate(invalid="ignore"):
        return 100 * np.nanmean(np.where(union > 0, hit / union, np.nan), axis=-1)


def measure(
    photographs: list[Photograph], known: list[int], default: float, kind: MapKind, *, crf: bool
) -> dict[str, Any]:
    """Scores of the thresholds of the photographs that are tagged with a class of `known`."""
    auto = AutoThreshold(kind, crf=crf)
    tagged = [one for one in photographs if one.rows(known)]
    for one in tagged:
        auto.update(one.maps[list(one.rows(known))])
    chosen = auto.compute()
    assert chosen is not None
    thresholds = CRF_THRESHOLDS if crf else THRESHOLDS
    table = np.array([one.confusion(known, crf=crf) for one in tagged])
    curve = miou(table.sum(0))
    random = np.random.default_rng(0)
    few = []
    for _ in range(TRIES):
        rows = random.permutation(len(tagged))[:MASKS]
        few.append(curve[np.nanargmax(miou(table[rows].sum(0)))])
    best = float(curve.max())

    def regret(threshold: float) -> float:
        return round(best - float(np.interp(threshold, thresholds, curve)), 3)

    return {
        "photographs": len(tagged),
        "best": {"threshold": thresholds[int(curve.argmax())], "miou": round(best, 3)},
        "auto": {"threshold": round(chosen, 4), "regret": regret(chosen)},
        "Otsu": {
            "threshold": round(otsu_threshold(auto.histogram), 4),
            "regret": regret(otsu_threshold(auto.histogram)),
        },
        "default": {"threshold": default, "regret": regret(default)},
        f"masks of {MASKS} photographs": {
            "regret": round(best - float(np.mean(few)), 3),
            "worst": round(best - float(np.min(few)), 3),
        },
        "curve": dict(zip(map(str, thresholds), np.round(curve, 3).tolist(), strict=True)),
    }


def summarise(draws: list[dict[str, Any]], way: str) -> dict[str, float]:
    """Mean and worst regret of a way over draws of classes."""
    regrets = [draw[way]["regret"] for draw in draws]
    return {"mean": round(float(np.mean(regrets)), 3), "worst": round(float(np.max(regrets)), 3)}


def load(given: argparse.Namespace) -> tuple[list[Photograph], int]:
    """The photographs that have maps and masks."""
    options = {"root": given.root, "predict_split": given.split, "on_bad_image": "raise"}
    data = WSSSDataModule(**{**yaml.safe_load(Path(given.config).read_text())["data"], **options})
    data.prepare_data()
    data.setup("predict")
    there = [one for one in data.predict_records if (given.maps / f"{one.image_id}.npz").is_file()][:: given.every]
    photographs = []
    for record in show_progress(there, what="read", total=len(there)):
        mask = load_mask(record, num_classes=data.num_classes)
        if mask is None:
            continue
        size = (int(mask.shape[0]), int(mask.shape[1]))
        seeds = read_maps(given.maps / f"{record.image_id}.npz", size=size, num_classes=data.num_classes)
        if len(seeds.classes):
            photographs.append(
                Photograph(seeds.maps, seeds.classes.tolist(), mask, read_image(record.image), side=given.side)
            )
    return photographs, data.num_classes


@torch.no_grad()
def main() -> None:
    """Read the arguments, measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="configuration of rca fit; its part data is read")
    parser.add_argument("--root", help="folder of the photographs")
    parser.add_argument("--split", required=True, help="split of the maps")
    parser.add_argument("--maps", required=True, type=Path, help="folder cams of rca predict")
    parser.add_argument("--draws", type=int, default=0, help="draws of five classes")
    parser.add_argument("--crf", action="store_true", help="draw labels by the dense CRF too")
    parser.add_argument("--every", type=int, default=1, help="take every n-th photograph only")
    parser.add_argument("--side", type=int, default=4, help="label and score means of so many pixels along each side")
    parser.add_argument("--kind", choices=get_args(MapKind), help="of the maps; default: as rca predict has noted")
    parser.add_argument("--out", required=True, type=Path, help="JSON file")
    given = parser.parse_args()
    photographs, num_classes = load(given)
    settings = stored_settings(given.maps)
    kind = given.kind or map_kind(
        attention=settings["reads_attention"],
        contrasted=settings["contrasted"],
        propagated=settings["propagation_steps"] > 0,
    )
    default = thresholds_of(kind).background
    names = ("scales", "flip", "predict_tags")
    content: dict[str, Any] = {"split": given.split, "every": given.every, "side": given.side, "kind": kind} | {
        name: settings[name] for name in names
    }
    random = np.random.default_rng(0)
    chosen = [sorted(random.choice(num_classes, CLASSES, replace=False).tolist()) for _ in range(given.draws)]
    for crf in (False, True) if given.crf else (False,):
        whole = measure(photographs, list(range(num_classes)), default, kind, crf=crf)
        draws = [
            {"classes": classes, **measure(photographs, classes, default, kind, crf=crf)}
            for classes in show_progress(chosen, what="draws", total=len(chosen))
        ]
        result: dict[str, Any] = {"all classes": whole, "draws": draws}
        for way in ("auto", "Otsu", "default", f"masks of {MASKS} photographs") if draws else ():
            result[f"regret of draws, {way}"] = summarise(draws, way)
        content["dense CRF" if crf else "no CRF"] = result
        told = {name: value for name, value in result.items() if name.startswith("regret")}
        print("CRF" if crf else "no CRF", {name: whole[name] for name in ("best", "auto", "Otsu", "default")}, told)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
