"""Score-weight calibration: the feature weights that maximise validation NDCG@10 of full ranking.

Coordinate-wise: a pass over the validation users evaluates, for each feature, every weight of its grid with the others
fixed; the best point becomes the next starting point, until none is better. A quarter of the users
finds the neighbourhood, all of them decide. A pass ranks under both history rules; each gets its own weights.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from llmcfsr_merlin.dataset.names import FIRST_ITEM, HISTORY_RULES, ITEM, KEPT, MASKED, history_rule
from llmcfsr_merlin.dataset.user_histories import lists_of
from llmcfsr_merlin.scoring.ensemble import Ensemble
from llmcfsr_merlin.scoring.ranker import pad
from llmcfsr_merlin.training.validation import gains

_PASSES = 8  # at most, on a quarter of the users and on all of them
_COARSE = 4
_FEWEST = 100  # tail items among the validation items for the trade-off: fewer decide by chance (measured on MovieLens)
_SORTED = 64  # batches whose rows are sorted by length, so that little of them is padding

Point = tuple[float, ...]  # one weight per feature


class ValidationBatches:
    """Histories int64 [B, L] and targets int64 [B] of the rows of a split; the target is a row's last item."""

    def __init__(self, files: Sequence[str], size: int, device: torch.device, every: int = 1):
        """size: users per batch. every: only every n-th batch."""
        self.files, self.size, self.device, self.every = files, size, device, every

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        number = 0
        for file in self.files:
            for block in pq.ParquetFile(file).iter_batches(_SORTED * self.size, columns=[ITEM]):
                rows = sorted(lists_of(block.column(0)), key=len) if block.num_rows else []
                for start in range(0, len(rows), self.size):
                    number += 1
                    if (number - 1) % self.every == 0:
                        some = rows[start : start + self.size]
                        histories = pad([row[:-1].tolist() for row in some], len(some[-1]))
                        yield histories.to(self.device), torch.tensor([int(row[-1]) for row in some]).to(self.device)

    def coarse(self) -> "ValidationBatches":
        """A quarter of the batches; all of them if there are few."""
        rows = sum(pq.read_metadata(file).num_rows for file in self.files)
        every = _COARSE if rows >= 4 * _COARSE * self.size else 1
        return ValidationBatches(self.files, self.size, self.device, every)


