"""Score-weight calibration: the feature weights that maximise validation NDCG@10 of full ranking.

Coordinate-wise: for each feature every weight of its grid is tried with the others fixed; the best point becomes the
next starting point, until none is better, nor any that differs in two weights of repeats. Both history rules are ranked
at once; each gets its own weights.

What is ranked are a few candidates of each user (candidates.py), whose features are computed once. Their NDCG is that
of the catalogue or more. So where the chosen points have the same by the whole catalogue, within _OFF, no other point
that was tried is better than they are by more than that; where they have less, what stood above joins the candidates.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, product
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from llmcfsr_merlin.dataset.names import HISTORY_RULES, KEPT, MASKED, history_rule
from llmcfsr_merlin.runtime.progress import Progress
from llmcfsr_merlin.scoring.ensemble import Ensemble
from llmcfsr_merlin.training.candidates import Candidates
from llmcfsr_merlin.training.validation_ranks import (
    Features,
    Point,
    ValidationBatches,
    feature_places,
    ndcg,
    validation_ranks,
)

_PASSES = 12  # at most
_TRADES = 4  # at most
_OFF = 0.002  # a share of NDCG@10
_SEARCHES = 3  # at most
_FEWEST = 100  # tail items among the validation items for the trade-off: fewer decide by chance (measured on MovieLens)


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
    the history is kept alone: if it is masked, they rank nothing.

    untrained: bool [V], items that training never saw. Features of theirs (Feature.untrained) come last, by the best
    NDCG@10 of such targets that `untrained_tolerance` (a share) of the overall one buys: too few of them are in a
    validation for their weight to show in it.
    """
    grids = [() if number == 0 else feature.feature.grid for number, feature in enumerate(model.features)]
    best: dict[str, Point] = {}
    if any(grids):
        model.eval().prepare(bulk=True)
        counted = _Counted(batches, Progress(None, "score weights", "validation users ranked"))
        groups = tail, np.zeros_like(tail) if untrained is None else untrained
        found: list[Point] = []
        for _ in range(_SEARCHES):
            candidates = Candidates(model, counted, found)
            measured = _Measured(candidates, groups)
            best = _search(measured, candidates, best, tolerance, untrained_tolerance)
            found += [point for point in best.values() if point not in found]
            if not _lost(model, counted, measured, best):
                break
    else:
        best = dict.fromkeys(HISTORY_RULES, _plain(grids))
    names = [feature.feature.name for feature in model.features]
    chosen = {rule: dict(zip(names, point)) for rule, point in best.items()}
    model.set_weights(chosen[history_rule(exclude_history)])
    model.history_weights = chosen
    return model.weights


def _search(
    measured: "_Measured", model: Features, start: dict[str, Point], tolerance: float, untrained_tolerance: float
) -> dict[str, Point]:
    """The best point under each history rule."""
    grids = [() if number == 0 else feature.feature.grid for number, feature in enumerate(model.features)]
    of_history = feature_places(model)[1]
    late = {place: grid for place, grid in enumerate(grids) if model.features[place].feature.untrained}
    grids = [() if place in late else grid for place, grid in enumerate(grids)]
    best: dict[str, Point] = {}
    for rule in (MASKED, KEPT):  # the other rule starts from what was found for one
        of_rule = measured.of(rule)
        open_to = [() if rule == MASKED and place in of_history else grid for place, grid in enumerate(grids)]
        best[rule] = climb(of_rule, open_to, start.get(rule) or best.get(MASKED) or _plain(grids), of_history)
        if tolerance and measured.counts[0] >= _FEWEST:  # a repeat is no matter of head and tail
            open_to = [() if place in of_history else grid for place, grid in enumerate(grids)]
            best[rule] = trade(of_rule, open_to, tolerance)
        for place, grid in late.items():
            best[rule] = _for_untrained(of_rule, best[rule], place, grid, untrained_tolerance)
    return best


def _plain(grids: Sequence) -> Point:
    """The first feature alone."""
    return (1.0, *(0.0 for _ in grids[1:]))


def _lost(model: Ensemble, batches: Iterable, measured: "_Measured", best: dict[str, Point]) -> bool:
    """Whether a point's NDCG@10 by the whole catalogue is less than the one by the candidates."""
    _, found = validation_ranks(model, batches, list(best.values()))
    for place, (rule, point) in enumerate(best.items()):
        if ndcg(found[rule][place]) < (1 - _OFF) * measured.measure([point], rule)[point].overall:
            return True
    return False


class _Counted:
    """Batches whose users are counted as they are taken."""

    def __init__(self, batches: ValidationBatches, progress: Progress):
        self._batches, self._progress = batches, progress

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for histories, targets in self._batches:
            yield histories, targets
            self._progress.update(len(targets))


class _Values(NamedTuple):
    """NDCG@10 of all validation items, of the tail ones and of those that training never saw (0 if there is none)."""

    overall: float
    tail: float
    untrained: float


