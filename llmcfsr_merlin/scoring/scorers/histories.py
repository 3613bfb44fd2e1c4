"""Input of the closed-form scorers: the training interactions as a matrix, and histories as sets."""

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import FIRST_ITEM, PAD


def training_matrix(dataset: Dataset) -> scipy.sparse.csr_matrix:
    """Binary float32 [users, V] of the training sequences (each user's without the validation and the test item)."""
    items, lengths = [], []
    for sequences in filter(None, dataset.sequences()):  # a block may hold users without a training part alone
        items.append(np.concatenate(sequences))
        lengths.append([len(sequence) for sequence in sequences])
    columns, starts = np.concatenate(items), np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    shape = (len(starts) - 1, dataset.shape.n_items)
    matrix = scipy.sparse.csr_matrix((np.ones(len(columns), np.float32), columns, starts), shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def distinct(histories: Tensor) -> Tensor:
    """Items [B, L] sorted in each row, repeats and reserved ids replaced by PAD."""
    items = histories.sort(dim=1).values
    repeat = torch.zeros_like(items, dtype=torch.bool)
    repeat[:, 1:] = items[:, 1:] == items[:, :-1]
    return items.masked_fill(repeat | (items < FIRST_ITEM), PAD)
