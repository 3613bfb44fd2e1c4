"""What a scorer can tell of all items without scoring them: the interface between scorers and the search."""

from typing import NamedTuple

import torch
from torch import Tensor


class Bound(NamedTuple):
    """For row b and item i, at least the weighted score of i:

        <query[b], columns[i]> + constant[b] + (lift of b and i, if listed) + dense[b, i]

    query: float [B, D] for the scorer's `bound_columns`, float [V, D]. keys: int64 [N], b * V + i of listed items,
    ascending, each once; lifts: float [N]. dense: float [B, V] or None. proven: bool [B], whether it holds for sure
    (None: all). own: float [N], what the scorer needs of the listed items to score them, or None.
    """

    query: Tensor
    constant: Tensor
    keys: Tensor
    lifts: Tensor
    dense: Tensor | None = None
    proven: Tensor | None = None
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


def largest_by_key(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Keys once each, ascending, with the largest of their values."""
    once, place = torch.unique(keys, return_inverse=True)
    return once, values.new_full((len(once),), -torch.inf).scatter_reduce(0, place, values, "amax")


def sum_by_key(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Keys once each, ascending, with the sum of their values."""
    once, place = torch.unique(keys, return_inverse=True)
    return once, values.new_zeros(len(once)).index_add(0, place, values)
