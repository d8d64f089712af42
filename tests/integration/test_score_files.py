"""Scores as `rca validate | test | predict | labels` write them, and `rca compare` as it reads them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rca_lightning
from rca_lightning.cli.main import main
from rca_lightning.errors import ArgumentError, ResultsError
from rca_lightning.evaluation.auto_threshold import AutoThreshold
from rca_lightning.evaluation.image_counts import ImageCounts, ids_digest
from rca_lightning.evaluation.intervals import miou_interval
from rca_lightning.evaluation.threshold_calibration import calibrate_threshold
from tests.integration.running import run


def score(command: str, config: Path, checkpoint: Path, *more: object) -> tuple[dict[str, Any], ImageCounts]:
    """Content of the JSON, and the counts beside it."""
    run(command, config, "--ckpt_path", checkpoint, *more)
    folder = config.parent / "run"
    return json.loads((folder / f"{command}.json").read_text()), ImageCounts.load(folder / f"{command}_images.npz")


def test_score_is_without_masks_help_and_says_what_it_rests_on(
    config: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
):
    content, counts = score("validate", config, checkpoint)
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if not line.startswith("written to ")]
    assert max(map(len, lines)) <= 80
    low, high = (100 * content["miou_interval"][end] for end in ("low", "high"))
    assert f"mIoU {100 * content['miou']:.1f}, 95 % interval over images {low:.1f} to {high:.1f}" in printed
    assert "background threshold 0.7 (default)" in printed
    best = f"mIoU {100 * content['oracle_miou']:.1f} at {content['oracle_threshold']:g}"
    assert f"oracle (best threshold on these masks): {best}" in printed
    assert "objects by size: small" in printed
    assert f"near outlines (trimap): mIoU {100 * content['trimap_miou']:.1f}" in printed

    assert miou_interval(counts, content["threshold"]).value == pytest.approx(content["miou"])
    for threshold, miou in content["curve"].items():
        assert miou_interval(counts, float(threshold), draws=1).value == pytest.approx(miou)

    protocol = content["protocol"]
    assert protocol["checkpoint"] == {
        "file": checkpoint.name,
        "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
    }
    assert protocol["split"] == {"name": "val", "images": 6, "ids_sha256": ids_digest(counts.ids)}
    assert protocol["supervision"] == {
        "tags": "image", "saliency": False, "prompts": False, "proposals": False, "seed_dir": False, "masks": False,
    }  # fmt: skip
    assert protocol["versions"]["rca_lightning"] == rca_lightning.__version__
    assert (protocol["scales"], protocol["flip"], protocol["final_map"]) == ([1.0], False, "attention")
    assert (protocol["crf"], protocol["refine"], protocol["weights"]) == (False, [], None)
    assert str(config.parent) not in json.dumps(content)


def test_the_logger_gets_both_scores_by_name(config: Path, checkpoint: Path):
    cli = run("validate", config, "--ckpt_path", checkpoint, "--model.eval_tags", "predicted")
    content = json.loads((config.parent / "run" / "validate.json").read_text())
    logged = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    assert logged["val/miou_predicted_tags"] == pytest.approx(content["miou"], abs=1e-6)
    assert logged["val/miou_predicted_tags_oracle"] == pytest.approx(content["oracle_miou"], abs=1e-6)
    assert logged["val/threshold_predicted_tags"] == pytest.approx(content["threshold"])


def test_runs_are_compared_by_their_files(
    config: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    maps = ("--model.final_map", "coarse")
    score("validate", config, checkpoint)
    for ending in (".json", "_images.npz"):
        (tmp_path / "run" / f"validate{ending}").rename(tmp_path / f"attention{ending}")
    coarse, _ = score("validate", config, checkpoint, *maps)
    attention = json.loads((tmp_path / "attention.json").read_text())
    capsys.readouterr()
    files = [str(tmp_path / "attention.json"), str(tmp_path / "run" / "validate.json")]
    main(["compare", *files])
    printed = capsys.readouterr().out
    assert f"b - a: {100 * (coarse['miou'] - attention['miou']):+.1f} mIoU, 95 % interval" in printed
    assert "at threshold 0.7" in printed  # of the attention
    assert "at threshold 0.3" in printed  # of the CAM
    assert 'differs too: final_map: "attention" and "coarse"' in printed

    score("validate", config, checkpoint, *maps, "--model.flip", "true", "--model.seed_threshold", 0.3)
    with pytest.raises(ResultsError, match=r"\n  flip: false and true\n  threshold: \"default\" and \"given\"$"):
        main(["compare", *files])
    score("validate", config, checkpoint, "--data.eval_split", "train")
    with pytest.raises(ResultsError, match=r"split\.ids_sha256.*\n.*split\.images: 6 and 24\n.*split\.name"):
        main(["compare", *files])


def test_test_writes_files_of_its_own(config: Path, checkpoint: Path):
    content, counts = score("test", config, checkpoint)
    assert content["images"] == len(counts.ids) == 6


def test_scores_of_pseudo_labels_say_what_they_rest_on(
    config: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run("predict", config, "--ckpt_path", checkpoint)
    first = tmp_path / "run" / "predictions"
    found = json.loads((first / "pseudo_labels.json").read_text())
    protocol = found["protocol"]
    assert (protocol["threshold"], protocol["supervision"]["tags"]) == ("default", "image")
    assert protocol["checkpoint"]["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    validated, seeds = score("validate", config, checkpoint)
    assert protocol["split"] == validated["protocol"]["split"]
    counts = ImageCounts.load(first / "pseudo_labels_images.npz")
    assert counts.ids == seeds.ids
    assert miou_interval(counts, None).value == pytest.approx(found["miou"])
    assert found["miou"] == pytest.approx(validated["miou"], abs=1e-9)  # the same labels, scored in two ways

    again = tmp_path / "again"
    words = [
        "--maps",
        str(first / "cams"),
        "--output_dir",
        str(again),
        "--background_threshold",
        "0.4",
        "--refine",
        "[pamr]",
    ]
    main(["labels", "--config", str(config), *words])
    other = json.loads((again / "pseudo_labels.json").read_text())["protocol"]
    assert (other["threshold"], other["refine"], other["scales"]) == ("given", ["pamr"], protocol["scales"])
    assert other["supervision"] == protocol["supervision"]
    assert other["checkpoint"] == protocol["checkpoint"]
    assert other["maps"] == protocol["maps"]
    assert protocol["maps"]["kind"] == "propagated RCA attention"
    assert (protocol["background"]["background_threshold"], other["background"]["background_threshold"]) == (0.7, 0.4)
    assert (protocol["background"]["by_masks"], other["background"]["by_masks"]) == (False, None)
    capsys.readouterr()
    with pytest.raises(ResultsError, match=r"\n  refine: \[\] and \[\"pamr\"\]\n  threshold: "):
        main(["compare", str(first / "pseudo_labels.json"), str(again / "pseudo_labels.json")])
    main(["compare", str(first / "pseudo_labels.json"), str(again / "pseudo_labels.json"), "--anyway"])
    assert "NOT A FAIR COMPARISON (2 differences" in capsys.readouterr().out


def test_label_images_of_a_network_have_no_threshold(segment: Path, segment_checkpoint: Path):
    content, counts = score("validate", segment, segment_checkpoint)
    protocol = content["protocol"]
    assert (protocol["threshold"], protocol["supervision"]["tags"], protocol["final_map"]) == (None, None, None)
    assert protocol["supervision"]["masks"] is True  # those of the data set were trained on
    assert "oracle_miou" not in content
    assert miou_interval(counts, None).value == pytest.approx(content["miou"])
    assert counts.confusion(None).sum() == np.sum(counts.pixels)


def test_threshold_is_chosen_without_masks_or_by_a_few(
    config: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run("predict", config, "--ckpt_path", checkpoint)
    auto = AutoThreshold("attention")
    for path in (tmp_path / "run" / "predictions" / "cams").iterdir():
        with np.load(path) as stored:
            auto.update(torch.from_numpy(stored["maps"].astype(np.float32)))
    content, counts = score("validate", config, checkpoint, "--model.seed_threshold", "auto")
    assert content["threshold"] == pytest.approx(auto.compute(), abs=0.011)  # to hundredths, of maps that are rounded
    assert (content["protocol"]["threshold"], len(content["curve"])) == ("auto", 99)
    assert content["miou"] == pytest.approx(miou_interval(counts, content["threshold"], draws=1).value)

    capsys.readouterr()
    main(["calibrate", str(tmp_path / "run" / "validate.json"), "--masks", "4"])
    printed = capsys.readouterr().out
    found = calibrate_threshold(counts, masks=4)
    interval = f"95 % interval {found.low:g} to {found.high:g}"
    assert printed.startswith(f"background threshold {found.threshold:g}, {interval}\nchosen by the masks of 4 images")
    with pytest.raises(ArgumentError, match="masks=7: there are 6"):
        main(["calibrate", str(tmp_path / "run" / "validate_images.npz"), "--masks", "7"])
