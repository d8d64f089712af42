"""Completions of the CAM behind a frozen backbone, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from completions import CoCompletion, Completion, DoubleCompletion, ObjectCompletion
from rival import RivalModule
from torch import Tensor

from rca_lightning.errors import ArgumentError
from rca_lightning.rca.regions import Regions

L = 2
EAST, NORTH, WEST = (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)
TAGS = torch.tensor([[1, 0]])


def image(*cells: tuple[float, ...]) -> Tensor:
    """Embeddings `(1, D, 1, W)`."""
    return torch.tensor(cells).T[None, :, None]


def maps(*values: float) -> Tensor:
    """A CAM `(1, L, 1, W)` of the first class, with one of the second that nobody should read."""
    return torch.stack([torch.tensor(values), torch.tensor(values).flip(0)])[None, :, None]


def share(own: float, other: float, temperature: float) -> float:
    return 1 / (1 + math.exp((other - own) / temperature))


def test_object_completion_reads_the_means_of_the_regions_of_its_image():
    embeddings, cam = image(EAST, EAST, (3.0, 3.0), NORTH, NORTH), maps(1.0, 0.9, 0.3, 0.0, 0.0)
    completion = ObjectCompletion(2, L, temperature=0.5, thresholds=(0.5, 0.05))
    read = completion(embeddings, cam, TAGS)
    # The region is east; of the tiles of the background, which need two cells, the right one is left, and it is north.
    object_share = [share(1, 0, 0.5)] * 2 + [0.5] + [share(0, 1, 0.5)] * 2
    torch.testing.assert_close(read.class_attention[0, 0, 0], torch.tensor(object_share))
    torch.testing.assert_close(read.class_attention.sum(dim=1), torch.ones(1, 1, 5))
    assert not read.class_attention[0, 1].any()
    torch.testing.assert_close(read.context[0, :, 0, 2], torch.tensor([0.5, 0.5]))


def test_a_second_pass_cuts_regions_from_the_attention():
    # The CAM knows one cell of the object; the attention finds the other, which tilts the mean of the region.
    tilted = (0.8, 0.6)
    embeddings, cam = image(EAST, tilted, NORTH, NORTH), maps(1.0, 0.2, 0.0, 0.0)
    once, twice = (
        ObjectCompletion(2, L, temperature=0.1, passes=passes, attention_thresholds=(0.5, 0.15), steps=0)
        for passes in (1, 2)
    )
    first, second = (completion(embeddings, cam, TAGS).class_attention[0, 0, 0] for completion in (once, twice))
    assert first[1] > 0.5
    length = math.hypot(1.8, 0.6)
    assert float(second[1]) == pytest.approx(share((0.8 * 1.8 + 0.6 * 0.6) / length, 0.6, 0.1), abs=1e-5)
    assert second[1] > first[1]


def test_double_completion_shares_the_cam_within_a_cluster():
    embeddings, cam = image(EAST, EAST, NORTH, NORTH), maps(1.0, 0.0, 0.2, 0.0)
    read = DoubleCompletion(2, L, temperature=0.01, descriptors=2)(embeddings, cam, TAGS)
    torch.testing.assert_close(read.class_attention[0, 0, 0], torch.tensor([0.5, 0.5, 0.1, 0.1]))
    assert not read.class_attention[0, 1:].any()
    torch.testing.assert_close(read.context, embeddings)


def cells(*rows: tuple[tuple[float, ...], int]) -> Regions:
    labels = torch.tensor([label for _, label in rows])
    return Regions(torch.tensor([embedding for embedding, _ in rows]), labels, torch.zeros_like(labels))


def test_co_completion_reads_the_first_photographs_of_the_tags():
    completion = CoCompletion(2, L, temperature=0.5, partners=1)
    nothing = completion(image(EAST, NORTH), maps(1.0, 0.0), TAGS)
    assert not nothing.class_attention.any()
    assert not nothing.context.any()
    completion.remember(cells((EAST, 0), (NORTH, 2)))
    completion.remember(cells((WEST, 0), (WEST, 2)))  # the class has its photograph
    completion.remember(cells((NORTH, 1), (WEST, 2)))
    read = completion(image(EAST, NORTH), maps(1.0, 0.0), TAGS)
    expected = torch.tensor([share(1, 0, 0.5), share(0, 1, 0.5)])
    torch.testing.assert_close(read.class_attention[0, 0, 0], expected)
    torch.testing.assert_close(read.class_attention[0, 2, 0], 1 - expected)
    both = completion(image(NORTH), maps(0.0)[..., :1], torch.ones(1, L))
    # NORTH is once of the second class and once background; EAST and WEST are as far from it.
    assert float(both.class_attention[0, 1]) == pytest.approx(share(1, 0, 0.5) / 2)


def test_a_photograph_is_kept_for_each_of_its_classes_without_the_others():
    completion = CoCompletion(2, L, temperature=0.5, partners=2)
    completion.remember(cells((EAST, 0), (NORTH, 1), (WEST, 2)))
    assert completion.counts.tolist() == [1, 1]
    assert completion.labels[:, 0, :3].tolist() == [[0, 2, -1], [1, 2, -1]]
    again = CoCompletion(2, L, temperature=0.5, partners=2)
    again.load_state_dict(completion.state_dict())
    embeddings = image(EAST, NORTH)
    assert torch.equal(
        again(embeddings, maps(1.0, 0.0), TAGS).context, completion(embeddings, maps(1.0, 0.0), TAGS).context
    )


@pytest.mark.parametrize(
    ("kind", "options", "argument"),
    [
        (DoubleCompletion, {"temperature": 0.0}, "attention_temperature"),
        (ObjectCompletion, {"temperature": 1.0, "passes": 0}, "passes"),
        (CoCompletion, {"temperature": 1.0, "partners": 0}, "partners"),
    ],
)
def test_numbers_out_of_their_range_are_refused(kind: type[Completion], options: dict[str, float], argument: str):
    with pytest.raises(ArgumentError, match=argument):
        kind(2, L, **options)


def test_prototypes_are_no_rival_where_the_backbone_is_trained():
    with pytest.raises(ArgumentError, match="context"):
        RivalModule(num_classes=L, backbone="resnet14", context="prototypes")


@pytest.mark.parametrize("context", ["prototypes", "object_context", "double_attention", "co_attention"])
def test_a_second_head_behind_a_frozen_backbone_is_fitted_to_what_cells_read(context: str):
    torch.manual_seed(0)
    options = {"backbone": "resnet14", "weights": "none", "backbone_mode": "frozen", "embedding_dim": 8}
    module = RivalModule(num_classes=L, context=context, final_map="refined", attention_classes="all", **options)
    assert not any(parameter.requires_grad for parameter in module.parameters())
    network = module.network.eval()
    if network.aggregation is not None:
        network.aggregation.write(torch.randn_like(network.aggregation.prototypes), network.aggregation.valid | True)
    if isinstance(network.context, CoCompletion):
        network.context.remember(Regions(torch.randn(3, 8), torch.tensor([0, 1, 2]), torch.zeros(3, dtype=torch.int64)))
    tags = torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 4)
    images = [
        {"features": [torch.randn(1, 8, 3, 4) + 2 * row[0]], "tags": row, "image_id": str(number)}
        for number, row in enumerate(tags)
    ]
    network.start_second_head(images, penalty=0.001)
    for sample in images:
        read = network.read(sample["features"], sample["tags"][None])
        assert int(read.final_cam("refined").mean(dim=(2, 3)).argmax()) == int(sample["tags"].argmax())
        assert read.attention.shape == (1, L, 3, 4)
