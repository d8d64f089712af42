"""A trained backbone starts from all that a frozen fit has made: projection, CAM head and prototypes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.modules.test_fit_start import fit

from rca_lightning import RCAModule
from rca_lightning.errors import ArgumentError
from rca_lightning.rca.network import ActivationMaps
from rca_lightning.rca.projection import Moments, learn_projections

L, D, K = 2, 12, 3
NAMES = ["cat", "dog"]
REST = "CAM head, prototypes"
ARGUMENTS = {"num_prototypes": K, "background_prototypes": 2, "output_stride": 8}


@pytest.fixture
def frozen() -> RCAModule:
    """A module as a frozen fit leaves it, all its numbers drawn."""
    torch.manual_seed(0)
    module = RCAModule(
        L, NAMES, backbone="resnet14", weights="none", backbone_mode="frozen", embedding_dim=D, **ARGUMENTS
    )
    network = module.network.eval()
    (features,) = network.features(torch.randn(4, 3, 64, 64))
    moments = Moments(features.shape[1])
    moments.add(features.transpose(0, 1).flatten(1).T)
    learn_projections(network.projections, [moments])
    network.start_head(torch.randn(L, D), torch.randn(L))
    prototypes = torch.nn.functional.normalize(torch.randn_like(network.aggregation.prototypes), dim=1)
    network.aggregation.write(prototypes, torch.ones(len(prototypes), dtype=torch.bool))
    return module


@pytest.fixture
def checkpoint(frozen: RCAModule, tmp_path: Path) -> str:
    content = {
        "state_dict": frozen.state_dict(),
        "hyper_parameters": dict(frozen.hparams),
        "pytorch-lightning_version": "2.6.0",
    }
    torch.save(content, tmp_path / "last.ckpt")
    return str(tmp_path / "last.ckpt")


def tuned(weights: str | None, *, classes: list[str] = NAMES, **options: Any) -> RCAModule:
    torch.manual_seed(1)
    options = {**ARGUMENTS, "channels_last": True, **options}  # as behind a frozen backbone, to the bit
    return RCAModule(len(classes), classes, backbone="resnet14", weights=weights, backbone_mode="trained", **options)


def maps(module: RCAModule) -> ActivationMaps:
    photograph = torch.randn(1, 3, 70, 50, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return module.eval()(photograph, torch.ones(1, L))


@pytest.mark.parametrize("options", [{"beta": 0.0}, {}, {"embedding_dim": D}, {"embedding_stages": 2}])
def test_maps_before_the_first_step_are_those_of_the_frozen_fit(frozen, checkpoint, caplog, options):
    with caplog.at_level(logging.INFO):
        module = tuned(checkpoint, **options)
    assert not module.is_frozen
    assert any(weight.requires_grad for weight in module.network.backbone.parameters())
    assert module.network.coarse_head.conv.bias.requires_grad
    before, now = maps(frozen), maps(module)
    assert torch.equal(now.embeddings, before.embeddings)
    assert torch.equal(module.network.coarse_head(now.embeddings), frozen.network.coarse_head(before.embeddings))
    # With a second head the maps of both are one matrix product, which sums in another order.
    exactly = {"rtol": 0, "atol": 0} if module.network.refined_head is None else {"rtol": 1e-5, "atol": 1e-5}
    for name in ("coarse", "attention"):
        torch.testing.assert_close(getattr(now, name), getattr(before, name), **exactly)
    assert f"weights: taken from {checkpoint}: backbone, projection, CAM head, prototypes" in caplog.text
    assert "anew" not in caplog.text


def test_plain_cam_starts_from_it_too(frozen, checkpoint, caplog):
    with caplog.at_level(logging.INFO):
        module = tuned(checkpoint, contrast=False, aggregation=False)
    assert torch.equal(maps(module).coarse, maps(frozen).coarse)
    assert caplog.text.rstrip().endswith(": backbone, projection, CAM head")


def test_it_is_trained_and_loaded_again_without_the_weights(frozen, checkpoint, tmp_path):
    module = tuned(checkpoint, warmup_epochs=1, lr=1e-3, frozen_stages=3)
    trainer = fit(module, tmp_path)
    network = module.network
    assert torch.equal(network.pca.weight, frozen.network.pca.weight)
    assert not torch.equal(network.coarse_head.conv.weight, frozen.network.coarse_head.conv.weight)
    before = frozen.network.backbone.state_dict()
    moved = {name for name, weight in network.backbone.state_dict().items() if not torch.equal(weight, before[name])}
    last = max(name.split(".")[0] for name in before if name.startswith("layer"))
    assert {name.split(".")[0] for name in moved} == {last}
    trainer.save_checkpoint(tmp_path / "tuned.ckpt")
    Path(checkpoint).unlink()
    again = RCAModule.load_from_checkpoint(tmp_path / "tuned.ckpt", map_location="cpu")
    assert torch.equal(maps(again).coarse, maps(module).coarse)
    assert again.hparams["projection"] == "pca"
    assert again.hparams["embedding_dim"] == D


def test_checkpoint_that_was_itself_started_from_one_is_a_start(frozen, checkpoint, tmp_path):
    module = tuned(checkpoint)
    content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save(content, tmp_path / "tuned.ckpt")
    assert torch.equal(maps(tuned(str(tmp_path / "tuned.ckpt"), beta=0.0)).coarse, maps(frozen).coarse)


@pytest.mark.parametrize(
    ("options", "taken", "anew"),
    [
        ({"classes": ["cat", "cow"]}, "backbone, projection", f"{REST} (class 2 is 'dog' there, 'cow' here)"),
        ({"classes": ["cat", "dog", "cow"]}, "backbone, projection", f"{REST} (other shapes"),
        ({"num_prototypes": 4}, "backbone, projection, CAM head", "prototypes (other shapes (2): prototypes (8, 12)"),
        ({"embedding_dim": 8}, "backbone", f"{REST} (its projection is not that of this network)"),
        ({"embedding_stages": 1}, "backbone", f"{REST} (its projection is not that of this network)"),
        ({"projection": "learned"}, "backbone", f"{REST} (its projection is not that of this network)"),
    ],
)
def test_what_does_not_fit_begins_anew_and_is_named(frozen, checkpoint, caplog, options, taken, anew):
    with caplog.at_level(logging.INFO):
        module = tuned(checkpoint, **options)
    (line,) = [record.getMessage() for record in caplog.records if "weights: " in record.getMessage()]
    assert line.startswith(f"weights: taken from {checkpoint}: {taken}; anew: {anew}")
    torch.testing.assert_close(module.network.backbone.state_dict(), frozen.network.backbone.state_dict())
    assert (module.network.pca is None) == ("projection" not in taken)
    if module.network.pca is not None:
        assert torch.equal(module.network.pca.weight, frozen.network.pca.weight)
    has_head = module.network.coarse_head.conv.weight.shape == frozen.network.coarse_head.conv.weight.shape
    same = has_head and torch.equal(module.network.coarse_head.conv.weight, frozen.network.coarse_head.conv.weight)
    assert same == ("CAM head" in taken)
    assert not bool(module.network.aggregation.valid.any())


def test_a_frozen_fit_learns_its_own(frozen, checkpoint, caplog):
    with caplog.at_level(logging.INFO):
        module = RCAModule(L, NAMES, backbone="resnet14", weights=checkpoint, embedding_dim=D, **ARGUMENTS)
    assert module.is_frozen
    assert not module.network.pca_learned
    assert "weights:" not in caplog.text


def test_projection_without_components_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="projection='pca': a trained backbone has the components of a frozen fit"):
        fit(tuned("none", projection="pca"), tmp_path)
    with pytest.raises(ArgumentError, match="projection='learned': behind a frozen backbone nothing learns it"):
        RCAModule(L, NAMES, backbone="resnet14", weights="none", backbone_mode="frozen", projection="learned")
