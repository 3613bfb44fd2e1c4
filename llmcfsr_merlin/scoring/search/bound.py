"""What a scorer can tell of all items without scoring them: the interface between scorers and the search."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Bound(NamedTuple):
    """For row b and item i, at least the weighted score of i is

        ceiling[i] + (lift of b and i, if listed) + what Scorer.add_bound adds

    ceiling: Scorer.ceiling, float [V]. keys: int64 [N], b * V + i of listed items, ascending, each once; lifts: float
    [N]. dense: float [B, V] or None, what add_bound adds by default. asked, own: for the scorer's own methods, what it
    asks in each row, and a tensor.
    """

    keys: Tensor
    lifts: Tensor
    dense: Tensor | None = None
    asked: Sequence[Any] = ()
    own: Tensor | None = None


def value_of(keys: Tensor, values: Tensor, wanted: Tensor) -> Tensor:
    """The values float [N] of wanted keys int64 [...] among `keys` int64 [N], ascending; 0 if it is not there."""
    if not len(keys):
        return torch.zeros(wanted.shape)
    place = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
    return values[place].masked_fill(keys[place] != wanted, 0)


def nothing_listed() -> tuple[Tensor, Tensor]:
    """keys and lifts of a scorer that lists no item."""
    return torch.zeros(0, dtype=torch.int64), torch.zeros(0)


def sum_by_key(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Keys once each, ascending, with the sum of their values."""
    once, place = torch.unique(keys, return_inverse=True)
    return once, values.new_zeros(len(once)).index_add(0, place, values)
