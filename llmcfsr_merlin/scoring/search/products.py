"""Inner products of whole numbers in one byte each."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

Products = Callable[[Tensor, Tensor], Tensor]
LEVELS = 127  # largest number
_CHUNK = 1 << 14


def products(queries: Tensor, rows: Tensor) -> Tensor:
    """int8 [M, D] and int8 [V, D], both of -127 to 127 -> whole numbers [M, V], of int32 or float32."""
    if not rows.numel():
        return torch.zeros(len(queries), len(rows))
    if rows.shape[1] == 1:  # torch._int_mm leaves its answer unwritten (2.11, 2.13)
        return queries.int() * rows.int().T
    return _chosen()(queries, rows)


@functools.cache
def _chosen() -> Products:
    """torch._int_mm if this machine computes it without overflow: some x86 without VNNI saturate sums of pairs."""
    try:
        ones = torch.full((4, 64), LEVELS, dtype=torch.int8)
        if (torch._int_mm(ones[:2], ones.T) == 64 * LEVELS**2).all():
            return lambda queries, rows: torch._int_mm(queries, rows.T)
    except (AttributeError, RuntimeError, NotImplementedError):
        pass
    return in_floats


def in_floats(queries: Tensor, rows: Tensor) -> Tensor:
    """The same in float32: exact below 2^24, which is up to 1,040 columns; rounded beyond, as any float32 product."""
    queries = queries.float()
    return torch.cat([queries @ part.float().T for part in rows.split(_CHUNK)], 1)
