"""One step of every family of backbones, frozen and trained, in every precision; small models, random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rca_lightning.data.synthetic.dataset import CLASS_NAMES
from rca_lightning.modules.rca_module import RCAModule
from tests.frozen_fits import data, fit, generated

FAMILIES = {
    "resnet": ("resnet14", 16),
    "vit": ("timm:test_vit", 16),
    "convnext": ("timm:test_convnext", 32),
    "swin": ("timm:swin_tiny_patch4_window7_224", 32),
    "efficientnet": ("timm:test_efficientnet", 32),
}
CLIP = "clip:vit_xsmall_patch16_clip_224"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return generated(tmp_path_factory.mktemp("images"))


def moved_in_one_step(root, folder, module: RCAModule, precision: str) -> set[str]:
    """Fits one batch; returns the names of the tensors that it changes, all of which are finite."""
    before = {key: value.clone() for key, value in module.state_dict().items()}
    options = {"limit_train_batches": 1, "precision": precision, "limit_val_batches": 1, "num_sanity_val_steps": 0}
    _, trainer = fit(root, folder, module, epochs=1, dataset=data(root, crop_size=64), **options)
    assert trainer.global_step == 1
    after = module.state_dict()
    assert all(bool(torch.isfinite(value).all()) for value in after.values() if value.is_floating_point())
    return {key for key, value in before.items() if not torch.equal(after[key], value)}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("mode", ["frozen", "trained"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_one_step(root, tmp_path, family, mode, precision):
    name, output_stride = FAMILIES[family]
    if name.startswith("timm:"):
        pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)
    torch.manual_seed(0)
    module = RCAModule(
        6, backbone=name, weights="none", backbone_mode=mode, output_stride=output_stride, frozen_stages=2,
        num_prototypes=2, background_prototypes=2, confidence=0.0, embedding_dim=16 if mode == "frozen" else None,
    )  # fmt: skip
    moved = moved_in_one_step(root, tmp_path, module, precision)
    assert any(key.startswith("network.coarse_head") for key in moved)
    of_backbone = {key for key in moved if key.startswith("network.backbone.")}
    assert bool(of_backbone) == (mode == "trained")
    backbone, still = module.network.backbone, set()
    for part in (part for stage in backbone.stages()[:2] for part in stage):
        still |= {id(part)} if isinstance(part, torch.nn.Parameter) else {id(value) for value in part.parameters()}
    fixed = {f"network.backbone.{key}" for key, value in backbone.named_parameters() if id(value) in still}
    assert fixed
    assert not fixed & moved


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("affinity", ["cosine", "attention"])
def test_one_step_of_a_head_of_text(root, tmp_path, affinity, precision):
    """Behind a frozen image tower; a head of text is refused behind a trained one."""
    pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)
    names = [*CLASS_NAMES, "behind"]
    rows = torch.randn(len(names), 512, generator=torch.Generator().manual_seed(0))
    np.savez(tmp_path / "prompts.npz", embeddings=rows.numpy(), names=np.array(names))
    torch.manual_seed(0)
    module = RCAModule(
        6, names[:6], backbone=CLIP, weights="none", backbone_mode="frozen", prompts=str(tmp_path / "prompts.npz"),
        num_prototypes=2, background_prototypes=2, confidence=0.0, propagation_affinity=affinity,
    )  # fmt: skip
    moved = moved_in_one_step(root, tmp_path, module, precision)
    assert {"network.coarse_head.weight", "network.coarse_head.bias"} <= moved
    assert not any(key.startswith("network.backbone.") for key in moved)
    assert bool(module.network.has_prototype.any())
