"""Lexical vectors: what they are, that new items get the same ones, and what has no word."""

import numpy as np
import pytest

from llmcfsr_merlin.config.embed_settings import EmbedConfig
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.item_vectors import load_item_table
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.text import lexical
from llmcfsr_merlin.text.embed import embed_table
from llmcfsr_merlin.text.item_encoder import WORDS, encode_words
from llmcfsr_merlin.text.language_models import resolve
from llmcfsr_merlin.text.lexical import Lexical

from .conftest import catalogue

PROMPTS = ["red soap", "red soap 5ml", "blue soap with blue lid", "blue cream with red lid", "shiny cream", "Shiny RED"]
IDS = [f"i{number}" for number in range(40)]


def textbook(prompts: list[str], dimension: int) -> np.ndarray:
    """PMI word vectors and their weighted mean, by loops over dense tables."""
    texts = [[word for word in prompt.lower().split()] for prompt in prompts]
    words = sorted(word for word in {w for text in texts for w in text} if sum(word in text for text in texts) >= 2)
    texts = [[word for word in text if word in words] for text in texts]
    pairs = np.zeros((len(words), len(words)))
    for text in texts:
        for i, first in enumerate(text):
            for second in text[i + 1 : i + 6]:
                pairs[words.index(first), words.index(second)] += 1
                pairs[words.index(second), words.index(first)] += 1
    margin, smooth = pairs.sum(1), pairs.sum(1) ** 0.75 / (pairs.sum(1) ** 0.75).sum()
    with np.errstate(divide="ignore"):
        left, values, _ = np.linalg.svd(np.maximum(np.log(pairs / np.outer(margin, smooth)), 0))
    vectors = left[:, :dimension] * np.sqrt(values[:dimension])
    total = sum(map(len, texts))
    weight = [1e-3 / (1e-3 + sum(text.count(word) for text in texts) / total) for word in words]
    means = np.array([sum(weight[i] * vectors[i] for i in {words.index(w) for w in text}) for text in texts])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    common = np.linalg.svd(means)[2][0]
    means -= np.outer(means @ common, common)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


@pytest.mark.parametrize("dimension", [3, 5])
@pytest.mark.parametrize("dense", [512, 0])
def test_cosines_are_those_of_the_textbook(dimension, dense, monkeypatch):
    """By the whole decomposition of a few words, and by ARPACK as for many."""
    monkeypatch.setattr(lexical, "_DENSE", dense)
    fitted = Lexical.fit(PROMPTS, dimension)
    assert set(fitted.words) == {"red", "soap", "blue", "with", "lid", "cream", "shiny"}
    found, wanted = fitted.encode(PROMPTS), textbook(PROMPTS, dimension)
    assert fitted.vectors.shape == (7, dimension) and found.dtype == np.float32
    np.testing.assert_allclose(found @ found.T, wanted @ wanted.T, atol=1e-5)


def test_prompts_are_encoded_one_by_one_and_after_reading_back(tmp_path):
    fitted = Lexical.fit(PROMPTS, 3)
    fitted.save(tmp_path / WORDS)
    again = Lexical.load(tmp_path / WORDS)
    assert again.words == fitted.words
    together = fitted.encode(PROMPTS)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    for row, prompt in enumerate(PROMPTS):
        np.testing.assert_allclose(again.encode([prompt])[0], together[row], atol=1e-6)
    np.testing.assert_array_equal(Lexical.fit(PROMPTS, 3).vectors, fitted.vectors)


def test_counting_in_parts_changes_nothing(monkeypatch):
    whole = Lexical.fit(PROMPTS, 3)
    monkeypatch.setattr(lexical, "_PROMPTS", 2)
    parts = Lexical.fit(PROMPTS, 3)
    np.testing.assert_array_equal(whole.vectors, parts.vectors)
    np.testing.assert_allclose(whole.encode(PROMPTS), parts.encode(PROMPTS), atol=1e-6)


def test_unknown_words_say_nothing():
    fitted = Lexical.fit(PROMPTS, 3)
    found = fitted.encode(["", "green", "green red", "red red"])
    assert not found[:2].any() and fitted.encode([]).shape == (0, 3)
    np.testing.assert_allclose(found[2], found[3], atol=1e-6)


@pytest.mark.parametrize("prompts", [[], ["", ""], ["one two", "three four"], ["one", "one"]])
def test_prompts_that_share_nothing_have_no_lexical_vectors(prompts):
    assert Lexical.fit(prompts, 8) is None


def embed(items_dir, tiny_bert, out, ids, **settings):
    out.mkdir()
    config = EmbedConfig(model=str(tiny_bert), template="beauty", device="cpu", **settings)
    return embed_table(config, resolve(config.model), items_dir, ids, out)


def test_the_stage_writes_them_and_new_items_get_the_same(items_dir, tiny_bert, tmp_path):
    counts = embed(items_dir, tiny_bert, tmp_path / "a", [*IDS, "unseen"], lexical=6)
    order = [*IDS[::-1], "unseen"]
    table = load_item_table(order, tmp_path / "a" / "lexical")
    assert table.vectors.shape == (44, 6) and counts["lexical_dimension"] == 6
    assert not table.vectors[:3].any() and not table.vectors[-1].any() and not table.has_text[-1]
    rows = [row for row in catalogue() if row["item_id"] in ("i7", "i9")]
    alone = encode_words(tmp_path / "a", rows, device="cpu")
    for row, vector in zip(rows, alone):
        np.testing.assert_allclose(table.vectors[3 + order.index(row["item_id"])], vector, atol=1e-6)


def test_none_are_made_or_read_where_none_are_wanted(items_dir, tiny_bert, tmp_path):
    counts = embed(items_dir, tiny_bert, tmp_path / "none", IDS, lexical=0)
    assert counts["lexical_dimension"] == 0 and not (tmp_path / "none" / "lexical").exists()
    assert encode_words(tmp_path / "none", catalogue(1)) is None
    embed(items_dir, tiny_bert, tmp_path / "some", IDS, lexical=6)
    shapes = []
    for name, reads in (("some", ("semantic", "lexical")), ("none", ("semantic", "lexical")), ("some", ("semantic",)),
                        ("some", ())):  # fmt: skip
        dataset = Dataset(tmp_path, tmp_path / name).reading(reads)
        dataset.vocabulary = Vocabulary(IDS)
        shapes.append((dataset.shape.semantic, dataset.shape.lexical))
    assert shapes == [(32, 6), (32, None), (32, None), (None, None)]
    assert dataset.vectors("lexical").shape == (43, 6)
