"""Popularity as a scorer: alone it is the baseline, beside others a prior."""

import numpy as np
import torch
from torch import Tensor

from llmcfsr_merlin.config.scorer_settings import PopularitySettings
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.scoring.scorer import Feature, FitContext, ItemVectors, Scorer, Shape
from llmcfsr_merlin.scoring.search.bound import Bound, nothing_listed


class PopularityScorer(Scorer[PopularitySettings]):
    """log(1 + sum over the training interactions of i of decay^age), the same for every history.

    age: how many interactions of the same user came later. What people took last is closer to what they take next than
    what they ever took, and a log need not have times to tell (a popularity that follows time: Ji et al. 2020, arXiv
    2005.13829).
    """

    Settings = PopularitySettings
    FEATURES = (Feature("popularity", (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0)),)
    PER_ITEM = ("log_counts",)

    log_counts: Tensor

    def __init__(self, settings: PopularitySettings, shape: Shape, vectors: ItemVectors):
        super().__init__(settings, shape, vectors)
        self.register_buffer("log_counts", torch.zeros(shape.n_items))

    @classmethod
    def fit(
        cls, settings: PopularitySettings, dataset: Dataset, vectors: ItemVectors, context: FitContext
    ) -> "PopularityScorer":
        scorer = cls(settings, dataset.shape, vectors)
        counts = dataset.train_counts if settings.decay == 1 else decayed_counts(dataset, settings.decay)
        scorer.log_counts.copy_(torch.from_numpy(counts).float().log1p())
        return scorer

    def forward(self, histories: Tensor, items: Tensor | None = None) -> Tensor:
        if items is not None:
            return self.log_counts[items].unsqueeze(0)
        return (torch.zeros_like(histories[:, :1], dtype=self.log_counts.dtype) + self.log_counts).unsqueeze(0)

    def add_to(self, histories: Tensor, total: Tensor) -> None:
        total += self.weights * self.log_counts

    def of_span(self, histories: Tensor, span: slice) -> Tensor:
        return (self.weights[0] * self.log_counts[span]).expand(len(histories), -1)

    def ceiling(self) -> Tensor:
        return self.weights[0] * self.log_counts

    def bound(self, histories: Tensor) -> Bound:
        return Bound(*nothing_listed())


def decayed_counts(dataset: Dataset, decay: float) -> np.ndarray:
    """float64 [V]: the training interactions of each item, times decay for every later one of the same user."""
    counts = np.zeros(dataset.shape.n_items)
    for sequences in filter(None, dataset.sequences()):  # a block may hold users without a training part alone
        lengths = np.array([len(sequence) for sequence in sequences])
        age = np.repeat(lengths.cumsum(), lengths) - 1 - np.arange(lengths.sum())
        counts += np.bincount(np.concatenate(sequences), decay**age, len(counts))
    return counts
