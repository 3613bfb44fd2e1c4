"""Closed-form scorers against dense references; the papers' data in test_paper_numbers.py."""

import numpy as np
import pytest
import scipy.sparse
import torch

from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.scoring.scorers.ease import invert
from llmcfsr_merlin.scoring.scorers.histories import training_matrix
from tests.unit.evaluation.prepared import fitted, random_sequences, write_prepare

ROWS = 40
HISTORIES = torch.tensor([[5, 6, 5, 0], [7, 0, 0, 0], [0, 0, 0, 0], [2, 9, 30, 39]])


@pytest.fixture
def prepared(tmp_path):
    write_prepare(tmp_path, random_sequences(80, ROWS), ROWS, parts=3)
    return tmp_path


def multi_hot(histories):
    hot = np.zeros((len(histories), ROWS))
    for row, history in enumerate(histories.tolist()):
        hot[row, [code for code in history if code >= FIRST_ITEM]] = 1
    return hot


def test_training_matrix_holds_neither_validation_nor_test_items(tmp_path):
    write_prepare(tmp_path, {"a": [3, 4, 3, 5, 6], "b": [7, 8, 9]}, 10, parts=1)
    assert training_matrix(Dataset(tmp_path)).toarray().nonzero()[1].tolist() == [3, 4, 7]


def test_popularity_is_the_log_of_the_training_count(tmp_path):
    counts = write_prepare(tmp_path, {"a": [3, 4, 3, 5, 6], "b": [3, 8, 9]}, 10, parts=1)
    scores = fitted("popularity", tmp_path)(torch.tensor([[3], [4]]))
    assert torch.isinf(scores[:, :3]).all()
    np.testing.assert_allclose(scores[:, 3:].expm1().numpy(), np.tile(counts[3:], (2, 1)), atol=1e-5)


def test_popularity_with_a_decay_counts_the_latest_interactions_most(tmp_path):
    sequences = {"a": [3, 4, 3, 5, 6], "b": [3, 8, 9]} | {f"u{row}": [4, 5, 7, 8] for row in range(5)}
    write_prepare(tmp_path, sequences, 10, parts=3)
    expected = [0.25 + 1 + 1, 0.5 + 5 * 0.5, 5 * 1, 0, 0, 0, 0]  # items 3 to 9; the last two of each are held out
    scores = fitted("popularity", tmp_path, decay=0.5)(torch.tensor([[3]]))
    np.testing.assert_allclose(scores[0, 3:].expm1().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["popularity", "item_knn"])
def test_a_file_of_users_without_a_training_part_adds_nothing(name, tmp_path):
    sequences = {"a": [3, 4, 3, 5, 6], "b": [3, 8, 9, 4], "c": [7, 8]}
    write_prepare(tmp_path / "both", sequences, 10, parts=3)
    write_prepare(tmp_path / "one", {name: row for name, row in sequences.items() if len(row) > 2}, 10, parts=2)
    settings = {"decay": 0.5} if name == "popularity" else {}
    found, wanted = (fitted(name, tmp_path / run, **settings)(torch.tensor([[3, 8]])) for run in ("both", "one"))
    assert torch.equal(found, wanted)


def test_ease_equals_the_dense_formula(prepared):
    dense = training_matrix(Dataset(prepared)).toarray().astype(np.float64)
    inverse = np.linalg.inv(dense.T @ dense + 7 * np.eye(ROWS))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    scores = fitted("ease", prepared, regularisation=7)(HISTORIES).numpy()
    np.testing.assert_allclose(scores[:, FIRST_ITEM:], (multi_hot(HISTORIES) @ weights)[:, FIRST_ITEM:], atol=1e-5)
    assert (scores[:, :FIRST_ITEM] == -np.inf).all()


def test_ease_beyond_one_block_is_whole():
    dense = np.random.default_rng(0).random((500, 1500)) < 0.02
    weights = invert(scipy.sparse.csr_matrix(dense.astype(np.float32)), 50)
    inverse = np.linalg.inv(dense.T.astype(float) @ dense + 50 * np.eye(1500))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(weights, expected, atol=1e-5)


def test_ease_refuses_a_catalogue_that_does_not_fit(prepared):
    with pytest.raises(InputError, match=r"found 40 items, which need 8 \* items\^2 bytes"):
        fitted("ease", prepared, memory_gb=1e-6)


@pytest.mark.parametrize("neighbours", [5, ROWS])
def test_item_knn_equals_the_dense_formula(prepared, neighbours):
    dense = training_matrix(Dataset(prepared)).toarray().astype(np.float64)
    together = dense.T @ dense
    size = np.sqrt(np.diag(together))
    weights = together / (np.outer(size, size) + 2)
    np.fill_diagonal(weights, 0)
    for item in range(ROWS):
        dropped = np.argsort(-weights[item].astype(np.float32), kind="stable")[neighbours:]
        weights[item, dropped] = 0
    scores = fitted("item_knn", prepared, neighbours=neighbours, shrinkage=2)(HISTORIES).numpy()
    np.testing.assert_allclose(scores[:, FIRST_ITEM:], (multi_hot(HISTORIES) @ weights.T)[:, FIRST_ITEM:], atol=1e-6)


@pytest.mark.parametrize("name", ["popularity", "item_knn", "ease"])
def test_scores_do_not_depend_on_padding_or_batch(prepared, name):
    scores = fitted(name, prepared)
    longer = torch.cat([HISTORIES, torch.zeros(4, 9, dtype=torch.long)], dim=1)
    alone = torch.cat([scores(HISTORIES[row : row + 1]) for row in range(4)])
    assert torch.equal(scores(HISTORIES), scores(longer)) and torch.equal(scores(HISTORIES), alone)
