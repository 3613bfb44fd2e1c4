"""The best items of a large catalogue without reading the full vectors of all of it, and whether that is proven.

Let b(i) be the sum of what the scorers can give to item i at most, Scorer.bound, and c(i) <= b(i) the same less
Scorer.excess: both are at least the score of i. Then for any items of which the k-th largest exact score is t, no item
with b(i) < t or c(i) < t can be among the best k. So

1. b of all items; c of the `_FIRST` largest of these; the exact scores of the best of those give a first t;
2. c of every other item with b(i) >= t: few, and what it reads is in memory, one byte a number;
3. the exact scores of those with c(i) >= t, best first, while t rises. If none is left, the answer is the exact top k.

Only `most` items are scored exactly: if that leaves some out, the answer is not proven.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.scoring.ensemble import Ensemble
from llmcfsr_merlin.scoring.search.bound import Bound

_BLOCK = 128
_FIRST = 256  # items that are looked at closely before there is a k-th score, or 8 k
_PART = 32  # items that are scored together, or 2 k; then twice as many, and so on
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
        self._ceiling = torch.zeros(self.n_items)
        for part in self._parts:
            self._ceiling += part.ceiling()
        self._ceiling[:FIRST_ITEM] = self._ceiling[model.retired] = -torch.inf
        self.top_k(torch.full((1, 1), FIRST_ITEM), 1)  # tables that nobody has made are made now

    def top_k(self, histories: Tensor, k: int, blocked: Tensor | None = None) -> Found:
        """histories: int64 [B, L] right-padded; blocked: bool [B, V], items that must not be returned."""
        bounds = [part.bound(histories) for part in self._parts]
        rows = [
            _Row(self, bounds, row, histories[row : row + 1]).best(k, None if blocked is None else blocked[row])
            for row in range(len(histories))
        ]
        items, scores, exact = zip(*rows)
        return Found(torch.stack(items), torch.stack(scores), torch.tensor(exact))


class _Row:
    """The search for one history."""

    def __init__(self, search: Search, bounds: list[Bound], row: int, history: Tensor):
        self._most, self._history, self._row = search.most, history, row
        self._parts = list(zip(search._parts, bounds))
        self._upper = self._bound_all(search._ceiling.clone())

    def best(self, k: int, blocked: Tensor | None) -> tuple[Tensor, Tensor, bool]:
        upper = self._upper if blocked is None else self._upper.masked_fill_(blocked, -torch.inf)
        least = -torch.inf
        first = _largest(upper, max(8 * k, _FIRST))
        waiting, bound = self._closer(first, upper[first], least)
        upper[first] = -torch.inf
        items, scores = waiting[:0], bound[:0]
        part, left, more = max(2 * k, _PART), self._most, True
        while len(waiting) or more:
            place = bound.topk(min(part, left, len(bound))).indices
            if len(place):
                items = torch.cat([items, waiting[place]])
                scores = torch.cat([scores, self._scores(waiting[place])])
                left -= len(place)
                bound[place] = -torch.inf
            if len(scores) >= k:
                least = float(scores.topk(k).values[-1])
                least -= _NOISE * (1 + abs(least))
            if more:
                others = _at_least(upper, least)
                others, close = self._closer(others, upper[others], least)
                waiting, bound, more = torch.cat([waiting, others]), torch.cat([bound, close]), False
            kept = (bound >= least) & (bound > -torch.inf)
            waiting, bound = waiting[kept], bound[kept]
            if not left:
                break
            part *= 2
        return *_ordered(items, scores, k), not len(waiting)

    def _bound_all(self, total: Tensor) -> Tensor:
        """Float [V]: no item scores more."""
        first = self._row * len(total)
        for part, bound in self._parts:
            part.add_bound(bound, self._row, total)
            if len(bound.keys):
                own = slice(*torch.searchsorted(bound.keys, torch.tensor([first, first + len(total)])).tolist())
                total.index_add_(0, bound.keys[own] - first, bound.lifts[own])
        return total

    def _closer(self, items: Tensor, bound: Tensor, least: float) -> tuple[Tensor, Tensor]:
        """Those of items whose closer bound is not below `least`, and these bounds."""
        for part, own in self._parts:
            if len(items) and (excess := part.excess(own, self._row, self._history, items)) is not None:
                bound = bound - excess
                kept = bound >= least
                items, bound = items[kept], bound[kept]
        return items, bound

    def _scores(self, items: Tensor) -> Tensor:
        total = torch.zeros(len(items))
        for part, bound in self._parts:
            total += part.rescore(bound, self._row, self._history, items)
        return total


def _ordered(items: Tensor, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The best k, ties by the smaller id, 0 and -inf past the last."""
    items, order = items.sort()
    best = scores[order].sort(descending=True, stable=True)
    items, scores = items[best.indices[:k]], best.values[:k]
    lacking = k - len(items)
    return torch.nn.functional.pad(items, (0, lacking)), torch.nn.functional.pad(scores, (0, lacking), value=-torch.inf)


def _largest(upper: Tensor, count: int) -> Tensor:
    """Places of the `count` largest that are not -inf, in any order; of a large row, out of the best blocks alone."""
    blocks = len(upper) // _BLOCK
    if blocks < 4 * count:
        best = upper.topk(min(count, len(upper)))
        return best.indices[best.values > -torch.inf]
    chosen = upper[: blocks * _BLOCK].view(blocks, _BLOCK).amax(1).topk(count).indices
    looked = (chosen[:, None] * _BLOCK + torch.arange(_BLOCK)).flatten()
    looked = torch.cat([looked, torch.arange(blocks * _BLOCK, len(upper))])
    best = upper[looked].topk(min(count, len(looked)))
    return looked[best.indices[best.values > -torch.inf]]


def _at_least(upper: Tensor, least: float) -> Tensor:
    """Places of all that are not -inf and at least `least`."""
    blocks = len(upper) // _BLOCK
    high = (upper[: blocks * _BLOCK].view(blocks, _BLOCK).amax(1) >= least).nonzero()[:, 0]
    looked = (high[:, None] * _BLOCK + torch.arange(_BLOCK)).flatten()
    looked = torch.cat([looked, torch.arange(blocks * _BLOCK, len(upper))])
    values = upper[looked]
    return looked[(values >= least) & (values > -torch.inf)]
