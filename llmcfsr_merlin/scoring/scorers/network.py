"""The trained dual-view network as a scorer: the inner product of the user's state and each item's views."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llmcfsr_merlin.config.scorer_settings import NetworkSettings
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.scoring.compiled import SMALL, Compiler, Function
from llmcfsr_merlin.scoring.network.backbones import block_class
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.scoring.network.given_views import CompiledStates
from llmcfsr_merlin.scoring.network.small_batches import SmallBatches, can_record
from llmcfsr_merlin.scoring.scorer import Estimate, Feature, FitContext, ItemVectors, NewItems, Scorer, Shape
from llmcfsr_merlin.scoring.search.bound import Bound, nothing_listed
from llmcfsr_merlin.scoring.search.rounded import Rounded, round_vectors

if TYPE_CHECKING:
    from llmcfsr_merlin.scoring.scorers.rounded_views import RoundedViews

_ASKED, _STEPS = 2000, 8  # random histories, and their longest: what rounded views are turned for
_FEW = 2  # histories up to which reading bytes is faster than one product


class NetworkScorer(Scorer[NetworkSettings]):
    """<state(history), views(item)>, see DualViewNetwork."""

    Settings = NetworkSettings
    FEATURES = (Feature("network"),)
    SAYS_PROGRESS = True
    PER_ITEM = (
        "network.items.collaborative.weight",
        "network.items.confidence",
        "network.items.log_share",
        "network.output.weight",
    )
    READ_WHOLE = ("head",)

    def __init__(self, settings: NetworkSettings, shape: Shape, vectors: ItemVectors):
        super().__init__(settings, shape, vectors)
        self.network = DualViewNetwork(settings, shape.n_items, shape.max_length, vectors)
        self._candidates: Tensor | None = None
        self._given = False  # whether the candidates were read from a file
        self._rounded: Rounded | None = None
        self._small: SmallBatches | None = None
        self._compiled: CompiledStates | None = None
        self._product: Function | None = None
        self._bytes: RoundedViews | None = None

    @classmethod
    def fit(
        cls, settings: NetworkSettings, dataset: Dataset, vectors: ItemVectors, context: FitContext
    ) -> "NetworkScorer":
        scorer = cls(settings, dataset.shape, vectors)
        scorer.network.initialise(torch.from_numpy(dataset.train_counts))
        if isinstance(start := context.start.get("network"), NetworkScorer):
            scorer.network.start_from(start.network)
        context.history.extend(context.train(scorer.network))
        scorer.network.eval()
        return scorer

    def prepare(self, bulk: bool = False) -> None:
        if not self._given:
            self._candidates, self._rounded = self.network.catalogue(self.span), None
        self._small = None if bulk else SmallBatches(self.network.user_states, self.network.max_length)
        self._compiled = self._product = self._bytes = None

    def compile(self, compiler: Compiler) -> None:
        self._compiled = CompiledStates.by(compiler, self.network)
        self._product = compiler.product(self.catalogue) if compiler.products else None
        if compiler.products and self.span is None and self.shape.n_items <= SMALL:
            from llmcfsr_merlin.scoring.scorers.rounded_views import RoundedViews  # compiles its loops

            self._bytes = RoundedViews(self.catalogue)

    def _apply(self, *arguments: Any, **options: Any) -> "NetworkScorer":
        # Their device and dtype move with the weights.
        self._candidates = self._small = self._compiled = self._product = self._bytes = self._rounded = None
        self._given = False
        return super()._apply(*arguments, **options)

    @property
    def catalogue(self) -> Tensor:
        """Every item (of the span, if there is one) as a candidate, [V, views * d]."""
        if self._candidates is None:
            self.prepare()
        assert self._candidates is not None
        return self._candidates

    def forward(self, histories: Tensor, items: Tensor | None = None) -> Tensor:
        states = self.states(histories)
        if items is None:
            return self._of_catalogue(states).unsqueeze(0)
        candidates = self.catalogue[items] if self.span is None else self.network.candidates(items)
        return (candidates @ states.unsqueeze(-1)).squeeze(-1).unsqueeze(0)

    def add_to(self, histories: Tensor, total: Tensor) -> None:
        total += self._of_catalogue(self.weights * self.states(histories))

    def estimates(self, rows: int) -> bool:
        return self._bytes is not None and rows <= _FEW

    def add_estimate(self, histories: Tensor, total: Tensor) -> Estimate:
        assert self._bytes is not None
        states = self.weights * self.states(histories)
        error = self._bytes.add_products(states, total)
        return Estimate(error, lambda items: (self.catalogue[items] @ states.unsqueeze(-1)).squeeze(-1))

    def of_span(self, histories: Tensor, span: slice) -> Tensor:
        return self.weights[0] * self._of_catalogue(self.states(histories))

    def _of_catalogue(self, states: Tensor) -> Tensor:
        return states @ self.catalogue.T if self._product is None else self._product(states)

    def states(self, histories: Tensor) -> Tensor:
        """The states of the users, float [B, views * d]."""
        if self._compiled is not None:
            return self._compiled(histories)
        if self._small is not None and can_record(self.network, histories):
            return self._small(histories)
        return self.network.user_states(histories)

    def tables(self) -> dict[str, Tensor]:
        """The views of all items, in full and rounded."""
        return {"catalogue": self.catalogue.cpu()} | self.rounded._asdict()

    def take_tables(self, tables: Mapping[str, Tensor]) -> None:
        self._candidates, self._given = tables["catalogue"].to(self.weights.device), True
        self._rounded = Rounded(**{name: tables[name] for name in Rounded._fields})

    @property
    def rounded(self) -> Rounded:
        """The views in one byte a number, turned for states of random histories. Made when they are first needed."""
        if self._rounded is None:
            random = torch.Generator().manual_seed(0)
            histories = torch.randint(FIRST_ITEM, self.shape.n_items, (_ASKED, _STEPS), generator=random)
            histories *= torch.arange(_STEPS) < torch.randint(1, _STEPS + 1, (_ASKED, 1), generator=random)
            asked = self.network.user_states(histories[:, : self.shape.max_length].to(self.weights.device))
            self._rounded = round_vectors(lambda own: self.catalogue[own].cpu(), self.shape.n_items, asked.cpu())
        return self._rounded

    def bound(self, histories: Tensor) -> Bound:
        states = self.weights * self.states(histories)
        return Bound(*nothing_listed(), asked=[self.rounded.query(state) for state in states], own=states)

    def add_bound(self, bound: Bound, row: int, total: Tensor) -> None:
        self.rounded.add_upper(bound.asked[row], total)

    def excess(self, bound: Bound, row: int, history: Tensor, items: Tensor) -> Tensor:
        return self.rounded.excess(bound.asked[row], items)

    def rescore(self, bound: Bound, row: int, history: Tensor, items: Tensor) -> Tensor:
        assert bound.own is not None
        return self.catalogue[items] @ bound.own[row]

    @property
    def scores_new_items(self) -> bool:
        return self.network.items.semantic is not None

    def check_new_items(self) -> None:
        if self.network.backwards is not None:
            raise InputError("a network with prior_items ranks the items of its training: a new item needs retraining")
        if self.network.items.null_space is not None:
            raise InputError("each item of a null_space view has a trained row: a new item needs retraining")

    def append_items(self, new: NewItems) -> None:
        super().append_items(new)
        self.network.n_items = self.shape.n_items
        if self.network.items.collaborative is not None:
            self.network.items.collaborative.num_embeddings = self.shape.n_items
        if self.network.output is not None:
            self.network.output.num_embeddings = self.shape.n_items
        self._candidates = self._small = self._compiled = self._product = self._bytes = self._rounded = None
        self._given = False

    @classmethod
    def memory_bytes(cls, settings: NetworkSettings, shape: Shape) -> int:
        """Six values per weight: itself, its gradient, two Adam moments, and two more while a checkpoint is written."""
        weights = shape.n_items * settings.hidden if settings.views != ("semantic",) else 0
        if block_class(settings.backbone).OWN_OUTPUT:
            weights += shape.n_items * (settings.hidden + 1)
        candidates = shape.n_items * settings.hidden * len(settings.views)
        return 4 * (6 * weights + 2 * candidates) * (2 if settings.prior_items else 1)

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
