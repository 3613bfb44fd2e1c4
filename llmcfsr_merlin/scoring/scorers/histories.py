"""Histories as sets, scores of their items, and the training interactions as a matrix for the closed-form scorers."""

import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F
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


def with_history_scores(scores: Tensor, histories: Tensor, values: Tensor | float, span: slice | None = None) -> Tensor:
    """scores [..., B, V] (or [..., B, span]) with `values` [B, L] in the places of the items of histories [B, L]."""
    place, width = histories, scores.shape[-1]
    if span is not None:
        place = place - span.start
        place = place.masked_fill((place < 0) | (place >= width), width)  # elsewhere
        scores = F.pad(scores, (0, 1))
    place = place.expand(*scores.shape[:-2], -1, -1)
    return scores.scatter(-1, place, values)[..., :width]
