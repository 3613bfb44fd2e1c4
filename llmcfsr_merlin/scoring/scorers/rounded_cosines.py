"""The cosines of all pairs of items of a small catalogue, one byte each: what a server reads instead of the vectors."""

import torch
from torch import Tensor

LEVELS = 127
ERROR = 0.5 / LEVELS + 1e-5
"""Of a cosine that is read back: half a level, and what float32 products differ by."""
LARGEST = 1 << 28  # bytes of the table: 16,384 items
_NONE = -128  # below every cosine
_ROWS = 1 << 10


class RoundedCosines:
    """int8 [V, V]. Products of single histories with all vectors read D numbers an item: this reads one byte."""

    def __init__(self, units: Tensor, itself: bool):
        """units: float [V, D] of unit norm or zero. itself: whether an item counts as similar to itself."""
        count = len(units)
        self._table = torch.empty(count, count, dtype=torch.int8)
        for start in range(0, count, _ROWS):  # the other half is the same
            part = (units[start : start + _ROWS] @ units[start:].T).mul_(LEVELS).round_().clamp_(-LEVELS, LEVELS)
            own = slice(start, start + _ROWS)
            self._table[own, start:] = part.to(torch.int8)
            self._table[start:, own] = part.T.to(torch.int8)
        if not itself:
            self._table.fill_diagonal_(_NONE)

    def largest(self, items: list[Tensor]) -> Tensor:
        """Encoded ids int64 [n] of each history -> float [B, V], the largest cosine to any of them; 0 if there is
        none. Off by ERROR at most."""
        best = torch.zeros(len(items), len(self._table), dtype=torch.int8)
        for row, own in enumerate(items):
            if len(own):
                torch.amax(self._table.index_select(0, own), 0, out=best[row])
        return best.masked_fill_(best == _NONE, 0).float().div_(LEVELS)
