"""The best items of a large catalogue without scoring all of it, and whether that is proven.

Each scorer bounds what it can give to any item (bound.py), the screen adds the bounds up. The items of the largest
bounds are scored exactly; no other item can be among the best k if its bound is below the k-th score. Items whose
bounds are not below it are scored too, up to `most`: if those were all, the answer is the exact top k.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.scoring.ensemble import Ensemble
from llmcfsr_merlin.scoring.search.bound import Bound
from llmcfsr_merlin.scoring.search.screen import Screen

_BLOCK = 128
_FIRST = 64  # items that are scored before there is a k-th score, or 4 k
_NOISE = 1e-5  # of float32 scores, relative, and absolute


class Found(NamedTuple):
    """items: int64 [B, k], scores: float32 [B, k], best first, 0 and -inf past the last; exact: bool [B], proven."""

    items: Tensor
    scores: Tensor
    exact: Tensor


class Search:
    """Top k of an ensemble on the CPU. most: items that a history's answer scores exactly at most."""

    def __init__(self, model: Ensemble, most: int):
        self.model, self.most, self.n_items = model, most, model.shape.n_items
        self._parts = model.active
        self._screen = Screen([part.bound_columns() for part in self._parts])
        self.top_k(torch.zeros(1, 1, dtype=torch.int64), 1)  # tables that nobody has made are made now

    def top_k(self, histories: Tensor, k: int, blocked: Tensor | None = None) -> Found:
        """histories: int64 [B, L] right-padded; blocked: bool [B, V], items that must not be returned."""
        bounds = [part.bound(histories) for part in self._parts]
        rows = [
            self._row(bounds, row, histories[row : row + 1], k, None if blocked is None else blocked[row])
            for row in range(len(histories))
        ]
        items, scores, exact = zip(*rows)
        return Found(torch.stack(items), torch.stack(scores), torch.tensor(exact, dtype=torch.bool))

    def _row(
        self, bounds: list[Bound], row: int, history: Tensor, k: int, blocked: Tensor | None
    ) -> tuple[Tensor, Tensor, bool]:
        upper = self._upper(bounds, row)
        upper[:FIRST_ITEM] = upper[self.model.retired] = -torch.inf
        if blocked is not None:
            upper = upper.masked_fill_(blocked, -torch.inf)
        items = _largest(upper, min(max(4 * k, _FIRST), self.most))
        scores = self._scores(bounds, row, history, items)
        least = scores.topk(k).values[-1] if len(scores) >= k else scores.new_tensor(-torch.inf)
        upper[items] = -torch.inf
        least = least - _NOISE * (1 + least.abs()) if len(scores) >= k else least
        others = _at_least(upper, float(least))
        left = self.most - len(items)
        exact = len(others) <= left
        if not exact:
            others = others[upper[others].topk(left).indices]
        if len(others):
            items = torch.cat([items, others])
            scores = torch.cat([scores, self._scores(bounds, row, history, others)])
        items, order = items.sort()
        best = scores[order].sort(descending=True, stable=True)
        items, scores = items[best.indices[:k]], best.values[:k]
        if len(items) < k:
            lacking = k - len(items)
            items = torch.cat([items, items.new_zeros(lacking)])
            scores = torch.cat([scores, scores.new_full((lacking,), -torch.inf)])
        return items, scores, exact and all(bound.proven is None or bool(bound.proven[row]) for bound in bounds)

    def _upper(self, bounds: list[Bound], row: int) -> Tensor:
        """Float [V]: no item scores more."""
        upper = self._screen.upper([bound.query[row] for bound in bounds])
        upper += float(sum(bound.constant[row] for bound in bounds))
        first = row * self.n_items
        for bound in bounds:
            if len(bound.keys):
                own = slice(*torch.searchsorted(bound.keys, torch.tensor([first, first + self.n_items])).tolist())
                upper.index_add_(0, bound.keys[own] - first, bound.lifts[own])
            if bound.dense is not None:
                upper += bound.dense[row]
        return upper

    def _scores(self, bounds: list[Bound], row: int, history: Tensor, items: Tensor) -> Tensor:
        total = torch.zeros(len(items))
        for part, bound in zip(self._parts, bounds):
            total += part.rescore(bound, row, history, items)
        return total


def _largest(upper: Tensor, count: int) -> Tensor:
    """Places of the `count` largest that are not -inf, in any order; of a large row, out of the best blocks alone."""
    blocks = len(upper) // _BLOCK
    if blocks < 4 * count:
        best = upper.topk(min(count, len(upper)))
        return best.indices[best.values > -torch.inf]
    chosen = upper[: blocks * _BLOCK].view(blocks, _BLOCK).amax(1).topk(count).indices
    looked = (chosen[:, None] * _BLOCK + torch.arange(_BLOCK)).flatten()
    looked = torch.cat([looked, torch.arange(blocks * _BLOCK, len(upper))])
    best = upper[looked].topk(count)
    return looked[best.indices[best.values > -torch.inf]]


def _at_least(upper: Tensor, least: float) -> Tensor:
    """Places of all that are not -inf and at least `least`."""
    blocks = len(upper) // _BLOCK
    high = (upper[: blocks * _BLOCK].view(blocks, _BLOCK).amax(1) >= least).nonzero()[:, 0]
    looked = (high[:, None] * _BLOCK + torch.arange(_BLOCK)).flatten()
    looked = torch.cat([looked, torch.arange(blocks * _BLOCK, len(upper))])
    values = upper[looked]
    return looked[(values >= least) & (values > -torch.inf)]
