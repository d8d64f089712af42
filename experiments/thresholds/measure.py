"""Measures what a background threshold loses that no mask chose, against the best one, the default, and a few masks.

python experiments/thresholds/measure.py --config experiments/voc2012_mini/rca.yaml --root VOC2012 --split val \\
    --maps predictions/cams --crf --draws 20 --out scores.json

Maps are those that `rca predict` has written of the photographs of the split. Scored are all classes, and draws of five
of them: only photographs tagged with one of the five, only their maps, everything else background in the masks. The
regret is the mIoU at the best threshold of these photographs less that at the chosen one. "masks of 10 photographs" is
the best threshold of ten of them, the mean over 20 draws of the ten. Label images are drawn and scored on the means of
4 x 4 pixels.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml

from rca_lightning import WSSSDataModule
from rca_lightning.data.dataset import load_mask
from rca_lightning.data.images import read_image
from rca_lightning.evaluation.auto_threshold import AutoThreshold
from rca_lightning.io.output_folder import stored_settings
from rca_lightning.io.progress import show_progress
from rca_lightning.pseudo_labels.dense_crf import COLOUR_REACH, SMOOTH_REACH, dense_crf
from rca_lightning.pseudo_labels.files import read_maps

SIDE = 4  # pixels along each side whose mean is labelled
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
MASKS, TRIES, CLASSES = 10, 20, 5


class Photograph:
    """Maps, mask and colours of a photograph, on the means of `SIDE` pixels."""

    def __init__(self, maps: torch.Tensor, classes: list[int], mask: np.ndarray, colours: np.ndarray) -> None:
        height, width = mask.shape[0] // SIDE, mask.shape[1] // SIDE
        self.maps = F.interpolate(maps[None], (height, width), mode="area")[0] if len(maps) else maps
        self.classes = classes
        self.mask = mask[SIDE // 2 :: SIDE, SIDE // 2 :: SIDE][:height, :width]
        picture = torch.from_numpy(colours).permute(2, 0, 1)[None].float() / 255  # (H, W, 3) -> (1, 3, H, W)
        self.colours = F.interpolate(picture, (height, width), mode="area")

    def of(self, chosen: list[int]) -> Photograph | None:
        """The same photograph where no other classes are known; `None` without one of these."""
        rows = [row for row, one in enumerate(self.classes) if one in chosen]
        if not rows:
            return None
        other = object.__new__(Photograph)
        other.maps, other.classes = self.maps[rows], [chosen.index(self.classes[row]) for row in rows]
        values = np.full(256, 0, dtype=np.uint8)
        values[255] = 255
        values[[one + 1 for one in chosen]] = range(1, len(chosen) + 1)
        other.mask, other.colours = values[self.mask], self.colours
        return other

    def confusion(self, threshold: float, num_classes: int, *, crf: bool) -> np.ndarray:
        """Pixels by true and drawn class, `(L + 1, L + 1)`."""
        scores = torch.cat([torch.full_like(self.maps[:1], threshold), self.maps])
        if crf:
            reach = {"smooth_reach": SMOOTH_REACH / SIDE, "colour_reach": COLOUR_REACH / SIDE}
            scores = dense_crf(scores[None], self.colours, **reach)[0]
        drawn = np.array([0, *(one + 1 for one in self.classes)])[scores.argmax(0).numpy()]
        scored = self.mask != 255
        cell = self.mask[scored].astype(np.int64) * (num_classes + 1) + drawn[scored]
        return np.bincount(cell, minlength=(num_classes + 1) ** 2).reshape(num_classes + 1, num_classes + 1)


def miou(confusion: np.ndarray) -> np.ndarray:
    """Mean IoU in percent over the classes that occur, of confusion matrices `(..., C, C)`."""
    hit = np.diagonal(confusion, axis1=-2, axis2=-1).astype(float)
    union = confusion.sum(-1) + confusion.sum(-2) - hit
    with np.errstate(invalid="ignore"):
        return 100 * np.nanmean(np.where(union > 0, hit / union, np.nan), axis=-1)


def measure(photographs: list[Photograph], num_classes: int, default: float, *, crf: bool) -> dict[str, Any]:
    """Scores of the thresholds of one set of photographs."""
    auto = AutoThreshold()
    for one in photographs:
        auto.update(one.maps)
    chosen = auto.compute()
    assert chosen is not None
    table = np.array([[one.confusion(t, num_classes, crf=crf) for t in THRESHOLDS] for one in photographs])
    curve = miou(table.sum(0))
    random = np.random.default_rng(0)
    few = []
    for _ in range(TRIES):
        rows = random.permutation(len(photographs))[:MASKS]
        few.append(curve[np.nanargmax(miou(table[rows].sum(0)))])
    best = float(curve.max())

    def regret(threshold: float) -> float:
        return round(best - float(np.interp(threshold, THRESHOLDS, curve)), 3)

    return {
        "photographs": len(photographs),
        "best": {"threshold": THRESHOLDS[int(curve.argmax())], "miou": round(best, 3)},
        "auto": {"threshold": round(chosen, 4), "regret": regret(chosen)},
        "default": {"threshold": default, "regret": regret(default)},
        f"masks of {MASKS} photographs": {
            "regret": round(best - float(np.mean(few)), 3),
            "worst": round(best - float(np.min(few)), 3),
        },
        "curve": dict(zip(map(str, THRESHOLDS), np.round(curve, 3).tolist(), strict=True)),
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
            photographs.append(Photograph(seeds.maps, seeds.classes.tolist(), mask, read_image(record.image)))
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
    parser.add_argument("--default", type=float, help="the fixed threshold; default: that of rca predict")
    parser.add_argument("--out", required=True, type=Path, help="JSON file")
    given = parser.parse_args()
    photographs, num_classes = load(given)
    settings = stored_settings(given.maps)
    default = settings["background_threshold"] if given.default is None else given.default
    names = ("final_map", "reads_attention", "contrasted", "scales", "flip", "predict_tags")
    content: dict[str, Any] = {"split": given.split, "every": given.every, **{name: settings[name] for name in names}}
    random = np.random.default_rng(0)
    chosen = [sorted(random.choice(num_classes, CLASSES, replace=False).tolist()) for _ in range(given.draws)]
    for crf in (False, True) if given.crf else (False,):
        whole = measure(photographs, num_classes, default, crf=crf)
        draws = []
        for classes in show_progress(chosen, what="draws", total=len(chosen)):
            of_classes = [one for one in (photograph.of(classes) for photograph in photographs) if one is not None]
            draws.append({"classes": classes, **measure(of_classes, CLASSES, default, crf=crf)})
        result: dict[str, Any] = {"all classes": whole, "draws": draws}
        for way in ("auto", "default", f"masks of {MASKS} photographs") if draws else ():
            result[f"regret of draws, {way}"] = summarise(draws, way)
        content["dense CRF" if crf else "no CRF"] = result
        told = {name: value for name, value in result.items() if name.startswith("regret")}
        print("CRF" if crf else "no CRF", {name: whole[name] for name in ("best", "auto", "default")}, told)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
