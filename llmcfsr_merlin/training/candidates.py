"""The features of a few candidates of each validation user, kept: score weights are tried without scoring again."""

from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.scoring.ensemble import Ensemble
from llmcfsr_merlin.training.validation_ranks import Point, feature_places

KEPT = 100  # items of each feature, for each user
_ROWS = 64  # users scored together


class Candidates:
    """Stands in for the model and for the batches in validation_ranks: a catalogue of its own for each user, whose ids
    are places among the candidates. targets: the real ids, int64 [N].

    The candidates are the best items by each feature (what is among the first ten by a sum ranks high by one of its
    terms), the best by the sums of given weights, the history and the target. A rank among them is at most the rank
    among all items, and NDCG at least as large.
    """

    @torch.inference_mode()
    def __init__(self, model: Ensemble, batches: Iterable[tuple[Tensor, Tensor]], points: Sequence[Point] = ()):
        """batches: histories int64 [B, L] and targets int64 [B] (ValidationBatches). points: weights by whose sums the
        best items are candidates, too. The model is prepared (`prepare(bulk=True)`) by the caller."""
        self.features, self.names, self.scorers = model.features, model.names, model.scorers
        self._everywhere = feature_places(model)[0]
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._values: list[list[Tensor]] = []
        self._numbers: dict[int, int] = {}
        targets = []
        for histories, wanted in batches:
            for start in range(0, len(wanted), _ROWS):
                some, of_some = histories[start : start + _ROWS], wanted[start : start + _ROWS]
                self._add(some, of_some, model.each_feature(some), points)
                targets.append(of_some.cpu().numpy())
        self.targets = np.concatenate(targets)

    def _add(self, histories: Tensor, wanted: Tensor, values: list[Tensor], points: Sequence[Point]) -> None:
        """values: float [B, V] of all items, one of each feature."""
        n_items = values[0].shape[1]
        kept = min(KEPT, n_items)
        best = [values[place].topk(kept, dim=1).indices for place in self._everywhere]
        for point in points:
            total = torch.zeros_like(values[0])
            for value, weight in zip(values, point):
                total.add_(value, alpha=weight)
            best.append(total.topk(kept, dim=1).indices)
        items = torch.cat([*best, histories, wanted.unsqueeze(1)], dim=1).sort(dim=1).values
        repeat = torch.zeros_like(items, dtype=torch.bool)
        repeat[:, 1:] = items[:, 1:] == items[:, :-1]
        items = items.masked_fill(repeat | (items < FIRST_ITEM), n_items).sort(dim=1).values  # n_items: none
        items = items[:, : int((items < n_items).sum(1).max())].contiguous()
        absent = items == n_items
        there = items.masked_fill(absent, FIRST_ITEM)
        some = [value.gather(1, there).masked_fill_(absent, 0.0) for value in values]
        some[0].masked_fill_(absent, -torch.inf)
        places = torch.searchsorted(items, histories.contiguous()) + FIRST_ITEM
        histories = places.masked_fill(histories < FIRST_ITEM, 0)
        self._numbers[id(histories)] = len(self._batches)
        self._batches.append((histories, torch.searchsorted(items, wanted.unsqueeze(1)).squeeze(1) + FIRST_ITEM))
        self._values.append([torch.nn.functional.pad(value, (FIRST_ITEM, 0)) for value in some])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._batches)

    def each_feature(
        self, histories: Tensor, items: Tensor | None = None, names: Collection[str] | None = None
    ) -> list[Tensor]:
        """As Ensemble.each_feature, of a batch of its own."""
        values = self._values[self._numbers[id(histories)]]
        chosen = [value for one, value in zip(self.features, values) if names is None or one.scorer in names]
        return chosen if items is None else [value.gather(1, items) for value in chosen]
