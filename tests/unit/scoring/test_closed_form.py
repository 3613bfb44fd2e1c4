"""Closed-form baselines against dense references; the papers' data in test_paper_numbers.py."""

import numpy as np
import pytest
import scipy.sparse
import torch

from llmcfsr_merlin.config.schema import EvaluateConfig
from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.scoring.scorers.closed_form import EASE, ItemKNN, Popularity, fit_baseline, training_matrix
from tests.unit.evaluation.prepared import random_sequences, write_prepare

ROWS = 40
HISTORIES = torch.tensor([[5, 6, 5, 0], [7, 0, 0, 0], [0, 0, 0, 0], [2, 9, 30, 39]])


@pytest.fixture
def matrix(tmp_path):
    write_prepare(tmp_path, random_sequences(80, ROWS), ROWS, parts=3)
    return training_matrix(tmp_path, ROWS)


def multi_hot(histories):
    hot = np.zeros((len(histories), ROWS))
    for row, history in enumerate(histories.tolist()):
        hot[row, [code for code in history if code >= FIRST_ITEM]] = 1
    return hot


def test_training_matrix_holds_neither_validation_nor_test_items(tmp_path):
    write_prepare(tmp_path, {"a": [3, 4, 3, 5, 6], "b": [7, 8, 9]}, 10, parts=1)
    assert training_matrix(tmp_path, 10).toarray().nonzero()[1].tolist() == [3, 4, 7]
    assert training_matrix(tmp_path, 10, held_out=1).toarray().nonzero()[1].tolist() == [3, 4, 5, 7, 8]


def test_popularity_is_the_training_count():
    counts = np.array([5, 5, 5, 2, 9, 0])
    scores = Popularity(counts)(torch.tensor([[3], [4]]))
    assert scores.tolist() == [[-np.inf] * 3 + [2, 9, 0]] * 2


def test_ease_equals_the_dense_formula(matrix):
    dense = matrix.toarray().astype(np.float64)
    inverse = np.linalg.inv(dense.T @ dense + 7 * np.eye(ROWS))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    scores = EASE(matrix, regularisation=7, memory_gb=1)(HISTORIES).numpy()
    np.testing.assert_allclose(scores[:, FIRST_ITEM:], (multi_hot(HISTORIES) @ weights)[:, FIRST_ITEM:], atol=1e-5)
    assert (scores[:, :FIRST_ITEM] == -np.inf).all()


def test_ease_beyond_one_block_is_whole():
    dense = np.random.default_rng(0).random((500, 1500)) < 0.02
    weights = EASE(scipy.sparse.csr_matrix(dense.astype(np.float32)), regularisation=50, memory_gb=1).weights.numpy()
    inverse = np.linalg.inv(dense.T.astype(float) @ dense + 50 * np.eye(1500))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(weights, expected, atol=1e-5)


def test_ease_refuses_a_catalogue_that_does_not_fit(matrix):
    with pytest.raises(InputError, match=r"found 40 rows, which need 8 \* rows\^2 bytes"):
        EASE(matrix, regularisation=7, memory_gb=1e-6)


@pytest.mark.parametrize("neighbours", [5, ROWS])
def test_item_knn_equals_the_dense_formula(matrix, neighbours):
    dense = matrix.toarray().astype(np.float64)
    together = dense.T @ dense
    size = np.sqrt(np.diag(together))
    weights = together / (np.outer(size, size) + 2)
    np.fill_diagonal(weights, 0)
    for item in range(ROWS):
        dropped = np.argsort(-weights[item].astype(np.float32), kind="stable")[neighbours:]
        weights[item, dropped] = 0
    scores = ItemKNN(matrix, neighbours, shrinkage=2)(HISTORIES).numpy()
    np.testing.assert_allclose(scores[:, FIRST_ITEM:], (multi_hot(HISTORIES) @ weights.T)[:, FIRST_ITEM:], atol=1e-6)


@pytest.mark.parametrize("name", ["popularity", "item_knn", "ease"])
def test_scores_do_not_depend_on_padding_or_batch(tmp_path, name):
    train_counts = write_prepare(tmp_path, random_sequences(80, ROWS), ROWS, parts=3)
    scorer = fit_baseline(name, tmp_path, train_counts, EvaluateConfig())
    longer = torch.cat([HISTORIES, torch.zeros(4, 9, dtype=torch.long)], dim=1)
    alone = torch.cat([scorer(HISTORIES[row : row + 1]) for row in range(4)])
    assert torch.equal(scorer(HISTORIES), scorer(longer)) and torch.equal(scorer(HISTORIES), alone)
