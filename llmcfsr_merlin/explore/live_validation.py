"""Validation figures for any score weights, fast enough for a slider: features of a few candidates are kept.

A sample of validation users is scored once, and their candidates are ranked, as the calibration does
(training/candidates.py).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmcfsr_merlin.dataset.names import HISTORY_RULES, MASKED
from llmcfsr_merlin.scoring.ensemble import Ensemble
from llmcfsr_merlin.training.calibration import best_tail, climb, trade
from llmcfsr_merlin.training.candidates import Candidates
from llmcfsr_merlin.training.validation_ranks import Point, feature_places, ndcg, validation_ranks

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
        self._kept = Candidates(model, batches)
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
        _, found = validation_ranks(self._kept, self._kept, new)
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
