"""What is exported prepares its input as training did, and says so."""

from __future__ import annotations

import json

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from rca_lightning.constants import IMAGENET_MEAN, IMAGENET_STD
from rca_lightning.data.transforms import Pixels, normalise
from rca_lightning.export.program import Segmenter, describe


def test_bytes_divided_by_255_become_what_training_sees():
    photograph = np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)
    images = torch.from_numpy(photograph).permute(2, 0, 1)[None] / 255
    segmenter = Segmenter(nn.Identity())
    assert torch.allclose(segmenter(images)[0], normalise(Pixels(photograph)), atol=1e-5)


def test_logits_are_enlarged_to_the_image(networks):
    images = torch.rand(2, 3, 45, 66)
    network = networks["coarse"]
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    with torch.no_grad():
        logits = network((images - mean) / std)
        assert logits.shape == (2, 3, 6, 9)
        expected = F.interpolate(logits, (45, 66), mode="bilinear")
        assert torch.allclose(Segmenter(network)(images), expected, atol=1e-5)


def test_description_is_text_and_names_the_labels_in_order():
    found = describe(["cat", 'Zürich "2"'])
    assert json.loads(found["labels"]) == ["background", "cat", 'Zürich "2"']
    assert json.loads(found["mean"]) == list(IMAGENET_MEAN)
    assert json.loads(found["std"]) == list(IMAGENET_STD)
    assert (found["channel_order"], json.loads(found["input_range"])) == ("RGB", [0, 1])
    assert all(isinstance(value, str) for value in found.values())
