"""Candidates in one byte a number: what a server reads of a small catalogue for one history instead of four bytes."""

import torch
from torch import Tensor

from llmcfsr_merlin.scoring.search.loops import add_products

LEVELS = 127
_SLACK = 2e-5  # of float32 sums of up to some hundred products, of the product of the norms


class RoundedViews:
    """int8 [V, D], each column in steps of its own."""

    def __init__(self, candidates: Tensor):
        """candidates: float [V, D]."""
        self._steps = (candidates.abs().amax(0) / LEVELS).clamp_min(1e-30)
        exact = candidates / self._steps
        rounded = exact.round()
        self._table = rounded.to(torch.int8)
        self._error = float((exact - rounded).norm(dim=1).max() + _SLACK * rounded.norm(dim=1).max())

    def add_products(self, states: Tensor, total: Tensor) -> float:
        """Add the inner products of candidates and states float32 [B, D] to total float32 [B, V]. Returns what those
        are off by at most."""
        queries = (states * self._steps).contiguous()
        add_products(self._table.numpy(), queries.numpy(), total.numpy())
        return self._error * float(queries.norm(dim=1).max())
