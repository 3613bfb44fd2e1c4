"""The trained dual-view network as a scorer: the inner product of the user's state and each item's views."""

from typing import Any

import torch
from torch import Tensor, nn

from llmcfsr_merlin.config.scorer_settings import NetworkSettings
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.scoring.network.small_batches import SmallBatches, can_record
from llmcfsr_merlin.scoring.scorer import Feature, FitContext, ItemVectors, NewItems, Scorer, Shape


class NetworkScorer(Scorer[NetworkSettings]):
    """<state(history), views(item)>, see DualViewNetwork."""

    Settings = NetworkSettings
    FEATURES = (Feature("network"),)
    SAYS_PROGRESS = True
    PER_ITEM = (
        "network.items.collaborative.weight",
        "network.items.confidence",
        "network.items.log_share",
    )

    def __init__(self, settings: NetworkSettings, shape: Shape, vectors: ItemVectors):
        super().__init__(settings, shape, vectors)
        self.network = DualViewNetwork(settings, shape.n_items, shape.max_length, vectors)
        self._candidates: Tensor | None = None
        self._small: SmallBatches | None = None

    @classmethod
    def fit(
        cls, settings: NetworkSettings, dataset: Dataset, vectors: ItemVectors, context: FitContext
    ) -> "NetworkScorer":
        scorer = cls(settings, dataset.shape, vectors)
        scorer.network.initialise(torch.from_numpy(dataset.train_counts))
        context.history.extend(context.train(scorer.network))
        scorer.network.eval()
        return scorer

    def prepare(self, bulk: bool = False) -> None:
        self._candidates = self.network.catalogue()
        self._small = None if bulk else SmallBatches(self.network.user_states, self.network.max_length)

    def _apply(self, *arguments: Any, **options: Any) -> "NetworkScorer":
        self._candidates = self._small = None  # a device and dtype that moves with the weights
        return super()._apply(*arguments, **options)

    @property
    def catalogue(self) -> Tensor:
        """Every item as a candidate, [V, views * d]."""
        if self._candidates is None:
            self.prepare()
        assert self._candidates is not None
        return self._candidates

    def forward(self, histories: Tensor, items: Tensor | None = None) -> Tensor:
        if self._small is not None and can_record(self.network, histories):
            states = self._small(histories)
        else:
            states = self.network.user_states(histories)
        if items is None:
            return (states @ self.catalogue.T).unsqueeze(0)
        return (self.catalogue[items] @ states.unsqueeze(-1)).squeeze(-1).unsqueeze(0)

    @property
    def scores_new_items(self) -> bool:
        return self.network.items.semantic is not None

    def check_new_items(self) -> None:
        if self.network.items.null_space is not None:
            raise InputError("each item of a null_space view has a trained row: a new item needs retraining")

    def append_items(self, new: NewItems) -> None:
        super().append_items(new)
        self.network.n_items = self.shape.n_items
        if self.network.items.collaborative is not None:
            self.network.items.collaborative.num_embeddings = self.shape.n_items
        self._candidates = self._small = None

    @classmethod
    def memory_bytes(cls, settings: NetworkSettings, shape: Shape) -> int:
        """Six values per weight: itself, its gradient, two Adam moments, and two more while a checkpoint is written."""
        weights = shape.n_items * settings.hidden if settings.views != ("semantic",) else 0
        candidates = shape.n_items * settings.hidden * len(settings.views)
        return 4 * (6 * weights + 2 * candidates)

    def graph(self, batch_size: int = 64) -> nn.Module:
        return _Graph(self)


class _Graph(nn.Module):
    """The network with precomputed item views: the frozen vectors and their adapter are no longer needed."""

    candidates: Tensor
    weight: Tensor

    def __init__(self, scorer: NetworkScorer, chunk: int = 65536):
        super().__init__()
        self.network = DualViewNetwork(scorer.settings, *scorer.shape[:2], scorer.vectors)
        self.network.load_state_dict(scorer.network.state_dict())
        self.network.eval()
        self.network.add_module("items", _ComputedViews(scorer.network, chunk))
        self.register_buffer("candidates", scorer.catalogue.T.contiguous())
        self.register_buffer("weight", scorer.weights.clone())

    def forward(self, histories: Tensor) -> Tensor:
        return self.weight * (self.network.user_states(histories) @ self.candidates)


class _ComputedViews(nn.Module):
    def __init__(self, network: DualViewNetwork, chunk: int):
        super().__init__()
        parts = torch.arange(network.n_items, device=network.device).split(chunk)
        views = zip(*(network.items(part) for part in parts))
        self.views = nn.ParameterList(nn.Parameter(torch.cat(view), requires_grad=False) for view in views)

    def forward(self, items: Tensor) -> list[Tensor]:
        return [nn.functional.embedding(items, view) for view in self.views]
