"""Candidates in one byte a number: what a server reads of a small catalogue for one history instead of four bytes."""

import torch
from torch import Tensor

from llmcfsr_merlin.scoring.search.byte_products import add_products
from llmcfsr_merlin.scoring.search.rounded import LEVELS, UNIT


class RoundedViews:
    """int8 [V, D], each column in steps of its own."""

    def __init__(self, candidates: Tensor):
        """candidates: float [V, D]."""
        self._steps = (candidates.abs().amax(0) / LEVELS).clamp_min(1e-30)
        exact = candidates / self._steps
        rounded = exact.round()
        self._table = rounded.to(torch.int8)
        sums = (candidates.shape[1] + 1) * UNIT * rounded.norm(dim=1).max()
        self._error = float((exact - rounded).norm(dim=1).max() + sums)

    def add_products(self, states: Tensor, total: Tensor) -> float:
        """Add the inner products of candidates and states float32 [B, D] to total float32 [B, V]. Returns what those
        are off by at most."""
        queries = (states * self._steps).contiguous()
        add_products(self._table.numpy(), queries.numpy(), total.numpy())
        return self._error * float(queries.norm(dim=1).max())
