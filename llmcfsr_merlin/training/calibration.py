"""Calibration: the weights of a model's features, chosen on the validation items by NDCG@10 of full ranking.

Coordinate-wise: a pass over the validation users measures, for each feature, every weight of its grid with the others
as they are; the best point of all becomes the next one to start from, until none is better. A quarter of the users
finds the neighbourhood, all of them decide.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from llmcfsr_merlin.dataset.names import FIRST_ITEM, ITEM
from llmcfsr_merlin.dataset.user_histories import lists_of
from llmcfsr_merlin.scoring.ensemble import Ensemble
from llmcfsr_merlin.scoring.ranker import pad

_PASSES = 8  # at most, on a quarter of the users and on all of them
_COARSE = 4
_SORTED = 64  # batches whose rows are sorted by length, so that little of them is padding

Point = tuple[float, ...]  # a weight per feature


class ValidationBatches:
    """Histories int64 [B, L] and targets int64 [B] of the rows of a split; a row's last item is the one to find."""

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
    model: Ensemble, batches: Iterable[tuple[Tensor, Tensor]], points: Sequence[Point], exclude_history: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Rank of each validation item, from 0, with each of the points as weights: targets int64 [N], ranks [points, N].

    exclude_history: the user's other items take no part in the ranking (the target always does). The first feature has
    weight 1 in every point. The model is prepared (`prepare(bulk=True)`) by the caller.
    """
    used = [number for number in range(len(points[0])) if any(point[number] for point in points)]
    targets, ranks = [], []
    for history, target in batches:
        values = model.each_feature(history)
        anchor, wanted = values[0], target.unsqueeze(1)
        own = anchor.gather(1, wanted)
        anchor[:, :FIRST_ITEM] = -torch.inf
        if exclude_history:
            anchor.scatter_(1, history, -torch.inf)
        anchor.scatter_(1, wanted, own)
        # Floats, since torch adds up bools by a slow way through int64: half of the time of calibration.
        total, above = torch.empty_like(anchor), torch.empty_like(anchor)
        found = []
        for point in points:
            total.copy_(anchor)
            for number in used[1:]:
                if point[number]:
                    total.add_(values[number], alpha=point[number])
            found.append(torch.gt(total, total.gather(1, wanted), out=above).sum(1))
        targets.append(target.cpu())
        ranks.append(torch.stack(found).long().cpu())
    return torch.cat(targets).numpy(), torch.cat(ranks, dim=1).numpy()


def ndcg(ranks: np.ndarray, k: int = 10) -> np.ndarray:
    """NDCG@k of single targets: ranks int64 [..., N], from 0, to float64 [...], their mean."""
    return ((ranks < k) / np.log2(ranks + 2.0)).mean(-1)


def calibrate(
    model: Ensemble,
    batches: ValidationBatches,
    tail: np.ndarray,
    tolerance: float = 0.0,
    exclude_history: bool = False,
) -> dict[str, float]:
    """Set the weights of a model's features by validation NDCG@10 (full ranking) and return them by name.

    Among the points whose NDCG@10 is within `tolerance` (a share) of the best, the one with the best NDCG@10 on tail
    items. tail: bool [V]. exclude_history as in validation_ranks: an item matches itself best, so where the history is
    not recommended again but left in the ranking, it pushes the weight of every similarity to 0 (measured on Beauty).
    """
    grids = [() if number == 0 else feature.feature.grid for number, feature in enumerate(model.features)]
    start = (1.0, *(0.0 for _ in grids[1:]))
    if any(grids):
        model.eval().prepare(bulk=True)
        best = _climb(_Measured(model, batches.coarse(), tail, exclude_history), grids, start)
        measured = _Measured(model, batches, tail, exclude_history)
        best = _climb(measured, grids, best)
        if tolerance:
            best = _trade(measured, grids, tolerance)
    else:
        best = start
    model.set_weights({feature.feature.name: weight for feature, weight in zip(model.features, best)})
    return model.weights


class _Measured:
    """NDCG@10 of all validation items and of the tail ones (0 if there is none) at the points measured so far."""

    def __init__(self, model: Ensemble, batches: Iterable, tail: np.ndarray, exclude_history: bool):
        self._ask = lambda points: validation_ranks(model, batches, points, exclude_history)
        self._tail = tail
        self.overall: dict[Point, float] = {}
        self.of_tail: dict[Point, float] = {}

    def measure(self, points: Iterable[Point]) -> None:
        new = [point for point in dict.fromkeys(points) if point not in self.overall]
        if not new:
            return
        targets, ranks = self._ask(new)
        chosen = self._tail[targets]
        self.overall |= zip(new, ndcg(ranks).tolist())
        self.of_tail |= zip(new, ndcg(ranks[:, chosen]).tolist() if chosen.any() else [0.0] * len(new))


def _neighbours(point: Point, grids: list[tuple[float, ...]]) -> Iterator[Point]:
    """The point itself, and those that differ from it in one weight."""
    yield point
    for number, grid in enumerate(grids):
        for weight in grid:
            yield (*point[:number], weight, *point[number + 1 :])


def _climb(measured: _Measured, grids: list[tuple[float, ...]], start: Point) -> Point:
    best = start
    for _ in range(_PASSES):
        measured.measure(_neighbours(best, grids))
        found = max(measured.overall, key=measured.overall.__getitem__)
        if found == best:
            break
        best = found
    return best


def _trade(measured: _Measured, grids: list[tuple[float, ...]], tolerance: float) -> Point:
    """The best tail that `tolerance` of the overall NDCG buys, looked for around the best points."""
    chosen = _best_tail(measured, tolerance)
    for _ in range(2):
        measured.measure(_neighbours(chosen, grids))
        found = _best_tail(measured, tolerance)
        if found == chosen:
            break
        chosen = found
    return chosen


def _best_tail(measured: _Measured, tolerance: float) -> Point:
    least = (1 - tolerance) * max(measured.overall.values())
    allowed = [point for point, value in measured.overall.items() if value >= least]
    return max(allowed, key=lambda point: (measured.of_tail[point], measured.overall[point]))
