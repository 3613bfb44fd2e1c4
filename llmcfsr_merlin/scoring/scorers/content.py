"""The content score: a candidate's similarity to the closest item of the history."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcfsr_merlin.config.scorer_settings import ContentSettings
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.scoring.compiled import SMALL, Compiler, Function
from llmcfsr_merlin.scoring.scorer import Estimate, Feature, FitContext, ItemVectors, NewItems, Scorer, Shape
from llmcfsr_merlin.scoring.scorers.histories import with_history_scores
from llmcfsr_merlin.scoring.search.bound import Bound, nothing_listed
from llmcfsr_merlin.scoring.search.rounded import Queries, Rounded, round_vectors

if TYPE_CHECKING:
    from llmcfsr_merlin.scoring.scorers.rounded_cosines import RoundedCosines, Scale

COLD_COUNT = 3  # training interactions at which an item's coldness is one half
_COSINE_NOISE = 1e-5  # of a float32 cosine
_BULK = 500_000_000  # largest table of all item-item cosines that is kept: 2 GB
_ROOM = 1 << 22  # cosines held at once while the catalogue is read in parts
_GPU_ROOM = 1 << 28  # the same on a GPU: 1 GB
_GRAPH_ROOM = 1 << 26  # the same for a full batch of a graph, which cannot drop padding
_HIDDEN = -2.0  # below every cosine


class ContentScorer(Scorer[ContentSettings]):
    """max over t with h_t != i of cos(v(h_t), v(i)), and the same times the coldness of i.

    An item of the history is compared with the other items of it, not with itself, 0 if there is none (models trained
    before compare it with itself too: settings.match_itself).

    Raw vectors, not the d-dimensional views: this restores what the network's bottleneck drops. The second feature
    is multiplied by 1 / (1 + n / 3) with n the training interactions of i: the fewer an item has, the less a trained
    scorer knows of it. With lexical vectors the cosine is the mean of both by `lexical_share`.
    """

    Settings = ContentSettings
    FEATURES = (
        Feature("content", (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0)),
        Feature("content_cold", (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)),
    )

    coldness: Tensor

    def __init__(self, settings: ContentSettings, shape: Shape, vectors: ItemVectors):
        super().__init__(settings, shape, vectors)
        self.register_buffer("coldness", torch.ones(shape.n_items))
        self._units: Tensor | None = None
        self._similarity: Tensor | None = None
        self._product: Function | None = None
        self._cosines: RoundedCosines | None = None
        self._scale: Scale | None = None
        self._rounded: Rounded | None = None

    @classmethod
    def fit(
        cls, settings: ContentSettings, dataset: Dataset, vectors: ItemVectors, context: FitContext
    ) -> "ContentScorer":
        scorer = cls(settings, dataset.shape, vectors)
        scorer.coldness.copy_(1 / (1 + torch.from_numpy(dataset.train_counts).float() / COLD_COUNT))
        return scorer

    def prepare(self, bulk: bool = False) -> None:
        """bulk: the cosines of all pairs of items are computed once if they fit in 2 GB; a GPU is faster without."""
        self._units = self._product = self._cosines = self._scale = None
        bulk = bulk and self.span is None and self.coldness.device.type == "cpu" and self.shape.n_items**2 <= _BULK
        self._similarity = self.units @ self.units.T if bulk else None

    def compile(self, compiler: Compiler) -> None:
        self._product = self._cosines = self._scale = None
        if not compiler.products:
            return
        if self.span is None and self.shape.n_items <= SMALL:
            from llmcfsr_merlin.scoring.scorers.rounded_cosines import RoundedCosines  # compiles its loops

            self._cosines = RoundedCosines(self.units, self.settings.match_itself)
        else:
            self._product = compiler.product(self.units)

    def estimates(self, rows: int) -> bool:
        return self._cosines is not None

    def add_estimate(self, histories: Tensor, total: Tensor) -> Estimate:
        assert self._cosines is not None
        if self._scale is None:
            from llmcfsr_merlin.scoring.scorers.rounded_cosines import Scale

            self._scale = Scale.of(self.item_weights())
        self._cosines.add_largest(histories, self._scale, total)
        return Estimate(self._scale.error, lambda items: self.weighted(histories, items))

    def weights_changed(self) -> None:
        self._scale = None

    @property
    def units(self) -> Tensor:
        """Vectors of unit norm (of the span, if there is one), [V, D] or [V, D + E] with lexical ones, zero on reserved
        rows."""
        if self._units is None:
            self._units = self._unit_vectors()
        return self._units

    def _unit_vectors(self) -> Tensor:
        return unit_vectors(self.vectors, self.settings.lexical_share, self.span)

    def _units_of(self, items: Tensor) -> Tensor:
        """Of encoded ids [...]: [..., D]; out of the vectors as they are, which may be memory-mapped, if need be."""
        if self.span is None and self._units is not None:
            return self._units[items]
        return unit_vectors(self.vectors, self.settings.lexical_share, items)

    def forward(self, histories: Tensor, items: Tensor | None = None) -> Tensor:
        cosine = self.cosine(histories, items)
        return torch.stack([cosine, cosine * (self.coldness if items is None else self.coldness[items])])

    def weighted(self, histories: Tensor, items: Tensor | None = None) -> Tensor:
        if items is None:
            return self.item_weights() * self.cosine(histories)
        return self._weights_of(items) * self.cosine(histories, items)

    def weighted_by(self, weightings: Sequence[Sequence[float]], histories: Tensor) -> list[Tensor]:
        cosine = self.cosine(histories)
        return [(known + cold * self.coldness) * cosine for known, cold in weightings]

    def item_weights(self) -> Tensor:
        """The weight of the cosine per item, float [V]."""
        return self.weights[0] + self.weights[1] * self.coldness

    def _weights_of(self, items: Tensor) -> Tensor:
        return self.weights[0] + self.weights[1] * self.coldness[items]

    def cosine(self, histories: Tensor, items: Tensor | None = None) -> Tensor:
        """Largest cosine over the real items of each history, [B, V] (or [B, span]), or [B, C] for items [B, C]; 0 if
        it is empty.

        What a history holds is compared with its other items (see the class).
        """
        real = histories >= FIRST_ITEM
        itself = self.settings.match_itself
        if items is not None and self._cosines is not None:
            return self._cosines.exact(self.units, histories, items)
        if items is not None:
            return _of_items(self._units_of(histories), self._units_of(items), histories, items, itself)
        read = self._units_of(histories)
        if self._similarity is not None:
            best = _of_all_pairs(self._similarity, histories, real)
        elif self.units.is_cuda:
            best = _of_catalogue_on_gpu(histories, real, self.units, self._units_of)
        else:
            best = _of_catalogue(read[real], real.sum(1).tolist(), self.units, self._product)
        if itself:
            return best
        others = _of_items(read, read, histories, histories, itself)
        return with_history_scores(best, histories, others, self.span)

    def of_span(self, histories: Tensor, span: slice) -> Tensor:
        return self.item_weights()[span] * self.cosine(histories)

    def match(self, histories: Tensor, items: Tensor) -> Tensor:
        """The item of the history whose cosine is the one that counts; of equal ones the earliest; 0 if none counts."""
        cosine = self._units_of(histories) @ self._units_of(items).transpose(1, 2)  # [B, L, C]
        hidden = _not_compared(histories, items, self.settings.match_itself)
        best = cosine.masked_fill(hidden, _HIDDEN).max(1)
        return histories.gather(1, best.indices).masked_fill((items < FIRST_ITEM) | (best.values == _HIDDEN), 0)

    @property
    def rounded(self) -> Rounded:
        """Vectors of unit norm in one byte a number. Made when they are first needed."""
        if self._rounded is None:
            self._rounded = round_vectors(
                lambda own: unit_vectors(self.vectors, self.settings.lexical_share, own).cpu(), self.shape.n_items
            )
        return self._rounded

    def tables(self) -> dict[str, Tensor]:
        return self.rounded._asdict()

    def take_tables(self, tables: Mapping[str, Tensor]) -> None:
        self._rounded = Rounded(**tables)

    def ceiling(self) -> Tensor:
        """What a cosine of 1, or of -1, gives."""
        return self.item_weights().abs() * (1 + _COSINE_NOISE)

    def bound(self, histories: Tensor) -> Bound:
        return Bound(*nothing_listed(), asked=[self._read(row[row >= FIRST_ITEM]) for row in histories])

    def _read(self, items: Tensor) -> "_Read":
        units = self._units_of(items)
        return _Read(items, units, self.rounded.queries(units))

    def excess(self, bound: Bound, row: int, history: Tensor, items: Tensor) -> Tensor:
        read: _Read = bound.asked[row]
        weights = self._weights_of(items)
        most = weights.abs() * (1 + _COSINE_NOISE)
        if not len(read.items):
            return most
        cosines = self.rounded.near(read.queries, items)
        cosines += read.queries.off * torch.where(weights >= 0, 1.0, -1.0)
        if not self.settings.match_itself:
            cosines.masked_fill_(items == read.items[:, None], _HIDDEN)
        best = cosines.amax(0)
        return most - weights * best.masked_fill(best == _HIDDEN, 0.0)

    def rescore(self, bound: Bound, row: int, history: Tensor, items: Tensor) -> Tensor:
        read: _Read = bound.asked[row]
        if not len(read.items):
            return torch.zeros(len(items))
        cosines = self._units_of(items) @ read.units.T  # [C, L]: faster than its transpose on some CPUs
        if not self.settings.match_itself:
            cosines = cosines.masked_fill(items[:, None] == read.items, _HIDDEN)
        best = cosines.amax(1)
        return self._weights_of(items) * best.masked_fill(best == _HIDDEN, 0.0)

    @property
    def scores_new_items(self) -> bool:
        return bool(self.weights.any())

    def append_items(self, new: NewItems) -> None:
        self.coldness = torch.cat([self.coldness, self.coldness.new_ones(new.count)])
        super().append_items(new)
        self._units = self._similarity = self._product = self._cosines = self._scale = self._rounded = None

    @classmethod
    def memory_bytes(cls, settings: ContentSettings, shape: Shape) -> int:
        return 4 * shape.n_items * ((shape.semantic or 0) + (shape.lexical or 0))

    def graph(self, batch_size: int = 64) -> nn.Module:
        return _Graph(self, batch_size)


class _Read(NamedTuple):
    """The items of a history that a model knows, int64 [n], their units [n, D], and these as queries."""

    items: Tensor
    units: Tensor
    queries: Queries


def unit_vectors(vectors: ItemVectors, share: float, which: slice | Tensor | None = None) -> Tensor:
    """Item vectors of unit norm, [V, D], or [V, D + E] with a share of the lexical ones; of encoded ids `which`."""
    if vectors.semantic is None:
        raise ValueError("the content score needs item vectors")
    which = slice(None) if which is None else which
    semantic = F.normalize(vectors.semantic[which], dim=-1)
    if vectors.lexical is None or not share:
        return semantic
    # Side by side under these factors, their cosine is the mean of both cosines by the share.
    lexical = F.normalize(vectors.lexical[which], dim=-1)
    return torch.cat([math.sqrt(1 - share) * semantic, math.sqrt(share) * lexical], dim=-1)


def _of_items(read: Tensor, candidates: Tensor, histories: Tensor, items: Tensor, itself: bool) -> Tensor:
    """Largest cosine [B, C] of candidates [B, C, D], encoded ids items [B, C], to histories [B, L, D].

    itself: whether an item is compared with itself too. Traceable.
    """
    hidden = _not_compared(histories, items, itself)
    best = (read @ candidates.transpose(1, 2)).masked_fill(hidden, _HIDDEN).amax(1)
    return best.masked_fill(best == _HIDDEN, 0.0)


def _not_compared(histories: Tensor, items: Tensor, itself: bool) -> Tensor:
    """Positions of histories [B, L] that items [B, C] are not compared with: bool [B, L, C] or [B, L, 1]."""
    hidden = (histories < FIRST_ITEM).unsqueeze(-1)
    return hidden if itself else hidden | (histories.unsqueeze(-1) == items.unsqueeze(1))


def _of_all_pairs(similarity: Tensor, histories: Tensor, real: Tensor) -> Tensor:
    """Rows of the table [V, V] are gathered instead of multiplied again per history, and padding costs nothing."""
    best = similarity[histories[:, 0]]
    best[~real[:, 0]] = -1.0  # an unknown item, whose row of zeros would hide negative cosines
    for step in range(1, histories.shape[1]):
        rows = real[:, step].nonzero().squeeze(1)
        if len(rows):
            best[rows] = torch.maximum(best[rows], similarity[histories[rows, step]])
    return best * real.any(1, keepdim=True)


def _of_catalogue(read: Tensor, lengths: list[int], units: Tensor, product: Function | None = None) -> Tensor:
    """read: [M, D], the real items of all histories one after the other; lengths: of each. Returns [B, V].

    One product for all positions reads the catalogue once (measured: 7 to 10 times faster than a product per position);
    parts of the catalogue keep the [M, part] cosines at _ROOM numbers. product: of the whole catalogue, compiled, for
    as many histories at once as that allows.
    """
    best = units.new_zeros(len(lengths), len(units))
    if product is not None:
        first = 0
        while first < len(lengths):
            last = first + 1
            while last < len(lengths) and sum(lengths[first : last + 1]) * len(units) <= _ROOM:
                last += 1
            start = sum(lengths[:first])
            match = product(read[start : start + sum(lengths[first:last])])
            for row, part in enumerate(match.split(lengths[first:last]), first):
                if len(part):
                    torch.amax(part, 0, out=best[row])
            first = last
        return best
    size = max(_ROOM // max(len(read), 1), 1024)
    for start in range(0, len(units), size):
        match = read @ units[start : start + size].T
        for row, part in enumerate(match.split(lengths)):
            if len(part):
                torch.amax(part, 0, out=best[row, start : start + size])
    return best


def _of_catalogue_on_gpu(
    histories: Tensor, real: Tensor, units: Tensor, units_of: Function, room: int = _GPU_ROOM
) -> Tensor:
    """The same in few kernels, synchronising once (to count the real items) or, for one history, never."""
    if len(histories) == 1:
        # Padding reads the largest encoded id instead: an item of the history, or a reserved row, whose cosines are 0.
        items = torch.where(real, histories, histories.amax(1, keepdim=True)).flatten()
        lengths = torch.full((1,), len(items), device=items.device)
    else:
        items, lengths = histories[real], real.sum(1)
    best = units.new_zeros(len(lengths), len(units))
    if not len(items):  # segment_reduce divides by their number
        return best
    read, size = units_of(items), max(room // len(items), 1024)
    for start in range(0, len(units), size):
        match = read @ units[start : start + size].T
        best[:, start : start + size] = torch.segment_reduce(match, "max", lengths=lengths, unsafe=True, initial=-2.0)
    return best.mul_(real.any(1, keepdim=True))


class _Graph(nn.Module):
    """The same including padded positions: a graph does not know their number."""

    units: Tensor
    item_weights: Tensor

    def __init__(self, scorer: ContentScorer, batch_size: int):
        super().__init__()
        self.register_buffer("units", scorer.units)
        self.register_buffer("item_weights", scorer.item_weights())
        self.itself = scorer.settings.match_itself
        self.part = max(_GRAPH_ROOM // (batch_size * scorer.shape.max_length), 1024)

    def forward(self, histories: Tensor) -> Tensor:
        padding = (histories < FIRST_ITEM).unsqueeze(-1)
        read = self.units[histories]
        parts = [(read @ part.T).masked_fill(padding, -1.0).amax(1) for part in self.units.split(self.part)]
        best = torch.cat(parts, 1) * (~padding).any(1)
        if not self.itself:
            best = best.scatter(1, histories, _of_items(read, read, histories, histories, False))
        return self.item_weights * best
