"""Item-kNN: item-to-item collaborative filtering."""

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from llmcfsr_merlin.config.scorer_settings import ItemKNNSettings
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.scoring.scorer import Feature, FitContext, ItemVectors, NewItems, Scorer, Shape
from llmcfsr_merlin.scoring.scorers.histories import distinct, training_matrix
from llmcfsr_merlin.scoring.scorers.transition_counts import largest_of_each_row


class ItemKNNScorer(Scorer[ItemKNNSettings]):
    """Cosine of the items' binary user vectors, summed over the distinct items of the history.

    w_ij = n_ij / (sqrt(n_i n_j) + shrinkage) with n_ij users of both (Sarwar et al. 2001; shrinkage as in Bell and
    Koren 2007, for pairs that few users support); each candidate keeps its `neighbours` nearest.
    """

    Settings = ItemKNNSettings
    FEATURES = (Feature("item_knn", grid=(0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)),)  # cosines are small
    DATA_SIZED = ("columns", "values")

    starts: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self, settings: ItemKNNSettings, shape: Shape, vectors: ItemVectors):
        super().__init__(settings, shape, vectors)
        # A sparse matrix by rows: row j holds what history item j gives to each candidate.
        self.register_buffer("starts", torch.zeros(shape.n_items + 1, dtype=torch.int64))
        self.register_buffer("columns", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("values", torch.zeros(0))

    @classmethod
    def fit(
        cls, settings: ItemKNNSettings, dataset: Dataset, vectors: ItemVectors, context: FitContext
    ) -> "ItemKNNScorer":
        weights = nearest(training_matrix(dataset), settings.neighbours, settings.shrinkage)
        scorer = cls(settings, dataset.shape, vectors)
        scorer.starts = torch.from_numpy(weights.indptr.astype(np.int64))
        scorer.columns, scorer.values = torch.from_numpy(weights.indices), torch.from_numpy(weights.data)
        return scorer

    def forward(self, histories: Tensor, items: Tensor | None = None) -> Tensor:
        history = distinct(histories)
        first, last = self.starts[history], self.starts[history + 1]
        scores = self.values.new_zeros(len(histories), self.shape.n_items)
        for step in range(history.shape[1]):  # gathers one table row per history and position
            lengths = (last - first)[:, step]
            row = torch.repeat_interleave(torch.arange(len(histories), device=lengths.device), lengths)
            offset = torch.arange(len(row), device=lengths.device) - (lengths.cumsum(0) - lengths)[row]
            place = first[row, step] + offset
            scores.index_put_((row, self.columns[place].long()), self.values[place], accumulate=True)
        return (scores if items is None else scores.gather(1, items)).unsqueeze(0)

    def append_items(self, new: NewItems) -> None:
        self.starts = torch.cat([self.starts, self.starts[-1:].expand(new.count)])
        super().append_items(new)


def nearest(matrix: scipy.sparse.csr_matrix, neighbours: int, shrinkage: float) -> scipy.sparse.csr_matrix:
    """w of the nearest items, [V, V]: row j is what history item j gives. matrix: binary, sparse [users, V]."""
    together = (matrix.T @ matrix).tocsr().astype(np.float32)
    size = np.sqrt(together.diagonal())
    row = np.repeat(np.arange(together.shape[0]), np.diff(together.indptr))
    together.data /= size[row] * size[together.indices] + shrinkage
    together.setdiag(0)
    together.eliminate_zeros()
    row = np.repeat(np.arange(together.shape[0]), np.diff(together.indptr))
    # w is symmetric; keep for each candidate i (a column of the result) its nearest.
    _, kept = largest_of_each_row(together, neighbours)
    found = scipy.sparse.csr_matrix((together.data[kept], (row[kept], together.indices[kept])), together.shape)
    return found.T.tocsr()
