"""Texts that are asked, and files of text embeddings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rca_lightning.backbones.prompts import (
    PromptTexts,
    TextEmbeddings,
    embed_prompts,
    mean_embeddings,
    read_prompt_texts,
    read_text_embeddings,
)
from rca_lightning.data.classes import COCO_CLASSES, VOC_CLASSES
from rca_lightning.errors import ArgumentError, DataError, DatasetNotFoundError, MissingExtraError, WeightsError


def test_the_own_texts_serve_voc_and_coco():
    texts = read_prompt_texts()
    for names in (VOC_CLASSES, COCO_CLASSES):
        assert not set(names) & set(texts.background)
        sentences = {name: texts.of(name) for name in names}
        assert all("{}" not in sentence for of_class in sentences.values() for sentence in of_class)
    assert "a photo of a television." in texts.of("tvmonitor")
    assert set(texts.synonyms) <= {*VOC_CLASSES, *COCO_CLASSES}


def test_a_file_replaces_the_parts_that_it_has(tmp_path):
    file = tmp_path / "prompts.yaml"
    file.write_text("templates: ['{}']\nsynonyms:\n  cat: [cat, kitten]\n")
    texts = read_prompt_texts(file)
    assert texts.of("cat") == ["cat", "kitten"]
    assert texts.of("dog_house") == ["dog house"]
    assert texts.background == read_prompt_texts().background


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("templates: [a photo]", "template 'a photo'"),
        ("templates: ['{} {}']", "write one {}"),
        ("templates: []", "templates is empty"),
        ("templates: 3", "templates is no list of texts"),
        ("synonyms: [cat]", "synonyms is no mapping"),
        ("synonyms: {cat: []}", "synonyms of 'cat' is empty"),
        ("background: [yes, no]", "background is no list of texts"),
        ("sentences: ['{}']", "has sentences; the parts are"),
        ("- a", "has list; the parts are"),
        ("templates: [", "no YAML"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, text, message):
    file = tmp_path / "prompts.yaml"
    file.write_text(text)
    with pytest.raises(DataError) as error:
        read_prompt_texts(file)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_no_code_of_a_file_runs(tmp_path):
    file = tmp_path / "prompts.yaml"
    file.write_text("templates: !!python/object/apply:os.system ['touch ran']")
    with pytest.raises(DataError, match="no YAML"):
        read_prompt_texts(file)


def test_embeddings_are_the_mean_directions_of_all_sentences():
    texts = PromptTexts(("a {}", "the {}"), {"cat": ("cat", "kitten")}, ())
    seen = []

    def encode(lines: list[str]) -> torch.Tensor:
        seen.extend(lines)
        return torch.stack([3.0 * torch.nn.functional.one_hot(torch.tensor(len(line)), 16).float() for line in lines])

    (row,) = mean_embeddings(encode, texts, ["cat"])
    assert seen == ["a cat", "the cat", "a kitten", "the kitten"]
    expected = np.zeros(16)
    for line in seen:
        expected[len(line)] += 1 / 4
    np.testing.assert_allclose(row.numpy(), expected / np.linalg.norm(expected), rtol=1e-6)


def write(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_rows_are_found_by_name(tmp_path):
    rows = np.eye(4, 5, dtype=np.float32) * 3
    path = write(tmp_path / "p.npz", embeddings=rows, names=np.array(["sky", "dog", "grass", "cat"]))
    found = read_text_embeddings(path, ["cat", "dog"])
    assert torch.equal(found.classes, torch.eye(4, 5)[[3, 1]])
    assert torch.equal(found.background, torch.eye(4, 5)[[0, 2]])


def test_what_is_written_is_read(tmp_path):
    classes, background = torch.eye(3)[:2], torch.eye(3)[2:]
    TextEmbeddings(classes, background, ("cat", "dog"), "tiny").write(tmp_path / "p.npz", background_names=["sky"])
    found = read_text_embeddings(tmp_path / "p.npz", ("dog", "cat"))
    assert torch.equal(found.classes, classes[[1, 0]])
    assert torch.equal(found.background, background)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"embeddings": np.ones((2, 3))}, "could not be read"),
        ({"embeddings": np.ones((3, 3)), "names": np.array(["cat", "dog"])}, "give one row a name"),
        ({"embeddings": np.zeros((2, 3)), "names": np.array(["cat", "dog"])}, "zero or not finite"),
        ({"embeddings": np.full((2, 3), np.nan), "names": np.array(["cat", "dog"])}, "zero or not finite"),
        ({"embeddings": np.ones((2, 3)), "names": np.array(["cat", "cat"])}, "'cat' stands there more than once"),
        ({"embeddings": np.ones((2, 3)), "names": np.array(["cat", "cow"])}, "no embedding of the class 'dog'"),
        ({"embeddings": np.ones((2, 3)), "names": np.array(["cat", 1], dtype=object)}, "could not be read"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, arrays, message):
    path = write(tmp_path / "p.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_text_embeddings(path, ["cat", "dog"])


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DatasetNotFoundError):
        read_text_embeddings(tmp_path / "none.npz", ["cat"])
    with pytest.raises(DatasetNotFoundError):
        read_prompt_texts(tmp_path / "none.yaml")


def test_without_open_clip(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(MissingExtraError, match=r"rca-lightning\[clip\]"):
        embed_prompts(["cat"], read_prompt_texts(), weights=None)


TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def tiny(monkeypatch):
    open_clip = pytest.importorskip("open_clip", reason="open_clip, of the extra clip, is not installed")
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", TINY)
    return open_clip


def test_embeddings_of_a_model_of_open_clip(tiny, tmp_path):
    network = tiny.create_model("tiny").eval()
    file = tmp_path / "tiny.pt"
    torch.save(network.state_dict(), file)
    texts = PromptTexts(("a photo of a {}.",), {"tv": ("television", "screen")}, ("sky",))
    found = embed_prompts(["cat", "tv"], texts, model="tiny", weights=file)
    tokens = tiny.get_tokenizer("tiny")(
        ["a photo of a cat.", "a photo of a television.", "a photo of a screen.", "a photo of a sky."]
    )
    with torch.no_grad():
        rows = network.encode_text(tokens).double()
    rows = rows / rows.norm(dim=1, keepdim=True)
    tv = rows[1] + rows[2]
    torch.testing.assert_close(found.classes.double(), torch.stack([rows[0], tv / tv.norm()]), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.background.double(), rows[3:], atol=1e-6, rtol=0)
    assert found.source == "tiny, tiny.pt"


def test_wrong_models_and_weights_are_one_line(tiny, tmp_path):
    texts = read_prompt_texts()
    with pytest.raises(ArgumentError, match="open_clip has no model"):
        embed_prompts(["cat"], texts, model="huge", weights=None)
    with pytest.raises(WeightsError, match="no such file"):
        embed_prompts(["cat"], texts, model="tiny", weights=tmp_path / "none.pt")
    with pytest.raises(DataError, match="'sky' is a class and in the background"):
        embed_prompts(["sky"], texts, model="tiny", weights=None)
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pt")
    torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / "program.pt")
    (tmp_path / "damaged.pt").write_bytes(b"no tensors")
    for name in ("other.pt", "program.pt", "damaged.pt"):
        with pytest.raises(WeightsError, match="cannot be loaded") as error:
            embed_prompts(["cat"], texts, model="tiny", weights=tmp_path / name)
        assert "\n" not in str(error.value)
