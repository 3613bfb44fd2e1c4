"""Score-weight calibration: the feature weights that maximise validation NDCG@10 of full ranking.

Coordinate-wise: a pass over the validation users evaluates, for each feature, every weight of its grid with the others
fixed; the best point becomes the next starting point, until none is better. A quarter of the users
finds the neighbourhood, all of them decide. A pass ranks under both history rules; each gets its own weights.
"""

from collections.abc import Iterable, Iterator, Sequence

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
    used = [number for number in range(len(points[0])) if any(point[number] for point in points)]
    targets: list[Tensor] = []
    found: dict[str, list[Tensor]] = {MASKED: [], KEPT: []}
    for history, target in batches:
        values = model.each_feature(history)
        anchor, wanted = values[0], target.unsqueeze(1)
        own = anchor.gather(1, wanted)
        anchor[:, :FIRST_ITEM] = -torch.inf
        anchor.scatter_(1, wanted, own)
        past, once = _once(history, wanted)
        # Floats: torch sums bools slowly through int64, which took half of the calibration time.
        total, above = torch.empty_like(anchor), torch.empty_like(anchor)
        kept, masked = [], []
        for point in points:
            total.copy_(anchor)
            for number in used[1:]:
                if point[number]:
                    total.add_(values[number], alpha=point[number])
            of_target = total.gather(1, wanted)
            kept.append(torch.gt(total, of_target, out=above).sum(1))
            masked.append(kept[-1] - ((total.gather(1, past) > of_target) & once).sum(1))
        targets.append(target.cpu())
        for rule, ranks in ((MASKED, masked), (KEPT, kept)):
            found[rule].append(torch.stack(ranks).long().cpu())
    return torch.cat(targets).numpy(), {rule: torch.cat(ranks, dim=1).numpy() for rule, ranks in found.items()}


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
) -> dict[str, float]:
    """Calibrate a model's score weights on validation NDCG@10 (full ranking); sets and returns them by name.

    Among the points whose NDCG@10 is within `tolerance` (a share) of the best, the one with the best NDCG@10 on tail
    items. tail: bool [V]. exclude_history: the rule of the weights that are set; those of the other rule are chosen
    besides, into model.history_weights: an item is most similar to itself, so if the history
    stays in the ranking and users do not repeat items, every similarity gets weight 0 (measured on Beauty).
    """
    grids = [() if number == 0 else feature.feature.grid for number, feature in enumerate(model.features)]
    start = (1.0, *(0.0 for _ in grids[1:]))
    best = dict.fromkeys(HISTORY_RULES, start)
    if any(grids):
        model.eval().prepare(bulk=True)
        coarse, whole = (_Measured(model, some, tail) for some in (batches.coarse(), batches))
        for rule in HISTORY_RULES:  # measurements are shared by both rules
            measured = whole.of(rule)
            best[rule] = _climb(measured, grids, _climb(coarse.of(rule), grids, start))
            if tolerance:
                best[rule] = _trade(measured, grids, tolerance)
    names = [feature.feature.name for feature in model.features]
    chosen = {rule: dict(zip(names, point)) for rule, point in best.items()}
    model.set_weights(chosen[history_rule(exclude_history)])
    model.history_weights = chosen
    return model.weights


class _Measured:
    """Caches the validation results of points under both history rules: one pass serves both."""

    def __init__(self, model: Ensemble, batches: Iterable, tail: np.ndarray):
        self._ask = lambda points: validation_ranks(model, batches, points)
        self._tail = tail
        self._known: dict[str, dict[Point, tuple[float, float]]] = {rule: {} for rule in HISTORY_RULES}

    def of(self, rule: str) -> "_Quality":
        return _Quality(self, rule)

    def measure(self, points: Iterable[Point], rule: str) -> dict[Point, tuple[float, float]]:
        """Point -> NDCG@10 of all items, and of the tail ones (0 if there is none)."""
        points = list(dict.fromkeys(points))
        if new := [point for point in points if point not in self._known[rule]]:
            targets, found = self._ask(new)
            chosen = self._tail[targets]
            for of_rule, ranks in found.items():
                of_tail = ndcg(ranks[:, chosen]).tolist() if chosen.any() else [0.0] * len(new)
                self._known[of_rule] |= zip(new, zip(ndcg(ranks).tolist(), of_tail))
        return {point: self._known[rule][point] for point in points}


class _Quality:
    """NDCG@10 under one rule at the points that were asked for: the path of one rule is not that of the other."""

    def __init__(self, measured: _Measured, rule: str):
        self._measured, self._rule = measured, rule
        self.overall: dict[Point, float] = {}
        self.of_tail: dict[Point, float] = {}

    def measure(self, points: Iterable[Point]) -> None:
        for point, values in self._measured.measure(points, self._rule).items():
            self.overall[point], self.of_tail[point] = values


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
        found = max(measured.overall, key=measured.overall.__getitem__)
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
    least = (1 - tolerance) * max(measured.overall.values())
    allowed = [point for point, value in measured.overall.items() if value >= least]
    return max(allowed, key=lambda point: (measured.of_tail[point], measured.overall[point]))
