"""Baselines without a network, as scorers with the model's call: int64 [B, L] right-padded -> float32 [B, V].

All are fitted on the training part only (each sequence without its last two items) and read the whole given history.
"""

from pathlib import Path

import numpy as np
import scipy.linalg
import scipy.sparse
import torch
import torch.nn.functional as F
from torch import Tensor

from llmcfsr_merlin.config.schema import EvaluateConfig
from llmcfsr_merlin.dataset.names import FIRST_ITEM, PAD
from llmcfsr_merlin.evaluation.cases import read_sequences
from llmcfsr_merlin.evaluation.ranks import Scorer
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.scoring.scorers.transitions import largest_of_each_row


def fit_baseline(name: str, prepare: Path, train_counts: np.ndarray, settings: EvaluateConfig) -> Scorer:
    """Fit `popularity`, `item_knn` or `ease` on the training part of the prepare stage's directory.

    train_counts: int64 [V]. InputError where EASE does not fit in evaluate.ease_memory_gb.
    """
    if name == "popularity":
        return Popularity(train_counts)
    if name == "item_knn":
        matrix = training_matrix(prepare, len(train_counts))
        return ItemKNN(matrix, settings.knn_neighbours, settings.knn_shrinkage)
    if name == "ease":
        check_ease_memory(len(train_counts), settings.ease_memory_gb)  # before the data is read
        return EASE(training_matrix(prepare, len(train_counts)), settings.ease_lambda, settings.ease_memory_gb)
    raise ValueError(f"expected popularity, item_knn or ease, found {name!r}")


class Popularity:
    """Every history gets the training counts as scores. train_counts: int64 [V]."""

    def __init__(self, train_counts: np.ndarray):
        self.counts = torch.tensor(np.asarray(train_counts), dtype=torch.float32)
        self.counts[:FIRST_ITEM] = -torch.inf

    def __call__(self, histories: Tensor) -> Tensor:
        return self.counts.to(histories.device).expand(len(histories), -1)


class ItemKNN:
    """Cosine of the items' binary user vectors, the `neighbours` nearest kept a item, summed over the distinct history.

    w_ij = n_ij / (sqrt(n_i n_j) + shrinkage) with n_ij users of both (Sarwar et al. 2001; shrinkage as in Bell and
    Koren 2007, for pairs that few users support). matrix: training interactions, sparse [users, V].
    """

    def __init__(self, matrix: scipy.sparse.csr_matrix, neighbours: int, shrinkage: float):
        together = (matrix.T @ matrix).tocsr().astype(np.float32)
        size = np.sqrt(together.diagonal())
        row = np.repeat(np.arange(together.shape[0]), np.diff(together.indptr))
        together.data /= size[row] * size[together.indices] + shrinkage
        together.setdiag(0)
        together.eliminate_zeros()
        row = np.repeat(np.arange(together.shape[0]), np.diff(together.indptr))
        # w is symmetric: row j is what history item j gives; keep for each candidate i (a column) its nearest.
        _, kept = largest_of_each_row(together, neighbours)
        nearest = scipy.sparse.csr_matrix((together.data[kept], (row[kept], together.indices[kept])), together.shape)
        self.weights = nearest.T.tocsr()

    def __call__(self, histories: Tensor) -> Tensor:
        rows = self.weights.shape[0]
        scores = torch.from_numpy((_multi_hot(histories, rows) @ self.weights).toarray())
        scores[:, :FIRST_ITEM] = -torch.inf
        return scores.to(histories.device)


class EASE:
    """Embarrassingly shallow autoencoder (Steck, WWW 2019): B = I - P diag(1 / diag P), P = (X'X + lambda I)^-1.

    A history's scores are its distinct items' rows of B, summed. matrix: training interactions X, sparse [users, V];
    regularisation: lambda. Needs 4 * V^2 bytes for B and as much again while it inverts: 3.2 GB in all at V = 20,000.
    More than `memory_gb` is refused before anything is allocated.
    """

    def __init__(self, matrix: scipy.sparse.csr_matrix, regularisation: float, memory_gb: float):
        rows = matrix.shape[1]
        check_ease_memory(rows, memory_gb)
        gram = (matrix.T @ matrix).astype(np.float32).toarray(order="F")
        gram[np.diag_indices(rows)] += regularisation
        factor, failed = scipy.linalg.lapack.spotrf(gram, lower=1, overwrite_a=1)
        if not failed:
            inverse, failed = scipy.linalg.lapack.spotri(factor, lower=1, overwrite_c=1)
        if failed:
            raise InputError(
                f"EASE: X'X + {regularisation:g} I is not positive definite in float32: raise evaluate.ease_lambda"
            )
        for start in range(0, rows, 1024):  # only the lower triangle was computed
            stop = min(start + 1024, rows)
            inverse[:start, start:stop] = inverse[start:stop, :start].T
            block = inverse[start:stop, start:stop]
            block[:] = np.tril(block) + np.tril(block, -1).T
        inverse /= -np.diag(inverse)
        np.fill_diagonal(inverse, 0)
        self.weights = torch.from_numpy(np.ascontiguousarray(inverse))

    def __call__(self, histories: Tensor) -> Tensor:
        scores = F.embedding_bag(_distinct(histories.cpu()), self.weights, mode="sum", padding_idx=PAD)
        scores[:, :FIRST_ITEM] = -torch.inf
        return scores.to(histories.device)


def check_ease_memory(rows: int, memory_gb: float) -> None:
    """InputError where 8 * rows^2 bytes (EASE's matrix and its factor) are more than `memory_gb`."""
    needed = 8 * rows**2 / 1e9
    if needed > memory_gb:
        raise InputError(
            f"expected a catalogue whose EASE matrix fits in {memory_gb:g} GB, found {rows} rows, which need "
            f"8 * rows^2 bytes = {needed:.1f} GB: drop ease from evaluate.baselines or raise evaluate.ease_memory_gb"
        )


def training_matrix(prepare: Path, rows: int, held_out: int = 2) -> scipy.sparse.csr_matrix:
    """Binary float32 [users, V] of the prepare stage's sequences without the last `held_out` items of each.

    held_out 2 is the training part; 1 adds the validation item, which is an input at test time.
    """
    codes, lengths = [], []
    for _, sequences in read_sequences(prepare):
        parts = [sequence[: len(sequence) - held_out] for sequence in sequences]
        codes.append(np.concatenate(parts))
        lengths.append([len(part) for part in parts])
    columns, starts = np.concatenate(codes), np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    matrix = scipy.sparse.csr_matrix((np.ones(len(columns), np.float32), columns, starts), (len(starts) - 1, rows))
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def _distinct(histories: Tensor) -> Tensor:
    """Codes [B, L] sorted in each row, repeats and reserved codes replaced by PAD."""
    codes = histories.sort(dim=1).values
    repeat = torch.zeros_like(codes, dtype=torch.bool)
    repeat[:, 1:] = codes[:, 1:] == codes[:, :-1]
    return codes.masked_fill(repeat | (codes < FIRST_ITEM), PAD)


def _multi_hot(histories: Tensor, rows: int) -> scipy.sparse.csr_matrix:
    codes = _distinct(histories.cpu()).numpy()
    user, place = codes.nonzero()
    return scipy.sparse.csr_matrix((np.ones(len(user), np.float32), (user, codes[user, place])), (len(codes), rows))
