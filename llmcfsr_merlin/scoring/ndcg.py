"""NDCG of one relevant item, the one definition that validation and evaluation share."""

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Ranks = TypeVar("Ranks", np.ndarray, Tensor)


def ndcg_gains(ranks: Ranks, k: int) -> Ranks:
    """NDCG@k for each target: [rank <= k] / log2(rank + 1), as the ideal DCG of one relevant item is 1.

    ranks: from 1, the best, int or float; float64 of the same shape and library.

    >>> ndcg_gains(np.array([1, 3, 11]), 10).tolist()
    [1.0, 0.5, 0.0]
    """
    if isinstance(ranks, Tensor):
        return (ranks <= k) / torch.log2(ranks.double() + 1)
    return (ranks <= k) / np.log2(ranks + 1.0)
