"""The scorer interface: one term of the score. Your own scorer is a subclass in one file, named in a recipe.

score(user, item) = sum over the scorers and their features of weight * feature(history, item)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from llmcfsr_merlin.config.section import Section
from llmcfsr_merlin.dataset.dataset import Dataset, Shape
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.scoring.compiled import Compiler
from llmcfsr_merlin.scoring.search.bound import Bound, nothing_listed

SettingsT = TypeVar("SettingsT", bound=Section)
WEIGHT_GRID = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class Feature(NamedTuple):
    """One column of a scorer's output. grid: the weights that calibration tries for it.

    untrained: it is 0 for all items but those that training saw too little of to know them. Few validation items are of
    that kind, so that they have a calibration of their own (training/calibration.py).
    """

    name: str
    grid: tuple[float, ...] = WEIGHT_GRID
    untrained: bool = False


class Estimate(NamedTuple):
    """error: what each estimated score is off by at most. exact: items int64 [B, C] -> their weighted scores [B, C]."""

    error: float
    exact: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class NewItems:
    """Items that no training has seen. semantic: float32 [n, D], lexical: [n, E], None if the model reads none."""

    count: int
    semantic: Tensor | None = None
    lexical: Tensor | None = None


class ItemVectors(nn.Module):
    """The frozen vectors of all items, one copy shared by all scorers; rows of reserved ids are zero.

    lexical_share: of the lexical vectors in the cosine of two items' texts, the model's (config/model_settings.py).
    """

    semantic: Tensor | None
    lexical: Tensor | None

    def __init__(self, shape: Shape, lexical_share: float = 0.0):
        super().__init__()
        self.lexical_share = lexical_share
        for name in ("semantic", "lexical"):
            dimension = getattr(shape, name)
            # Not persistent: training never changes them, but every checkpoint would contain them.
            empty = None if dimension is None else torch.zeros(shape.n_items, dimension)
            self.register_buffer(name, empty, persistent=False)

    def append(self, new: NewItems) -> None:
        for name in ("semantic", "lexical"):
            kept, added = getattr(self, name), getattr(new, name)
            if kept is None:
                continue
            if added is None or added.shape != (new.count, kept.shape[1]):
                found = "none" if added is None else f"shape {tuple(added.shape)}"
                raise InputError(
                    f"expected {name} vectors of shape {(new.count, kept.shape[1])} as in training, found {found}: "
                    "use the same encoder"
                )
            setattr(self, name, torch.cat([kept, added.to(kept)]))


@dataclass(frozen=True)
class FitContext:
    """The context of `fit`, besides the data.

    scratch: a folder for temporary files. train: trains a network in place and returns its history (one dict per
    epoch); the recipe sets the procedure. report: called with progress lines. device: to fit on. start: a fitted scorer
    of the same settings and items by name, whose weights a training goes on from.
    """

    scratch: Path
    train: Callable[[nn.Module], list[dict]]
    report: Callable[[str], None] = lambda line: None
    history: list[dict] = field(default_factory=list)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    start: Mapping[str, "Scorer"] = field(default_factory=dict)


class Scorer(nn.Module, Generic[SettingsT]):
    """One term of the score.

    Subclasses set Settings and FEATURES and implement `fit` and `forward`; state lives in parameters and buffers, so
    that it is saved as safetensors and moved to a device like any module's. `forward` must be traceable by
    torch.jit.trace for the exported graphs (or `graph` returns a module that is).
    """

    Settings: ClassVar[type[Section]] = Section
    FEATURES: ClassVar[tuple[Feature, ...]] = (Feature("score"),)
    HISTORY_ONLY: ClassVar[bool] = False
    """Whether its features are 0 for every item that the history does not hold. Calibration weighs them for the rule
    that keeps the history, and leaves them at 0 for the one that masks it."""
    SAYS_PROGRESS: ClassVar[bool] = False
    """Whether `fit` says how far it is; of the others it is logged that they still run."""
    PER_ITEM: ClassVar[tuple[str, ...]] = ()
    """Dotted names of the parameters and buffers whose first dimension is V."""
    DATA_SIZED: ClassVar[tuple[str, ...]] = ()
    """Names of the buffers whose shape depends on the data: they take the saved shape."""
    READ_WHOLE: ClassVar[tuple[str, ...]] = ()
    """Names of the `tables` that every request reads whole, not a few rows of."""

    weights: Tensor
    """float [F], one per feature."""

    def __init__(self, settings: SettingsT, shape: Shape, vectors: ItemVectors):
        super().__init__()
        self.settings, self.shape = settings, shape
        self.vectors = vectors
        self.span: slice | None = None
        self.register_buffer("weights", torch.zeros(len(self.FEATURES)))

    @classmethod
    def fit(cls, settings: SettingsT, dataset: Dataset, vectors: ItemVectors, context: FitContext) -> "Scorer":
        """A scorer fitted on the training part of a dataset."""
        raise NotImplementedError

    def forward(self, histories: Tensor, items: Tensor | None = None) -> Tensor:
        """histories: int64 [B, L], oldest first, right-padded with 0 -> features float [F, B, V].

        items: int64 [B, C], candidates of each row -> [F, B, C]. Values of reserved rows are ignored.
        """
        raise NotImplementedError

    def weighted(self, histories: Tensor, items: Tensor | None = None) -> Tensor:
        """The features summed by their weights, float [B, V] or [B, C]."""
        features = self(histories, items)
        if len(self.FEATURES) == 1:
            return self.weights[0] * features[0]
        return torch.einsum("f,fbv->bv", self.weights, features)

    def of_span(self, histories: Tensor, span: slice) -> Tensor:
        """`weighted` of the items of a span of encoded ids alone, float [B, span]; `span` is then self.span, too.

        A shard of a catalogue scores no others (Ensemble.restrict). This default scores all items: right, but neither
        faster nor smaller.
        """
        return self.weighted(histories)[:, span]

    def weighted_by(self, weightings: Sequence[Sequence[float]], histories: Tensor) -> list[Tensor]:
        """Like `weighted`, for several weight vectors [F] instead of its own; the features are computed once."""
        features = self(histories)
        return [
            torch.einsum("f,fbv->bv", self.weights.new_tensor(weights), features) if len(weights) > 1
            else weights[0] * features[0]
            for weights in weightings
        ]  # fmt: skip

    def prepare(self, bulk: bool = False) -> None:
        """Precompute, for a set of weights, what many calls share. bulk: many histories will be scored."""

    def compile(self, compiler: Compiler) -> None:
        """Let a faster runtime compute parts of the score, until `prepare` is called again. Default: none."""

    def estimates(self, rows: int) -> bool:
        """Whether `add_estimate` is there for a number of histories, as it may be once compiled."""
        return False

    def add_estimate(self, histories: Tensor, total: Tensor) -> Estimate:
        """Add nearly `weighted` of all items to total float [B, V], if that is much faster: the best are scored exactly
        (search/estimated.py)."""
        raise NotImplementedError

    def add_to(self, histories: Tensor, total: Tensor) -> None:
        """Add `weighted` of all items to total float [B, V], on the CPU, where another scorer estimates."""
        total += self.weighted(histories)

    def weights_changed(self) -> None:
        """Forget what was computed for other weights: they may have been set."""

    def tables(self) -> dict[str, Tensor]:
        """What `bound` reads that takes long to make: by name, for `take_tables`. {}: nothing."""
        return {}

    def take_tables(self, tables: Mapping[str, Tensor]) -> None:
        """Use what `tables` made."""

    def ceiling(self) -> Tensor:
        """The part of `bound` that is the same for all histories, with the weights as they are: float [V]."""
        return torch.zeros(self.shape.n_items)

    def bound(self, histories: Tensor) -> Bound:
        """What the scorer can give to each item at most, without scoring all of them (serve.shortlist; on a CPU).

        Unless a scorer knows better, it scores every item: exact, and as slow as a full ranking.
        """
        return Bound(*nothing_listed(), dense=self.weighted(histories))

    def add_bound(self, bound: Bound, row: int, total: Tensor) -> None:
        """Add what the scorer can give in row `row` to float [V], besides its ceiling and what is listed."""
        if bound.dense is not None:
            total += bound.dense[row]

    def excess(self, bound: Bound, row: int, history: Tensor, items: Tensor) -> Tensor | None:
        """By how much the bound of items int64 [C] is at least too high, from what is in memory: float [C].

        None: it knows no more. `rescore` reads full vectors, of fewer items.
        """
        return None

    def rescore(self, bound: Bound, row: int, history: Tensor, items: Tensor) -> Tensor:
        """The weighted scores of items int64 [C] for one history int64 [1, L], row `row` of what was bounded."""
        return self.weighted(history, items[None])[0]

    def append_items(self, new: NewItems) -> None:
        """Append items that no training has seen to the catalogue; `vectors` has been extended before.

        Scores of the old items must not change. Tensors named in PER_ITEM get rows of zeros.
        """
        for name in self.PER_ITEM:
            holder, _, last = name.rpartition(".")
            try:
                module = self.get_submodule(holder)
            except AttributeError:  # a part that these settings switch off
                continue
            tensor = getattr(module, last, None)
            if tensor is None:
                continue
            grown = torch.cat([tensor.detach(), tensor.new_zeros(new.count, *tensor.shape[1:])])
            if isinstance(tensor, nn.Parameter):
                grown = nn.Parameter(grown, tensor.requires_grad)
            setattr(module, last, grown)
        self.shape = self.shape._replace(n_items=self.shape.n_items + new.count)

    def match(self, histories: Tensor, items: Tensor) -> Tensor | None:
        """Codes int64 [B, C]: the item of each history int64 [B, L] that speaks most for each of items int64 [B, C], 0
        where none does. None: this scorer compares no items with each other."""
        return None

    @property
    def scores_new_items(self) -> bool:
        """Whether an item that no training has seen can get a score of its own from this scorer."""
        return False

    def check_new_items(self) -> None:
        """InputError if the scorer cannot grow."""

    @classmethod
    def memory_bytes(cls, settings: SettingsT, shape: Shape) -> int:
        """Peak memory of fitting the scorer, in bytes, without the vectors themselves."""
        return 0

    def graph(self, batch_size: int = 64) -> nn.Module:
        """A module, histories int64 [B, L] -> weighted score float [B, V], for torch.jit.trace and ONNX export.

        batch_size: the largest batch it has to handle.
        """
        return _Weighted(self)


class _Weighted(nn.Module):
    def __init__(self, scorer: Scorer):
        super().__init__()
        self.scorer = scorer

    def forward(self, histories: Tensor) -> Tensor:
        return self.scorer.weighted(histories)
