"""The model: scorers and their weights. Everything that needs a score uses the ensemble, which knows no scorer by
name."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from llmcfsr_merlin.config.model_settings import ModelConfig
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import FIRST_ITEM, MASKED
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.progress import announced
from llmcfsr_merlin.scoring.compiled import Compiler
from llmcfsr_merlin.scoring.registry import scorer_class
from llmcfsr_merlin.scoring.scorer import Feature, FitContext, ItemVectors, NewItems, Scorer, Shape

_ALL_ZERO = "every score weight of the model is 0: calibrate it, or set a weight"


class WeightedFeature(NamedTuple):
    """A feature, its scorer's name, and its position among the scorer's weights."""

    scorer: str
    place: int
    feature: Feature


class Ensemble(nn.Module):
    """score(u, i) = sum over scorers and their features of weight * feature; -inf on reserved rows, retired items."""

    def __init__(self, config: ModelConfig, scorers: Mapping[str, Scorer], shape: Shape, vectors: ItemVectors):
        super().__init__()
        self.config, self.shape = config, shape
        self.names = list(scorers)
        self.parts = nn.ModuleList(scorers.values())
        self.vectors = vectors
        self.history_weights: dict[str, dict[str, float]] = {}
        """History rule (names.HISTORY_RULES) -> the score weights calibrated for it; empty if only
        `weights` are known."""
        self.history_rule: str | None = None
        """The rule that the model was trained by, and that a question which says nothing of it follows; None: of an
        earlier version, which kept no record."""
        self.retired: Tensor
        self.register_buffer("retired", torch.zeros(0, dtype=torch.int64), persistent=False)
        self._active: list[Scorer] | None = None
        self.span: slice | None = None
        if self.names and not any(bool(part.weights.any()) for part in self._parts):
            self._parts[0].weights[0] = 1.0  # the scale of a score is arbitrary: the first feature fixes it

    @classmethod
    def fit(cls, config: ModelConfig, dataset: Dataset, context: FitContext) -> "Ensemble":
        """Fit every scorer of a model on a dataset; only the first scorer has a weight until calibration."""
        vectors = ItemVectors(dataset.shape, config.lexical_share)
        for name in ("semantic", "lexical"):
            if getattr(vectors, name) is not None:
                getattr(vectors, name).copy_(torch.from_numpy(dataset.vectors(name)))
        scorers = {}
        for name, settings in config.scorers.items():
            kind = scorer_class(name)
            with nullcontext() if kind.SAYS_PROGRESS else announced(f"scorer {name}"):
                scorers[name] = kind.fit(settings, dataset, vectors, context)
        return cls(config, scorers, dataset.shape, vectors).eval()

    @classmethod
    def empty(cls, config: ModelConfig, shape: Shape) -> "Ensemble":
        """An unfitted model, to load a state into."""
        vectors = ItemVectors(shape, config.lexical_share)
        scorers = {name: scorer_class(name)(settings, shape, vectors) for name, settings in config.scorers.items()}
        return cls(config, scorers, shape, vectors)

    @property
    def scorers(self) -> dict[str, Scorer]:
        return dict(zip(self.names, self._parts))

    @property
    def _parts(self) -> list[Scorer]:
        return cast(list[Scorer], list(self.parts))

    @property
    def device(self) -> torch.device:
        return self._parts[0].weights.device

    @property
    def features(self) -> list[WeightedFeature]:
        """All features in order."""
        return [
            WeightedFeature(name, place, feature)
            for name, part in self.scorers.items()
            for place, feature in enumerate(part.FEATURES)
        ]

    @property
    def weights(self) -> dict[str, float]:
        """Feature -> weight."""
        return {f.feature.name: float(self.scorers[f.scorer].weights[f.place]) for f in self.features}

    @property
    def excludes_seen(self) -> bool:
        """Whether the items of a history are left out where a question does not say."""
        return self.history_rule == MASKED

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Set the weights of some features, by name, for both history rules."""
        places = {f.feature.name: f for f in self.features}
        for name, weight in weights.items():
            self.scorers[places[name].scorer].weights[places[name].place] = weight
        for part in self._parts:
            part.weights_changed()
        self._active, self.history_weights = None, {}

    @property
    def active(self) -> list[Scorer]:
        """The scorers with a nonzero weight. Cached after `prepare` or `set_weights`: on a GPU this check
        synchronises."""
        if self._active is None:
            self._active = [part for part in self._parts if bool(part.weights.any())]
        return self._active

    def prepare(self, bulk: bool = False) -> "Ensemble":
        """Precompute what all scores share. bulk: many histories will be scored."""
        self._active = None
        with torch.no_grad():
            for part in self._parts:
                part.prepare(bulk)
        return self

    def restrict(self, span: slice) -> None:
        """Score the items of a span of encoded ids alone, whatever a history holds; before `prepare`."""
        self.span = span
        for part in self._parts:
            part.span = span

    def compile(self, compiler: Compiler) -> None:
        """Let a faster runtime compute parts of the scores, until `prepare` is called again."""
        for part in self.active:
            part.compile(compiler)

    def scores(self, histories: Tensor, items: Tensor | None = None) -> Tensor:
        """histories: int64 [B, L] right-padded -> float32 [B, V], or [B, C] for candidates int64 [B, C] of each row.

        Restricted to a span: [B, span] instead of [B, V].
        """
        total = None
        for part in self.active:
            if self.span is not None and items is None:
                score = part.of_span(histories, self.span)
            else:
                score = part.weighted(histories, items)
            total = score if total is None else total + score
        if total is None:
            raise InputError(_ALL_ZERO)
        if items is None:
            return self._masked(total)
        out = items < FIRST_ITEM
        if len(self.retired):
            out |= torch.isin(items, self.retired)
        return total.masked_fill(out, -torch.inf).float()

    def _masked(self, total: Tensor) -> Tensor:
        retired = self.retired
        if self.span is None:
            total[:, :FIRST_ITEM] = -torch.inf
        else:
            retired = retired[(retired >= self.span.start) & (retired < self.span.stop)] - self.span.start
        if len(retired):
            total[:, retired] = -torch.inf
        return total.float()

    def scores_by_history(self, histories: Tensor) -> dict[str, Tensor]:
        """As `scores` with each rule's weights of `history_weights`: rule -> float32 [B, V].

        Features are computed once; rules of equal weights share one tensor.
        """
        rules = self.history_weights
        distinct = list({tuple(weights.values()): weights for weights in rules.values()}.values())
        if len(distinct) == 1:
            return dict.fromkeys(rules, self.scores(histories))
        found = self.scores_by(distinct, histories)
        return {rule: found[distinct.index(weights)] for rule, weights in rules.items()}

    def scores_by(self, weightings: Sequence[Mapping[str, float]], histories: Tensor) -> list[Tensor]:
        """As `scores` with each of several weightings, feature -> weight, instead of the model's own: a float32 [B, V]
        each. Features are computed once.
        """
        totals: list[Tensor | None] = [None] * len(weightings)
        for part in self._parts:
            of_part = [[weights[feature.name] for feature in part.FEATURES] for weights in weightings]
            used = [number for number, weights in enumerate(of_part) if any(weights)]
            for number, score in zip(used, part.weighted_by([of_part[number] for number in used], histories)):
                before = totals[number]
                totals[number] = score if before is None else before + score
        found = []
        for total in totals:
            if total is None:
                raise InputError(_ALL_ZERO)
            found.append(self._masked(total))
        return found

    def each_feature(
        self, histories: Tensor, items: Tensor | None = None, names: Collection[str] | None = None
    ) -> list[Tensor]:
        """All features, unweighted, in the order of `features`: float [B, V] each, or [B, C]; not to be changed, since
        they may be the model's own.

        names: of the scorers whose features are meant; None: all.
        """
        parts = [part for name, part in self.scorers.items() if names is None or name in names]
        return [feature for part in parts for feature in part(histories, items)]

    def explain(
        self, histories: Tensor, items: Tensor, weights: Mapping[str, float] | None = None
    ) -> dict[str, Tensor]:
        """What each feature adds to the score of items int64 [B, C]: feature -> float [B, C]; they sum to the score.

        weights: instead of the model's own.
        """
        values, weights = self.each_feature(histories, items), weights or self.weights
        return {name: weights[name] * value for name, value in zip(self.weights, values)}

    def match(self, histories: Tensor, items: Tensor) -> Tensor | None:
        """As Scorer.match, of the first scorer with a weight that can tell."""
        found = (part.match(histories, items) for part in self.active)
        return next((codes for codes in found if codes is not None), None)

    def retire(self, items: Sequence[int]) -> None:
        """Recommend these encoded ids no more: they score -inf, whichever were retired before. Histories with them are
        read as ever."""
        self.retired = torch.tensor(sorted(set(items)), dtype=torch.int64, device=self.device)
        if len(self.retired) and not FIRST_ITEM <= int(self.retired[0]) <= int(self.retired[-1]) < self.shape.n_items:
            raise ValueError(f"expected retired ids {FIRST_ITEM} to {self.shape.n_items - 1}")

    def append_items(self, new: NewItems) -> None:
        """Add items that no training has seen; encoded ids and scores of the old items do not change.

        InputError if no scorer with a weight could score them, or one cannot grow.
        """
        if not any(part.scores_new_items for part in self._parts):
            raise InputError(
                "expected a model that scores items by their text (a semantic view or a content score), found "
                f"{self.config.name}, where each item has a row of its own: a new item needs retraining there"
            )
        for part in self._parts:
            part.check_new_items()
        self.grow(new)

    def grow(self, new: NewItems) -> None:
        """append_items without its checks: for a model that is trained on the new items before it scores them."""
        self.vectors.append(new)
        for part in self._parts:
            part.append_items(new)
        self.shape = self.shape._replace(n_items=self.shape.n_items + new.count)

    def graph(self, batch_size: int = 64) -> nn.Module:
        """histories int64 [B, L] -> scores float [B, V] as a traceable module; reserved rows are not masked."""
        return _Sum([part.graph(batch_size) for part in self.active])


class _Sum(nn.Module):
    def __init__(self, parts: list[nn.Module]):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, histories: Tensor) -> Tensor:
        total = self.parts[0](histories)
        for part in self.parts[1:]:
            total = total + part(histories)
        return total
