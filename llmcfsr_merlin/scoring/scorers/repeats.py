"""Repeats: was the candidate in the history, how often, and how long ago."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llmcfsr_merlin.config.scorer_settings import RepeatSettings
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import FIRST_ITEM, PAD
from llmcfsr_merlin.scoring.scorer import Feature, FitContext, ItemVectors, Scorer
from llmcfsr_merlin.scoring.search.bound import Bound

RECENCY = 0.8  # decay per step into the past, as in the scorer `transitions`
_GRID = (-32.0, -16.0, -8.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0)


class RepeatScorer(Scorer[RepeatSettings]):
    """1, log(times) and 0.8^age for an item of the history, age 0 for its last item; 0 for all other items.

    What the other scorers make of an item that the history holds says little about whether people return to it: that
    depends on what is sold. Three weights, negative ones too, learn it from the validation items of a log: nobody buys
    a lipstick twice in a row, everybody returns to a restaurant (explicit repeat modes of next-basket models: Ren et
    al. 2019, RepeatNet). Where the history is not ranked at all they stay 0.
    """

    Settings = RepeatSettings
    FEATURES = tuple(Feature(name, _GRID) for name in ("repeat", "repeat_times", "repeat_recent"))
    HISTORY_ONLY = True

    @classmethod
    def fit(
        cls, settings: RepeatSettings, dataset: Dataset, vectors: ItemVectors, context: FitContext
    ) -> "RepeatScorer":
        return cls(settings, dataset.shape, vectors)

    def forward(self, histories: Tensor, items: Tensor | None = None) -> Tensor:
        if items is not None:
            return self._of(histories, items)
        return torch.stack([self._spread(histories, values) for values in self._of(histories, histories)])

    def weighted(self, histories: Tensor, items: Tensor | None = None) -> Tensor:
        if items is not None:
            return super().weighted(histories, items)
        (found,) = self._by([self.weights], histories)
        return found

    def weighted_by(self, weightings: Sequence[Sequence[float]], histories: Tensor) -> list[Tensor]:
        return self._by([self.weights.new_tensor(weights) for weights in weightings], histories)

    def _by(self, weightings: Sequence[Tensor], histories: Tensor) -> list[Tensor]:
        """One [B, V] a weighting, instead of one a feature."""
        values = self._of(histories, histories)
        return [self._spread(histories, torch.einsum("f,fbl->bl", weights, values)) for weights in weightings]

    def _of(self, histories: Tensor, items: Tensor) -> Tensor:
        """Features of items [B, C]: [3, B, C]."""
        places = torch.arange(histories.shape[1], device=histories.device)
        age = ((histories != PAD).sum(1, keepdim=True) - 1 - places).clamp_min(0)
        same = (items.unsqueeze(2) == histories.unsqueeze(1)) & (items >= FIRST_ITEM).unsqueeze(2)  # [B, C, L]
        times = same.sum(2).to(self.weights.dtype)
        recent = (RECENCY ** age.to(self.weights.dtype)).unsqueeze(1) * same
        return torch.stack([times.clamp_max(1), times.clamp_min(1).log(), recent.amax(2)])

    def _spread(self, histories: Tensor, values: Tensor) -> Tensor:
        """Values [B, L] of the items of the histories in their places among all items, [B, V]."""
        # Not new_zeros, whose size a traced graph would keep.
        nothing = torch.zeros_like(histories[:, :1], dtype=values.dtype).expand(-1, self.shape.n_items)
        return nothing.scatter(1, histories, values)

    def bound(self, histories: Tensor) -> Bound:
        values = torch.einsum("f,fbl->bl", self.weights, self._of(histories, histories))
        rows = torch.arange(len(histories))[:, None]
        real = histories >= FIRST_ITEM
        keys, values = (rows * self.shape.n_items + histories)[real], values[real]
        once, place = torch.unique(keys, return_inverse=True)
        return Bound(once, values.new_zeros(len(once)).scatter(0, place, values))  # the same at each of its steps
