"""Co-attention against loops in float64: who the partner is, what the store keeps, who reads what."""

from __future__ import annotations

import math

import pytest
import torch

from rca_lightning.rca.co_attention import CoAttention, choose_partners

C, L, D, H, W = 4, 3, 2, 3, 4


def built(grid: int = 2, seed: int = 0) -> CoAttention:
    torch.manual_seed(seed)
    module = CoAttention(C, L, key_channels=D, reference_grid=grid)
    torch.nn.init.normal_(module.key.weight)  # as after training: another one than that of the queries
    return module


def features(batch: int, seed: int = 1, height: int = H, width: int = W) -> torch.Tensor:
    return torch.randn(batch, C, height, width, generator=torch.Generator().manual_seed(seed))


def maps(batch: int, height: int = H, width: int = W) -> torch.Tensor:
    """Maps by which no class is probable."""
    return torch.full((batch, L, height, width), -1.0)


def cells(image: torch.Tensor) -> list[list[float]]:
    """The cells of one image `(C, H, W)`, row after row."""
    return [image[:, row, column].tolist() for row in range(image.shape[1]) for column in range(image.shape[2])]


def times(matrix: torch.Tensor, vector: list[float]) -> list[float]:
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix.tolist()]


def expected(module: CoAttention, image: torch.Tensor, source: list[list[float]]) -> torch.Tensor:
    """Context of an image whose pixels attend to `source`, with plain numbers."""
    keys = [times(module.key.weight, cell) for cell in source]
    context = []
    for cell in cells(image):
        query = times(module.query.weight, cell)
        weights = [math.exp(sum(a * b for a, b in zip(query, key, strict=True)) / math.sqrt(D)) for key in keys]
        total = sum(weights)
        context.append([sum(w * s[c] for w, s in zip(weights, source, strict=True)) / total for c in range(C)])
    return torch.tensor(context).T.reshape(image.shape)


def test_in_training_pixels_attend_to_the_partner():
    module, batch = built(), features(3)
    tags = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 1]])
    found = module(batch, maps(3), tags)
    for image, partner in ((0, 2), (1, 1), (2, 0)):  # the one in the middle is alone with its tag
        torch.testing.assert_close(found[image], expected(module, batch[image], cells(batch[partner])))


def test_in_training_unknown_tags_are_the_probable_classes_and_nothing_is_stored():
    module, batch = built(), features(3)
    probable = maps(3)
    probable[0, 1], probable[2, 1] = 1.0, 1.0
    found = module(batch, probable)
    for image, partner in ((0, 2), (1, 1), (2, 0)):
        torch.testing.assert_close(found[image], expected(module, batch[image], cells(batch[partner])))
    assert not module.filled.any()


@pytest.mark.parametrize(
    ("tags", "partners"),
    [
        ([[1, 0, 0]], [0]),  # alone
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [0, 1, 2]),  # nothing shared
        ([[0, 0, 0], [0, 0, 0]], [0, 1]),  # no tags at all
        ([[1, 1, 0], [1, 0, 0], [1, 1, 0]], [2, 2, 0]),  # two shared tags before one
        ([[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]], [1, 2, 3, 0]),  # among equals the next
    ],
)
def test_partners(tags, partners):
    assert choose_partners(torch.tensor(tags)).tolist() == partners


@pytest.mark.parametrize("size", [2, 5, 16])
def test_partners_of_random_batches_by_loops(size):
    tags = (torch.rand(size, 6, generator=torch.Generator().manual_seed(size)) < 0.3).float()
    found = choose_partners(tags).tolist()
    for image in range(size):
        best, most = image, 0
        for step in range(1, size):
            other = (image + step) % size
            shared = sum(bool(a and b) for a, b in zip(tags[image].tolist(), tags[other].tolist(), strict=True))
            if shared > most:
                best, most = other, shared
        assert found[image] == best


def test_store_keeps_an_even_grid_of_the_latest_image_of_each_class():
    module, batch = built(grid=2), features(3, height=4, width=7)
    tags = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0]])
    module(batch, maps(3, 4, 7), tags)
    assert module.filled.tolist() == [True, True, False]
    assert not module.reference.requires_grad
    rows, columns = (1, 3), (1, 5)  # floor((i + 1/2) * side / 2)
    for label, image in ((0, 1), (1, 2)):
        grid = [batch[image, :, row, column].tolist() for row in rows for column in columns]
        assert module.reference[label].tolist() == grid
    assert not module.reference[2].any()


