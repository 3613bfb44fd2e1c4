"""Popularity as a scorer: alone it is the baseline, beside others a prior."""

import torch
from torch import Tensor

from llmcfsr_merlin.config.scorer_settings import PopularitySettings
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.scoring.scorer import Feature, FitContext, ItemVectors, Scorer, Shape
from llmcfsr_merlin.scoring.search.bound import Bound, nothing_listed


class PopularityScorer(Scorer[PopularitySettings]):
    """log(1 + training interactions of i), the same for every history."""

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
        scorer.log_counts.copy_(torch.from_numpy(dataset.train_counts).float().log1p())
        return scorer

    def forward(self, histories: Tensor, items: Tensor | None = None) -> Tensor:
        if items is not None:
            return self.log_counts[items].unsqueeze(0)
        return (torch.zeros_like(histories[:, :1], dtype=self.log_counts.dtype) + self.log_counts).unsqueeze(0)

    def of_span(self, histories: Tensor, span: slice) -> Tensor:
        return (self.weights[0] * self.log_counts[span]).expand(len(histories), -1)

    def ceiling(self) -> Tensor:
        return self.weights[0] * self.log_counts

    def bound(self, histories: Tensor) -> Bound:
        return Bound(*nothing_listed())
