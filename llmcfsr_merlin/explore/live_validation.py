"""Validation figures for any score weights, fast enough for a slider: features of a few candidates are kept.

A sample of validation users is scored once. Of a large catalogue each user keeps the best items of each feature:
NDCG@10 and HR@10 need no others, since what ranks among the first ten by a sum ranks high by one of its terms. The
ranking is that of the calibration (training/validation_ranks.py), on the candidates instead of the catalogue.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from llmcfsr_merlin.dataset.names import FIRST_ITEM, HISTORY_RULES, MASKED
from llmcfsr_merlin.scoring.ensemble import Ensemble
from llmcfsr_merlin.training.calibration import best_tail, climb, trade
from llmcfsr_merlin.training.validation_ranks import Point, feature_places, ndcg, validation_ranks

_WHOLE = 2048  # items: smaller catalogues are ranked whole
_KEPT = 100  # items of each feature, for each user
_ROWS = 64  # users scored together
TOLERANCES = tuple(step / 200 for step in range(21))  # of the head/tail trade-off: 0 to 10%


@dataclass(frozen=True)
class Figures:
    """NDCG@10 and HR@10 over the sample; NDCG@10 of those whose held-out item is of the head, and of the tail: NaN
    without any."""

    overall: float
    hr: float
    head: float
    tail: float


class LiveValidation:
    """The validation figures of one model on a sample of users. users, tail_users: how many."""

    @torch.inference_mode()
    def __init__(self, model: Ensemble, batches: Iterable[tuple[Tensor, Tensor]], tail: np.ndarray):
        """batches: histories int64 [B, L] and targets int64 [B] (ValidationBatches). tail: bool [V]."""
        self._kept = _KeptFeatures(model, batches)
        self.features = list(model.weights)
        self.grids = [() if place == 0 else one.feature.grid for place, one in enumerate(model.features)]
        self._late = [place for place, one in enumerate(model.features) if one.feature.untrained]
        self._of_history = feature_places(model)[1]
        self._tail = tail[self._kept.targets]
        self.users, self.tail_users = len(self._tail), int(self._tail.sum())
        self._known: dict[str, dict[Point, Figures]] = {rule: {} for rule in HISTORY_RULES}
        self._trades: dict[tuple[str, Point], _OfRule] = {}

    def figures(self, weights: Mapping[str, float], rule: str) -> Figures:
        """Of score weights under a history rule. The first one is the scale and counts as 1."""
        point = self._point(weights)
        self.measure([point])
        return self._known[rule][point]

    def measure(self, points: Iterable[Point]) -> None:
        """Measure points under both rules; what is known already costs nothing."""
        new = [point for point in dict.fromkeys(points) if point not in self._known[MASKED]]
        if not new:
            return
        _, found = validation_ranks(cast(Ensemble, self._kept), self._kept, new)
        for rule, ranks in found.items():
            self._known[rule] |= {point: self._figures(of_point) for point, of_point in zip(new, ranks)}

    def _figures(self, ranks: np.ndarray) -> Figures:
        parts = [float(ndcg(ranks[group])) if group.any() else float("nan") for group in (~self._tail, self._tail)]
        return Figures(float(ndcg(ranks)), float((ranks < 10).mean()), *parts)

    def trade_off(self, weights: Mapping[str, float], rule: str, tolerance: float) -> dict[str, float]:
        """The weights with the best tail among those that cost at most `tolerance` (a share) of the best NDCG@10,
        searched around `weights` as the calibration does (train.tail_tolerance); the first call takes seconds."""
        start = self._point(weights)
        if (rule, start) not in self._trades:
            self._trades[rule, start] = searched = _OfRule(self, rule)
            grids = [() if place in self._late or (place in self._of_history and rule == MASKED) else grid
                     for place, grid in enumerate(self.grids)]  # fmt: skip
            climb(searched, grids, start)
            for step in TOLERANCES[:: len(TOLERANCES) // 4]:
                trade(searched, grids, step)
        return dict(zip(self.features, best_tail(self._trades[rule, start], tolerance)))

    def _point(self, weights: Mapping[str, float]) -> Point:
        first, *others = self.features
        scale = weights[first] or 1.0
        return (1.0, *(weights[name] / scale for name in others))


class _OfRule:
    """What was measured for one trade-off (calibration.PointValues)."""

    def __init__(self, validation: LiveValidation, rule: str):
        self._validation, self._rule = validation, rule
        self.values: dict[Point, Any] = {}

    def measure(self, points: Iterable[Point]) -> None:
        points = list(points)
        self._validation.measure(points)
        known = self._validation._known[self._rule]
        self.values |= {point: known[point] for point in points}


class _KeptFeatures:
    """Stands in for the model and for the batches in validation_ranks: a catalogue of its own for each user, whose ids
    are places among the candidates. targets: the real ids, int64 [N]."""

    def __init__(self, model: Ensemble, batches: Iterable[tuple[Tensor, Tensor]]):
        self.features, self.names, self.scorers = model.features, model.names, model.scorers
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._values: list[Tensor] = []
        targets = []
        for histories, wanted in batches:
            for start in range(0, len(wanted), _ROWS):
                some, of_some = histories[start : start + _ROWS], wanted[start : start + _ROWS]
                self._add(some, of_some, torch.stack(model.each_feature(some)))
                targets.append(of_some.cpu().numpy())
        self.targets = np.concatenate(targets)

    def _add(self, histories: Tensor, wanted: Tensor, values: Tensor) -> None:
        """values: float [F, B, V] of all items."""
        n_items = values.shape[2]
        if n_items > _WHOLE:
            values[:, :, :FIRST_ITEM] = -torch.inf
            best = values.topk(_KEPT, dim=2).indices.permute(1, 0, 2).flatten(1)
            items = torch.cat([best, histories, wanted.unsqueeze(1)], dim=1).sort(dim=1).values
            repeat = torch.zeros_like(items, dtype=torch.bool)
            repeat[:, 1:] = items[:, 1:] == items[:, :-1]
            items = items.masked_fill(repeat | (items < FIRST_ITEM), n_items).sort(dim=1).values  # n_items: none
            items = items[:, : int((items < n_items).sum(1).max())].contiguous()
            absent = items == n_items
            values = values.gather(2, items.masked_fill(absent, FIRST_ITEM).expand(len(values), -1, -1))
            values[:, absent] = 0
            values[0][absent] = -torch.inf
            values = torch.nn.functional.pad(values, (FIRST_ITEM, 0))
            places = torch.searchsorted(items, histories.contiguous()) + FIRST_ITEM
            histories = places.masked_fill(histories < FIRST_ITEM, 0)
            wanted = torch.searchsorted(items, wanted.unsqueeze(1)).squeeze(1) + FIRST_ITEM
        self._batches.append((histories, wanted))
        self._values.append(values)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._batches)

    def each_feature(
        self, histories: Tensor, items: Tensor | None = None, names: Collection[str] | None = None
    ) -> list[Tensor]:
        """As Ensemble.each_feature, of a batch of its own."""
        number = next(place for place, (one, _) in enumerate(self._batches) if one is histories)
        rows = [place for place, one in enumerate(self.features) if names is None or one.scorer in names]
        values = self._values[number]
        return [values[row] if items is None else values[row].gather(1, items) for row in rows]
