"""EASE: a linear autoencoder over items, in closed form."""

import numpy as np
import scipy.linalg
import scipy.sparse
import torch
import torch.nn.functional as F
from torch import Tensor

from llmcfsr_merlin.config.scorer_settings import EASESettings
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.scoring.scorer import Feature, FitContext, ItemVectors, NewItems, Scorer, Shape
from llmcfsr_merlin.scoring.scorers.histories import distinct, training_matrix


class EASEScorer(Scorer[EASESettings]):
    """Embarrassingly shallow autoencoder (Steck, WWW 2019): B = I - P diag(1 / diag P), P = (X'X + lambda I)^-1.

    A history's scores are its distinct items' rows of B, summed. Needs 4 * V^2 bytes for B and as much again while it
    inverts: 3.2 GB in all at V = 20,000. More than `memory_gb` is refused before anything is allocated.
    """

    Settings = EASESettings
    FEATURES = (Feature("ease", grid=(0.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)),)  # its entries are small
    DATA_SIZED = ("matrix",)

    matrix: Tensor

    def __init__(self, settings: EASESettings, shape: Shape, vectors: ItemVectors):
        super().__init__(settings, shape, vectors)
        check_memory(shape.n_items, settings.memory_gb)
        self.register_buffer("matrix", torch.zeros(0, 0))

    @classmethod
    def fit(cls, settings: EASESettings, dataset: Dataset, vectors: ItemVectors, context: FitContext) -> "EASEScorer":
        scorer = cls(settings, dataset.shape, vectors)  # fails before the data is read
        scorer.matrix = torch.from_numpy(invert(training_matrix(dataset), settings.regularisation))
        return scorer

    def forward(self, histories: Tensor, items: Tensor | None = None) -> Tensor:
        scores = F.embedding_bag(distinct(histories), self.matrix, mode="sum")  # the row of PAD is zero
        return (scores if items is None else scores.gather(1, items)).unsqueeze(0)

    def append_items(self, new: NewItems) -> None:
        self.matrix = F.pad(self.matrix, (0, new.count, 0, new.count))
        super().append_items(new)

    @classmethod
    def memory_bytes(cls, settings: EASESettings, shape: Shape) -> int:
        return 8 * shape.n_items**2


def check_memory(n_items: int, memory_gb: float) -> None:
    """InputError if 8 * n_items^2 bytes (the matrix and its factor) are more than `memory_gb`."""
    needed = 8 * n_items**2 / 1e9
    if needed > memory_gb:
        raise InputError(
            f"expected a catalogue whose EASE matrix fits in {memory_gb:g} GB, found {n_items} items, which need "
            f"8 * items^2 bytes = {needed:.1f} GB: leave the scorer `ease` out, or raise its memory_gb"
        )


def invert(matrix: scipy.sparse.csr_matrix, regularisation: float) -> np.ndarray:
    """B, float32 [V, V], of training interactions X, binary, sparse [users, V]."""
    n_items = matrix.shape[1]
    gram = (matrix.T @ matrix).astype(np.float32).toarray(order="F")
    gram[np.diag_indices(n_items)] += regularisation
    factor, failed = scipy.linalg.lapack.spotrf(gram, lower=1, overwrite_a=1)
    if not failed:
        inverse, failed = scipy.linalg.lapack.spotri(factor, lower=1, overwrite_c=1)
    if failed:
        raise InputError(
            f"EASE: X'X + {regularisation:g} I is not positive definite in float32: raise its regularisation"
        )
    for start in range(0, n_items, 1024):  # only the lower triangle was computed
        stop = min(start + 1024, n_items)
        inverse[:start, start:stop] = inverse[start:stop, :start].T
        block = inverse[start:stop, start:stop]
        block[:] = np.tril(block) + np.tril(block, -1).T
    inverse /= -np.diag(inverse)
    np.fill_diagonal(inverse, 0)
    return np.ascontiguousarray(inverse)