def test_store_of_a_map_smaller_than_the_grid_repeats_its_cells():
    module, batch = built(grid=2), features(1, height=1, width=1)
    module(batch, maps(1, 1, 1), torch.tensor([[0, 0, 1]]))
    assert module.reference[2].tolist() == [batch[0, :, 0, 0].tolist()] * 4


def test_later_batches_replace_in_place_what_their_images_have():
    module, first, second = built(), features(1), features(1, seed=2)
    module(first, maps(1), torch.tensor([[1, 1, 0]]))
    before, storage = module.reference.clone(), module.reference.data_ptr()
    module(second, maps(1), torch.tensor([[0, 1, 1]]))
    assert module.reference.data_ptr() == storage
    assert torch.equal(module.reference[0], before[0])
    assert not torch.equal(module.reference[1], before[1])
    assert torch.equal(module.reference[1], module.reference[2])
    assert module.filled.all()


def test_evaluation_stores_nothing():
    module = built().eval()
    module(features(1), maps(1), torch.tensor([[1, 1, 1]]))
    assert not module.filled.any()
    assert not module.reference.any()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_images_with_numbers_that_are_not_finite_are_not_stored(value):
    module, batch = built(), features(3)
    batch[2] = value
    module(batch, maps(3), torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]]))
    assert module.filled.tolist() == [True, True, False]
    assert torch.equal(module.reference[0], module.reference[1])
    assert torch.isfinite(module.reference).all()


@pytest.mark.parametrize("known", [True, False])
def test_in_evaluation_pixels_attend_to_the_store_of_their_classes(known):
    module = built()
    module(features(2), maps(2), torch.tensor([[1, 0, 0], [0, 1, 0]]))
    module.eval()
    images = features(4, seed=3, height=2, width=3)
    tags = torch.tensor([[1, 0, 0], [1, 1, 1], [0, 0, 1], [0, 0, 0]])
    probable = torch.where(tags > 0, 1.0, -1.0)[:, :, None, None].expand(4, L, 2, 3)
    found = module(images, maps(4, 2, 3), tags) if known else module(images, probable)
    stored = [module.reference[label].tolist() for label in range(L)]
    # Of the last class nothing is stored: it adds nothing to others, and alone it leaves an image to itself.
    sources = [stored[0], stored[0] + stored[1], cells(images[2]), cells(images[3])]
    for image, source in enumerate(sources):
        torch.testing.assert_close(found[image], expected(module, images[image], source))


def test_without_a_grid_images_are_always_paired_with_themselves():
    module, batch = built(grid=0), features(2)
    tags = torch.tensor([[1, 0, 0], [1, 0, 0]])
    torch.testing.assert_close(module(batch, maps(2), tags)[0], expected(module, batch[0], cells(batch[1])))
    assert not module.filled.any()
    found = module.eval()(batch, maps(2), tags)
    for image in range(2):
        torch.testing.assert_close(found[image], expected(module, batch[image], cells(batch[image])))


def test_at_first_a_cell_attends_most_to_what_resembles_it():
    torch.manual_seed(0)
    module = CoAttention(64, 1, key_channels=32, reference_grid=3)
    image = 3 * torch.nn.functional.normalize(torch.randn(1, 64, 3, 3), dim=1)
    other = 10 * image.flip(2, 3)
    found = module(torch.cat([image, other]), torch.zeros(2, 1, 3, 3), torch.ones(2, 1))[0]
    similar = torch.nn.functional.cosine_similarity(found[:, :, :, None, None], image[0][:, None, None], dim=0)
    assert similar.reshape(9, 9).argmax(dim=1).tolist() == list(range(9))


def test_projections_are_equal_at_first_but_trained_apart():
    module = CoAttention(C, L, key_channels=D)
    assert torch.equal(module.query.weight, module.key.weight)
    assert module.query.weight.data_ptr() != module.key.weight.data_ptr()


def test_gradient_reaches_the_partner():
    module, batch = built(), features(2).requires_grad_()
    module(batch, maps(2), torch.tensor([[1, 0, 0], [1, 0, 0]]))[0].square().sum().backward()
    assert batch.grad[1].abs().sum() > 0


def test_store_needs_room_for_the_classes_only():
    module = CoAttention(C, L, key_channels=D, reference_grid=3)
    assert {name: tuple(value.shape) for name, value in module.named_buffers()} == {
        "reference": (L, 9, C),
        "filled": (L,),
    }
    assert set(module.state_dict()) == {"reference", "filled", "query.weight", "key.weight"}