class _Measured:
    """Caches the validation results of points under both history rules: one pass serves both."""

    def __init__(self, candidates: Candidates, groups: Sequence[np.ndarray]):
        """groups: bool [V] each, the tail items and those that training never saw."""
        self._candidates = candidates
        self._groups = [group[candidates.targets] for group in groups]
        self.counts = [int(group.sum()) for group in self._groups]
        """Validation items of each group."""
        self._known: dict[str, dict[Point, _Values]] = {rule: {} for rule in HISTORY_RULES}

    def of(self, rule: str) -> "_Quality":
        return _Quality(self, rule)

    def measure(self, points: Iterable[Point], rule: str) -> dict[Point, _Values]:
        points = list(dict.fromkeys(points))
        if new := [point for point in points if point not in self._known[rule]]:
            _, found = validation_ranks(self._candidates, self._candidates, new)
            for of_rule, ranks in found.items():
                parts = [ndcg(ranks[:, group]).tolist() if group.any() else [0.0] * len(new) for group in self._groups]
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


class PointValues(Protocol):
    """What is known of points by one history rule. The values of a point have `overall` and `tail`, NDCG@10 each."""

    values: dict[Point, Any]

    def measure(self, points: Iterable[Point]) -> None:
        """Add the points to `values`."""


def _neighbours(point: Point, grids: list[tuple[float, ...]]) -> Iterator[Point]:
    """The point itself, and those that differ from it in one weight."""
    yield point
    for number, grid in enumerate(grids):
        for weight in grid:
            yield (*point[:number], weight, *point[number + 1 :])


def _pairs(point: Point, grids: list[tuple[float, ...]], places: Sequence[int]) -> Iterator[Point]:
    """The point itself, and those that differ from it in two of the weights at `places`."""
    yield point
    for first, second in combinations(places, 2):
        for one, other in product(grids[first], grids[second]):
            changed = list(point)
            changed[first], changed[second] = one, other
            yield tuple(changed)


def _diagonals(point: Point, grids: list[tuple[float, ...]]) -> Iterator[Point]:
    """The points that differ in two weights, each by a step of its grid."""
    steps = {
        number: [grid[place] for place in (at - 1, at + 1) if 0 <= place < len(grid)]
        for number, grid in enumerate(grids) if point[number] in grid
        for at in [grid.index(point[number])]
    }  # fmt: skip
    for first, second in combinations(steps, 2):
        for one, other in product(steps[first], steps[second]):
            yield tuple(
                one if number == first else other if number == second else weight for number, weight in enumerate(point)
            )


def climb(measured: PointValues, grids: list[tuple[float, ...]], start: Point, together: Sequence[int] = ()) -> Point:
    """The best overall NDCG, coordinate by coordinate from `start`. grids: of each feature, () for one that stays.

    together: places of features of which two are tried at once where no single one is better. Those of repeats need it:
    who returns to the item before the last one, not to the last, is met by a large weight of a repeat and an equally
    large one against a recent repeat, and no steps of one weight that are each better lead there.
    """
    best = start
    for _ in range(_PASSES):
        found = _better(measured, _neighbours(best, grids))
        if found == best:
            found = _better(measured, _pairs(best, grids, together))
        if found == best:
            break
        best = found
    return best


def _better(measured: PointValues, points: Iterable[Point]) -> Point:
    """The best overall NDCG of all that is known once `points` are."""
    measured.measure(points)
    return max(measured.values, key=lambda point: measured.values[point].overall)


def trade(measured: PointValues, grids: list[tuple[float, ...]], tolerance: float) -> Point:
    """The head/tail trade-off: the best tail NDCG within `tolerance` of the best overall NDCG, searched around it.

    Also by steps of two weights at once: along the edge of what is allowed, one weight has to give for the other.
    """
    chosen = best_tail(measured, tolerance)
    for _ in range(_TRADES):
        measured.measure([*_neighbours(chosen, grids), *_diagonals(chosen, grids)])
        found = best_tail(measured, tolerance)
        if found == chosen:
            break
        chosen = found
    return chosen


def best_tail(measured: PointValues, tolerance: float) -> Point:
    """Of the points measured within `tolerance` (a share) of the best overall NDCG, the one with the best tail."""
    least = (1 - tolerance) * max(values.overall for values in measured.values.values())
    allowed = [point for point, values in measured.values.items() if values.overall >= least]
    return max(allowed, key=lambda point: (measured.values[point].tail, measured.values[point].overall))


def _for_untrained(measured: _Quality, chosen: Point, place: int, grid: Sequence[float], tolerance: float) -> Point:
    """The weight at `place` that is best for items that training never saw; the smallest of equal ones."""
    points = [(*chosen[:place], weight, *chosen[place + 1 :]) for weight in sorted({chosen[place], *grid})]
    measured.measure(points)
    least = (1 - tolerance) * measured.overall(chosen)
    return max(points, key=lambda point: (measured.overall(point) >= least, measured.values[point].untrained))
