"""The cosines of all pairs of items of a small catalogue, one byte each: what a server reads instead of the vectors."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmcfsr_merlin.scoring.search.loops import NONE, add_largest, largest_cosines
from llmcfsr_merlin.scoring.search.rounded import LEVELS

_ERROR = 0.5 / LEVELS + 1e-5  # of a cosine that is read back: half a level, and what float32 products differ by
_ROWS = 1 << 10


class Scale(NamedTuple):
    """What a level of each item's cosine weighs, float32 [V], and what weighted cosines are off by at most."""

    per_level: np.ndarray
    error: float

    @classmethod
    def of(cls, weights: Tensor) -> "Scale":
        """weights: of the cosine, float32 [V]."""
        return cls((weights / LEVELS).numpy(), _ERROR * float(weights.abs().max()))


class RoundedCosines:
    """int8 [V, V]. Products of single histories with all vectors read D numbers an item: this reads one byte."""

    def __init__(self, units: Tensor, itself: bool):
        """units: float [V, D] of unit norm or zero. itself: whether an item counts as similar to itself."""
        count = len(units)
        self._itself = itself
        self._table = torch.empty(count, count, dtype=torch.int8)
        for start in range(0, count, _ROWS):  # the other half is the same
            part = (units[start : start + _ROWS] @ units[start:].T).mul_(LEVELS).round_().clamp_(-LEVELS, LEVELS)
            own = slice(start, start + _ROWS)
            self._table[own, start:] = part.to(torch.int8)
            self._table[start:, own] = part.T.to(torch.int8)
        if not itself:
            self._table.fill_diagonal_(NONE)

    def add_largest(self, histories: Tensor, scale: Scale, total: Tensor) -> None:
        """Add the weighted largest cosine with any item of a history int64 [B, L] to total float32 [B, V], 0 if there
        is none."""
        add_largest(self._table.numpy(), histories.contiguous().numpy(), scale.per_level, total.numpy())

    def exact(self, units: Tensor, histories: Tensor, items: Tensor) -> Tensor:
        """The same cosines as they are, of the units that the table was made of: of items int64 [B, C], [B, C]."""
        read, asked = (ids.contiguous().numpy() for ids in (histories, items))
        return torch.from_numpy(largest_cosines(units.numpy(), read, asked, self._itself))
