"""Item-to-item transitions: which items follow which in the training sequences."""

import torch
from torch import Tensor

from llmcfsr_merlin.config.scorer_settings import TransitionSettings
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import PAD
from llmcfsr_merlin.scoring.scorer import Feature, FitContext, ItemVectors, Scorer, Shape
from llmcfsr_merlin.scoring.scorers.transition_counts import BACKWARD, count_transitions
from llmcfsr_merlin.scoring.scorers.transition_counts_gpu import count_transitions_on, fits

RECENCY = 0.8  # decay per step into the past


class TransitionScorer(Scorer[TransitionSettings]):
    """log(1 + 100 * sum over t of 0.8^age(t) * w(h_t, i)), age 0 for the last item of the history.

    w(h, i) is the weight of the transition from h to i (transition_counts.py), kept for the `neighbours` largest of
    each h: co-occurrence that a d-dimensional embedding cannot represent. 0 for what never followed the history.
    """

    Settings = TransitionSettings
    FEATURES = (Feature("transitions"),)
    PER_ITEM = ("next_items", "next_weights")

    next_items: Tensor
    next_weights: Tensor

    def __init__(self, settings: TransitionSettings, shape: Shape, vectors: ItemVectors):
        super().__init__(settings, shape, vectors)
        table = (shape.n_items, settings.neighbours)
        self.register_buffer("next_items", torch.zeros(table, dtype=torch.int32))
        self.register_buffer("next_weights", torch.zeros(table))

    @classmethod
    def fit(cls, settings: TransitionSettings, dataset: Dataset, vectors: ItemVectors, context: FitContext):
        context.report("counting item-to-item transitions")
        scorer = cls(settings, dataset.shape, vectors)
        known = dataset.files("train"), dataset.shape.n_items, dataset.train_counts, settings.neighbours
        backward = BACKWARD if settings.directed else 1.0
        if fits(dataset.train_counts, context.device):
            items, weights = count_transitions_on(context.device, *known, backward=backward)
        else:
            items, weights = count_transitions(*known, context.scratch, backward=backward)
        scorer.next_items.copy_(torch.from_numpy(items))
        scorer.next_weights.copy_(torch.from_numpy(weights))
        return scorer

    def forward(self, histories: Tensor, items: Tensor | None = None) -> Tensor:
        weights = self._decayed(histories)
        # Not new_zeros: a traced graph would hard-code its size.
        sums = torch.zeros_like(histories[:, :1], dtype=weights.dtype).expand(-1, self.shape.n_items)
        sums = sums.scatter_add(1, self.next_items[histories].long().flatten(1), weights.flatten(1))
        if items is not None:
            sums = sums.gather(1, items)
        return sums.mul(100).log1p().unsqueeze(0)

    def candidates(self, histories: Tensor, count: int) -> Tensor:
        """The neighbours with the largest weight; an item that occurs twice counts with its larger one."""
        weights = self._decayed(histories).flatten(1)
        best = weights.topk(min(count, weights.shape[1]), dim=1)
        return self.next_items[histories].long().flatten(1).gather(1, best.indices).masked_fill(best.values == 0, PAD)

    def _decayed(self, histories: Tensor) -> Tensor:
        """[B, L, neighbours]; PAD has no neighbours."""
        places = torch.arange(histories.shape[1], device=histories.device)
        age = ((histories != PAD).sum(1, keepdim=True) - 1 - places).clamp_min(0)
        return self.next_weights[histories] * (RECENCY**age).unsqueeze(-1)

    @classmethod
    def memory_bytes(cls, settings: TransitionSettings, shape: Shape) -> int:
        """Ids and weights, twice: once more while counting and in a checkpoint."""
        return 4 * 3 * 2 * shape.n_items * settings.neighbours
