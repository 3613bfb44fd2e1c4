"""The best items of a large catalogue without reading the full vectors of all of it, and whether that is proven.

Let b(i) be the sum of what the scorers can give to item i at most, Scorer.bound, and c(i) <= b(i) the same less
Scorer.excess: both are at least the score of i. Then for any items of which the k-th largest exact score is t, no item
with b(i) < t or c(i) < t can be among the best k. So

1. b of all items; c of about the `_FIRST` largest of these; the exact scores of the best of those give a first t;
2. c of every other item with b(i) >= t, in waves, the largest b first; what it reads is in memory, one byte a number.
   The exact scores of the best of a wave raise t;
3. the exact scores of those with c(i) >= t, best first, while t rises. If none is left, the answer is the exact top k.

Only `most` items are scored exactly: if that leaves some out, the answer is not proven.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.scoring.ensemble import Ensemble
from llmcfsr_merlin.scoring.search.bound import Bound

_FIRST = 256  # items that are looked at closely before there is a k-th score, or 8 k
_WIDER = 16  # times as many in each wave of the others
_SAMPLED = 16  # of the best of a wave, to tell how many there are
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
    """The search for one history. waiting, bound: items with closer bounds that are not scored yet."""

    def __init__(self, search: Search, bounds: list[Bound], row: int, history: Tensor):
        self._most, self._history, self._row = search.most, history, row
        self._parts = list(zip(search._parts, bounds))
        self._upper = self._bound_all(search._ceiling.clone())
        self.items, self.scores = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
        self.waiting, self.bound, self.least = self.items, self.scores, -torch.inf

    def best(self, k: int, blocked: Tensor | None) -> tuple[Tensor, Tensor, bool]:
        upper = self._upper if blocked is None else self._upper.masked_fill_(blocked, -torch.inf)
        wave, part = max(8 * k, _FIRST), max(2 * k, _PART)
        first = _at_least(upper, _about(upper, wave))[: 4 * wave]  # of many equal ones a few
        self._look(first, upper[first])
        self._score(part, k)
        upper[first] = -torch.inf
        cut = torch.inf
        while cut > self.least:
            wave *= _WIDER
            cut = max(_about(upper, wave), self.least)
            chosen = _at_least(upper, cut)
            self._look(chosen, upper[chosen])
            upper[chosen] = -torch.inf
            self._score(part, k)
        while len(self.waiting) and len(self.items) < self._most:
            part *= 2
            self._score(part, k)
        return *_ordered(self.items, self.scores, k), not len(self.waiting)

    def _look(self, items: Tensor, bound: Tensor) -> None:
        """Let those of items wait whose closer bound is not below `least`."""
        for part, own in self._parts:
            if len(items) and (excess := part.excess(own, self._row, self._history, items)) is not None:
                bound = bound - excess
                kept = bound >= self.least
                items, bound = items[kept], bound[kept]
        self.waiting, self.bound = torch.cat([self.waiting, items]), torch.cat([self.bound, bound])

    def _score(self, count: int, k: int) -> None:
        """Score the `count` best of those that wait, if `most` allows, and drop what cannot be among the best k now."""
        place = self.bound.topk(min(count, self._most - len(self.items), len(self.bound))).indices
        chosen = self.waiting[place]
        total = torch.zeros(len(chosen))
        if len(chosen):
            for part, bound in self._parts:
                total += part.rescore(bound, self._row, self._history, chosen)
        self.items, self.scores = torch.cat([self.items, chosen]), torch.cat([self.scores, total])
        if len(self.scores) >= k:
            self.least = float(self.scores.topk(k).values[-1])
            self.least -= _NOISE * (1 + abs(self.least))
        kept = self.bound >= self.least
        kept[place] = False
        self.waiting, self.bound = self.waiting[kept], self.bound[kept]

    def _bound_all(self, total: Tensor) -> Tensor:
        """Float [V]: no item scores more."""
        first = self._row * len(total)
        for part, bound in self._parts:
            part.add_bound(bound, self._row, total)
            if len(bound.keys):
                own = slice(*torch.searchsorted(bound.keys, torch.tensor([first, first + len(total)])).tolist())
                total.index_add_(0, bound.keys[own] - first, bound.lifts[own])
        return total


def _ordered(items: Tensor, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The best k, ties by the smaller id, 0 and -inf past the last."""
    items, order = items.sort()
    best = scores[order].sort(descending=True, stable=True)
    items, scores = items[best.indices[:k]], best.values[:k]
    lacking = k - len(items)
    return torch.nn.functional.pad(items, (0, lacking)), torch.nn.functional.pad(scores, (0, lacking), value=-torch.inf)


def _at_least(upper: Tensor, least: float) -> Tensor:
    """Places of all that are not -inf and at least `least`."""
    from llmcfsr_merlin.scoring.search.places import at_least

    return torch.from_numpy(at_least(upper.numpy(), least))


def _about(upper: Tensor, count: int) -> float:
    """A number that about `count` of V are not below, by a sample."""
    if len(upper) <= count:
        return -torch.inf
    sample = upper[:: max(count // _SAMPLED, 1)]
    return float(sample.topk(min(_SAMPLED, len(sample))).values[-1])
