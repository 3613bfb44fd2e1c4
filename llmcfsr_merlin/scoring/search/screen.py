"""A rigorous upper bound of <query, column of i> for every item i, from one byte a number.

The columns of all scorers stand side by side. A wide block of them (the network's views) is turned to its principal
axes, of which the leading ones are kept; what the others could add is bounded by the product of their norms
(Cauchy-Schwarz). Numbers are rounded to -127..127 of each column's largest; what rounding the columns and the query can
change is added to the bound, so that it holds for every item.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcfsr_merlin.dataset.names import FIRST_ITEM

Product = Callable[[Tensor, Tensor], Tensor]  # int8 [D], int8 [V, D] -> whole numbers [V]
WIDE = 16  # columns from which a block is turned and cut
ROOM = 1 << 26  # bytes that a query reads at most: they decide how many axes are kept
LEVELS = 127
_TWICE = 1 << 26  # bytes up to which the query's rounding error is computed too, by a second pass
_SLACK = 1e-5  # of float32 sums, relative to the bound
_CHUNK = 1 << 16


class Screen:
    """columns: float [V, D] of each scorer."""

    def __init__(self, columns: Sequence[Tensor]):
        self.n_items = len(columns[0])
        wide = [block for block in columns if block.shape[1] > WIDE]
        narrow = sum(block.shape[1] for block in columns) - sum(block.shape[1] for block in wide)
        # A multiple of 16 columns in all: rows that are aligned are read faster.
        kept = max(ROOM // self.n_items // 16 * 16 - narrow - len(wide), WIDE)
        self._turns = [_axes(block, kept // len(wide)) if block.shape[1] > WIDE else None for block in columns]
        width = sum(turn.width if turn else block.shape[1] for turn, block in zip(self._turns, columns))
        rounded = torch.zeros(self.n_items, -(-width // 16) * 16, dtype=torch.int8)
        self._scale, self._error, self._norm = torch.zeros(rounded.shape[1]), 0.0, 0.0
        for part in range(2):  # the largest of each column, then the rounded numbers
            for start in range(0, self.n_items, _CHUNK):
                own = slice(start, start + _CHUNK)
                some = torch.cat([turn(block[own]) if turn else block[own].float()
                                  for turn, block in zip(self._turns, columns)], 1)  # fmt: skip
                some = F.pad(some, (0, rounded.shape[1] - width))
                if not start:
                    some[:FIRST_ITEM] = 0
                if not part:
                    self._scale = torch.maximum(self._scale, some.abs().amax(0) / LEVELS)
                    continue
                exact = some / self._scale.clamp_min(1e-30)
                whole = exact.round().clamp(-LEVELS, LEVELS)
                rounded[own] = whole.to(torch.int8)
                self._error = max(self._error, float((exact - whole).norm(dim=1).max()))
                self._norm = max(self._norm, float(whole.norm(dim=1).max()))
        self.rounded = rounded
        self._twice = rounded.nbytes <= _TWICE // 4
        self._product = _integer_product() or _float_product

    def upper(self, query: Sequence[Tensor]) -> Tensor:
        """query: float [D] for each scorer's columns -> float [V], at least the inner product of each item."""
        parts = [turn.query(part) if turn else part.float() for turn, part in zip(self._turns, query)]
        level = sum(float(part.float() @ turn.center) for turn, part in zip(self._turns, query) if turn)
        scaled = F.pad(torch.cat(parts), (0, len(self._scale) - sum(map(len, parts)))) * self._scale
        bound, left = torch.zeros(self.n_items), scaled
        for _ in range(2 if self._twice else 1):
            step = left.abs().max() / LEVELS
            if not step > 0:
                break
            whole = (left / step).round()
            bound = torch.add(bound, self._product(whole.to(torch.int8), self.rounded), alpha=float(step))
            left = left - step * whole
        spare = left.norm() * self._norm + scaled.norm() * (self._error + _SLACK * self._norm)
        return bound.add_(level + float(spare) * (1 + _SLACK))


class _Axes:
    """The leading principal axes of a block of columns around its mean, and each item's norm in the others."""

    def __init__(self, center: Tensor, basis: Tensor, rest: Tensor):
        self.center, self._basis, self._rest = center, basis, rest
        self.width = basis.shape[1] + bool(rest.shape[1])

    def __call__(self, block: Tensor) -> Tensor:
        block = block.float() - self.center
        leading = block @ self._basis
        if not self._rest.shape[1]:
            return leading
        return torch.cat([leading, (block @ self._rest).norm(dim=1, keepdim=True) * (1 + _SLACK)], 1)

    def query(self, query: Tensor) -> Tensor:
        leading = query.float() @ self._basis
        if not self._rest.shape[1]:
            return leading
        return torch.cat([leading, (query.float() @ self._rest).norm()[None] * (1 + _SLACK)])


def _axes(block: Tensor, kept: int) -> _Axes:
    width, some = block.shape[1], block[FIRST_ITEM :: max(len(block) // 100_000, 1)].double()
    center = some.mean(0)
    if kept >= width:
        return _Axes(center.float(), torch.eye(width), torch.zeros(width, 0))
    some -= center
    basis = torch.linalg.eigh(some.T @ some)[1].flip(1).float()
    return _Axes(center.float(), basis[:, :kept].contiguous(), basis[:, kept:].contiguous())


def _integer_product() -> Product | None:
    """torch._int_mm where this machine computes it without overflow: some x86 without VNNI saturate sums of pairs."""
    try:
        ones = torch.full((4, 64), LEVELS, dtype=torch.int8)
        if (torch._int_mm(ones[:1], ones.T) == 64 * LEVELS**2).all():
            return lambda query, rounded: torch._int_mm(query[None], rounded.T)[0]
    except (AttributeError, RuntimeError, NotImplementedError):
        pass
    return None


def _float_product(query: Tensor, rounded: Tensor) -> Tensor:
    """The same in float32: exact, since sums of products of 7 bits stay below 2^24."""
    query = query.float()
    return torch.cat([part.float() @ query for part in rounded.split(_CHUNK // 4)])
