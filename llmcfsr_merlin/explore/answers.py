"""What a model answers for one history, the same for a run and for a running server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from llmcfsr_merlin.dataset.names import FIRST_ITEM, history_rule
from llmcfsr_merlin.evaluation.metrics import counts, place
from llmcfsr_merlin.recommender import Recommender
from llmcfsr_merlin.scoring.ranker import select_top_k


@dataclass(frozen=True)
class Recommended:
    """An item, its score, what each feature added to it, and the history's item that it is most like."""

    item: str
    score: float
    shares: Mapping[str, float] = field(default_factory=dict)
    match: str | None = None


@dataclass(frozen=True)
class Answer:
    """items: best first. unknown: ids of the history that the model does not know. fallback: popular items, since it
    knows none of them."""

    items: list[Recommended]
    unknown: int
    fallback: bool


@dataclass(frozen=True)
class Rank:
    """Where an item ranks, from 1. place None: below `asked` places, or, if that is None, unknown to the model."""

    place: int | None
    asked: int | None = None


class Model(Protocol):
    """One column of the page. features: names of what its shares and weights are about, in order."""

    label: str

    @property
    def features(self) -> list[str]: ...

    def answer(
        self, history: Sequence[str], k: int, exclude_seen: bool, weights: Mapping[str, float] | None = None
    ) -> Answer:
        """The best k. weights: instead of those that the model has."""

    def rank(
        self, history: Sequence[str], target: str, exclude_seen: bool, weights: Mapping[str, float] | None = None,
        tie: float = 0.5,
    ) -> Rank:  # fmt: skip
        """Where the target ranks; it takes part even if the history holds it. tie: its place among equals, 0 to 1."""


class RunModel:
    """A trained model of a run."""

    def __init__(self, label: str, recommender: Recommender):
        self.label, self.recommender = label, recommender
        self.ensemble = recommender.ranker.model

    @property
    def features(self) -> list[str]:
        return list(self.ensemble.weights)

    @property
    def grids(self) -> dict[str, tuple[float, ...]]:
        """Feature -> the weights that calibration tried; the first feature, which fixes the scale, has none."""
        return {one.feature.name: one.feature.grid if place else () for place, one in enumerate(self.ensemble.features)}

    def weights(self, exclude_seen: bool) -> dict[str, float]:
        """The weights calibrated for this history rule; the model's own if there are no others."""
        return dict(self.ensemble.history_weights.get(history_rule(exclude_seen)) or self.ensemble.weights)

    def answer(
        self, history: Sequence[str], k: int, exclude_seen: bool, weights: Mapping[str, float] | None = None
    ) -> Answer:
        """As Recommender.answer, with reasons."""
        recommender = self.recommender
        encoded = recommender.encode([list(history)])
        blocked = recommender.blocked(encoded, [exclude_seen], [None], [None])
        weights = weights or self.weights(exclude_seen)
        shares: Sequence[Mapping[str, float]]
        matches: Sequence[str | None]
        if encoded.fallback[0] or weights == self.ensemble.weights:
            items, scores, _ = recommender.rank(encoded, k, blocked)
            reasons = recommender.reasons(encoded, items)[0]
            shares = [reason.shares if reason else {} for reason in reasons]
            matches = [reason.match if reason else None for reason in reasons]
        else:
            items, scores, shares, matches = self._weighted(encoded.item_ids, k, blocked, weights)
        raw = recommender.vocabulary.decode(items[0])
        return Answer(
            [
                Recommended(item, float(score), share, match)
                for item, score, share, match in zip(raw, scores[0], shares, matches)
                if item is not None
            ],
            int(encoded.unknown[0]),
            bool(encoded.fallback[0]),
        )

    @torch.inference_mode()
    def _weighted(
        self, histories: torch.Tensor, k: int, blocked: torch.Tensor | None, weights: Mapping[str, float]
    ) -> tuple[np.ndarray, np.ndarray, list[dict[str, float]], list[str | None]]:
        model = self.ensemble
        histories = histories.to(model.device)
        (scores,) = model.scores_by([weights], histories)
        if blocked is not None:
            scores = scores.masked_fill(blocked, -torch.inf)
        items, best = select_top_k(scores, min(k, scores.shape[1] - FIRST_ITEM))
        found = {name: share[0].tolist() for name, share in model.explain(histories, items, weights).items()}
        shares = [{name: values[place] for name, values in found.items()} for place in range(items.shape[1])]
        match = model.match(histories, items)
        decoded = self.recommender.vocabulary.decode(
            (torch.zeros_like(items) if match is None else match).cpu().numpy()
        )
        return items.cpu().numpy(), best.cpu().numpy(), shares, decoded[0]

    @torch.inference_mode()
    def rank(
        self, history: Sequence[str], target: str, exclude_seen: bool, weights: Mapping[str, float] | None = None,
        tie: float = 0.5,
    ) -> Rank:  # fmt: skip
        """As the full protocol of the evaluation. A history of which nothing is known is ranked by popularity."""
        recommender = self.recommender
        (code,) = recommender.vocabulary.encode([target])
        if code < FIRST_ITEM:
            return Rank(None)
        encoded = recommender.encode([list(history)])
        if exclude_seen and code in encoded.seen[0]:
            return Rank(len(recommender.popularity) - FIRST_ITEM)
        if encoded.fallback[0]:
            scores = recommender.popularity[None].clone()
        else:
            histories = encoded.item_ids.to(self.ensemble.device)
            (scores,) = self.ensemble.scores_by([weights or self.weights(exclude_seen)], histories)
        if exclude_seen:
            scores[:, list(encoded.seen[0])] = -torch.inf
        own = scores[:, code : code + 1]
        return Rank(int(place(*counts(scores[:, FIRST_ITEM:], own), torch.tensor([tie]))[0]))