@torch.inference_mode()
def validation_ranks(
    model: Ensemble, batches: Iterable[tuple[Tensor, Tensor]], points: Sequence[Point]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Rank of each validation item, from 0, with each of the points as weights: targets int64 [N], and history rule
    (names.HISTORY_RULES) -> ranks [points, N].

    Masked: the user's other items take no part in the ranking (the target always does). The first feature has weight 1
    in every point. The model is prepared (`prepare(bulk=True)`) by the caller.
    """
    everywhere, of_history = _places(model)
    groups: dict[Point, list[int]] = {}  # points that differ in what is 0 outside of the history share a table
    for number, point in enumerate(points):
        groups.setdefault(tuple(point[place] for place in everywhere), []).append(number)
    extra = [tuple(point[place] for place in of_history) for point in points]
    names = [name for name, part in model.scorers.items() if not (of_history and part.HISTORY_ONLY)]
    others = [name for name in model.names if name not in names] if any(map(any, extra)) else []
    targets: list[Tensor] = []
    found: dict[str, list[Tensor]] = {MASKED: [], KEPT: []}
    for history, target in batches:
        values, wanted = model.each_feature(history, names=names), target.unsqueeze(1)
        own = values[0].gather(1, wanted)
        values[0][:, :FIRST_ITEM] = -torch.inf
        values[0].scatter_(1, wanted, own)
        past, once = _once(history, wanted)
        more = [model.each_feature(history, items, others) for items in (wanted, past)] if others else []
        returned = bool(others) and bool(more[0].any())
        # Floats, since torch adds up bools by a slow way through int64: half of the time of calibration.
        total, above = torch.empty_like(values[0]), torch.empty_like(values[0])
        ranks = torch.empty(2, len(points), len(target), dtype=torch.int64, device=total.device)
        for weights, numbers in groups.items():
            total.copy_(values[0])
            for value, weight in zip(values[1:], weights[1:]):
                if weight:
                    total.add_(value, alpha=weight)
            base, of_past = total.gather(1, wanted), total.gather(1, past)
            higher = torch.gt(total, base, out=above).sum(1)
            for number in numbers:
                mine, theirs, count = base, of_past, higher
                if others and any(extra[number]):
                    mine, theirs = (
                        score + torch.einsum("f,fbc->bc", score.new_tensor(extra[number]), values_of)
                        for score, values_of in zip((base, of_past), more)
                    )
                    if returned:
                        count = torch.gt(total, mine, out=above).sum(1) - (base > mine).squeeze(1).float()
                masked = count - ((of_past > mine) & once).sum(1)
                ranks[0, number], ranks[1, number] = masked, masked + ((theirs > mine) & once).sum(1)
        targets.append(target.cpu())
        for rule, of_rule in zip((MASKED, KEPT), ranks.cpu()):
            found[rule].append(of_rule)
    return torch.cat(targets).numpy(), {rule: torch.cat(parts, dim=1).numpy() for rule, parts in found.items()}


def _places(model: Ensemble) -> tuple[list[int], list[int]]:
    """Places of the features: those that tell all items apart, and those of scorers that are HISTORY_ONLY."""
    alone = [model.scorers[feature.scorer].HISTORY_ONLY for feature in model.features]
    if alone[0]:  # what the others are weighed against has to stand in the table of all items
        alone = [False] * len(alone)
    return [place for place, one in enumerate(alone) if not one], [place for place, one in enumerate(alone) if one]


def _once(history: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Each history's items in order of id, and which of them to count: each item once, never the target."""
    past = history.sort(dim=1).values
    once = past != wanted
    once[:, 1:] &= past[:, 1:] != past[:, :-1]
    return past, once


def ndcg(ranks: np.ndarray, k: int = 10) -> np.ndarray:
    """NDCG@k of single targets: ranks int64 [..., N], from 0, to float64 [...], their mean."""
    return gains(torch.from_numpy(ranks), k).numpy().mean(-1)


def calibrate(
    model: Ensemble,
    batches: ValidationBatches,
    tail: np.ndarray,
    tolerance: float = 0.0,
    exclude_history: bool = False,
    untrained: np.ndarray | None = None,
    untrained_tolerance: float = 0.0,
) -> dict[str, float]:
    """Calibrate a model's score weights on validation NDCG@10 (full ranking); sets and returns them by name.

    Among the points whose NDCG@10 is within `tolerance` (a share) of the best, the one with the best NDCG@10 on tail
    items, if there are enough of them. tail: bool [V]. exclude_history: the rule of the weights that are set; those of
    the other rule are chosen beside them, into model.history_weights. Scorers that are HISTORY_ONLY have weights where
    the history is kept alone: if it is masked, they could do nothing but lift a target that is a repeat above items
    that nobody ranked.

    untrained: bool [V], items that training never saw. Features of theirs (Feature.untrained) come last, by the best
    NDCG@10 of such targets that `untrained_tolerance` (a share) of the overall one buys: too few of them are in a
    validation for their weight to show in it.
    """
    grids = [() if number == 0 else feature.feature.grid for number, feature in enumerate(model.features)]
    start = (1.0, *(0.0 for _ in grids[1:]))
    best = dict.fromkeys(HISTORY_RULES, start)
    if any(grids):
        model.eval().prepare(bulk=True)
        of_history = _places(model)[1]
        late = {place: grid for place, grid in enumerate(grids) if model.features[place].feature.untrained}
        grids = [() if place in late else grid for place, grid in enumerate(grids)]
        groups = tail, np.zeros_like(tail) if untrained is None else untrained
        coarse, whole = (_Measured(model, some, groups) for some in (batches.coarse(), batches))
        for rule in (MASKED, KEPT):  # what was measured for one is known for the other, which starts from it
            open_to = [() if rule == MASKED and place in of_history else grid for place, grid in enumerate(grids)]
            measured = whole.of(rule)
            start = best[rule] = _climb(measured, open_to, _climb(coarse.of(rule), open_to, start))
            if tolerance and whole.counts[0] >= _FEWEST:  # a repeat is no matter of head and tail
                open_to = [() if place in of_history else grid for place, grid in enumerate(grids)]
                best[rule] = _trade(measured, open_to, tolerance)
            for place, grid in late.items():
                best[rule] = _for_untrained(measured, best[rule], place, grid, untrained_tolerance)
    names = [feature.feature.name for feature in model.features]
    chosen = {rule: dict(zip(names, point)) for rule, point in best.items()}
    model.set_weights(chosen[history_rule(exclude_history)])
    model.history_weights = chosen
    return model.weights


class _Values(NamedTuple):
    """NDCG@10 of all validation items, of the tail ones and of those that training never saw (0 if there is none)."""

    overall: float
    tail: float
    untrained: float


class _Measured:
    """Caches the validation results of points under both history rules: one pass serves both."""

    def __init__(self, model: Ensemble, batches: Iterable, groups: Sequence[np.ndarray]):
        """groups: bool [V] each, the tail items and those that training never saw."""
        self._ask = lambda points: validation_ranks(model, batches, points)
        self._groups = groups
        self.counts = [0] * len(groups)
        """Validation items of each group, once something has been measured."""
        self._known: dict[str, dict[Point, _Values]] = {rule: {} for rule in HISTORY_RULES}

    def of(self, rule: str) -> "_Quality":
        return _Quality(self, rule)

    def measure(self, points: Iterable[Point], rule: str) -> dict[Point, _Values]:
        points = list(dict.fromkeys(points))
        if new := [point for point in points if point not in self._known[rule]]:
            targets, found = self._ask(new)
            groups = [group[targets] for group in self._groups]
            self.counts = [int(group.sum()) for group in groups]
            for of_rule, ranks in found.items():
                parts = [ndcg(ranks[:, group]).tolist() if group.any() else [0.0] * len(new) for group in groups]
                self._known[of_rule] |= zip(new, map(_Values, ndcg(ranks).tolist(), *parts))
        return {point: self._known[rule][point] for point in points}


class _Quality:
    """Values under one rule at the points that were asked for: the path of one rule is not that of the other."""

    def __init__(self, measured: _Measured, rule: str):
        self._measured, self._rule = measured, rule
        self.values: dict[Point, _Values] = {}

    def measure(self, points: Iterable[Point]) -> None:
        self.values |= self._measured.measure(points, self._rule)

    def overall(self, point: Point) -> float:
        return self.values[point].overall


def _neighbours(point: Point, grids: list[tuple[float, ...]]) -> Iterator[Point]:
    """The point itself, and those that differ from it in one weight."""
    yield point
    for number, grid in enumerate(grids):
        for weight in grid:
            yield (*point[:number], weight, *point[number + 1 :])


def _climb(measured: _Quality, grids: list[tuple[float, ...]], start: Point) -> Point:
    best = start
    for _ in range(_PASSES):
        measured.measure(_neighbours(best, grids))
        found = max(measured.values, key=measured.overall)
        if found == best:
            break
        best = found
    return best


def _trade(measured: _Quality, grids: list[tuple[float, ...]], tolerance: float) -> Point:
    """The head/tail trade-off: the best tail NDCG within `tolerance` of the best overall NDCG, searched around it."""
    chosen = _best_tail(measured, tolerance)
    for _ in range(2):
        measured.measure(_neighbours(chosen, grids))
        found = _best_tail(measured, tolerance)
        if found == chosen:
            break
        chosen = found
    return chosen


def _best_tail(measured: _Quality, tolerance: float) -> Point:
    least = (1 - tolerance) * max(values.overall for values in measured.values.values())
    allowed = [point for point, values in measured.values.items() if values.overall >= least]
    return max(allowed, key=lambda point: (measured.values[point].tail, measured.overall(point)))


def _for_untrained(measured: _Quality, chosen: Point, place: int, grid: Sequence[float], tolerance: float) -> Point:
    """The weight at `place` that is best for items that training never saw; the smallest of equal ones."""
    points = [(*chosen[:place], weight, *chosen[place + 1 :]) for weight in sorted({chosen[place], *grid})]
    measured.measure(points)
    least = (1 - tolerance) * measured.overall(chosen)
    return max(points, key=lambda point: (measured.overall(point) >= least, measured.values[point].untrained))
