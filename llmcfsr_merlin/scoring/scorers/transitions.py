"""Item-to-item transitions: which items follow which in the training sequences."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from llmcfsr_merlin.config.scorer_settings import TransitionSettings
from llmcfsr_merlin.dataset.catalogue_order import StepOrder, step_order
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import FIRST_ITEM, PAD
from llmcfsr_merlin.scoring.scorer import Feature, FitContext, ItemVectors, NewItems, Scorer, Shape
from llmcfsr_merlin.scoring.scorers.content import unit_vectors
from llmcfsr_merlin.scoring.scorers.histories import distinct, with_history_scores
from llmcfsr_merlin.scoring.scorers.transition_counts import BACKWARD, count_transitions
from llmcfsr_merlin.scoring.scorers.transition_counts_gpu import count_transitions_on, fits
from llmcfsr_merlin.scoring.search.bound import Bound, sum_by_key, value_of

RECENCY = 0.8  # decay per step into the past
# Share of ascending steps from which a log is taken to be sorted by item: Beauty .69, Yelp and MovieLens .50.
SORTED = 0.6
NEAREST = 10  # items from which one without transitions borrows them
_ROOM = 1 << 25  # cosines held at once
_PAIRS = 1 << 31  # cosines computed at most, half a minute on two cores
_FEWEST = 1000  # lenders that are searched however many items borrow
_PIECE = 1 << 14  # borrowing items whose score is computed at once

_log = logging.getLogger(__name__)


class TransitionScorer(Scorer[TransitionSettings]):
    """log(1 + 100 * sum over t of 0.8^age(t) * w(h_t, i)), age 0 for the last item of the history.

    w(h, i) is the weight of the transition from h to i (transition_counts.py), kept for the `neighbours` largest of
    each h: co-occurrence that a d-dimensional embedding cannot represent. 0 for what never followed the history.

    The second feature is for items that have no transitions, as no training saw them beside another: the largest of
    their ten nearest items' by text, times the cosine. It is 0 for all others, and without item vectors.

    The third is an item-kNN's score over the same neighbours: the sum over the distinct h of the history of the cosine
    c(h, i), wherever in the history h is. Where the order of a log says little, it knows more than the first.

    All three are 0 for an item of the history: training counted the steps of this user between the items that it has,
    and not those from the item that comes after, so that they say more of a validation item than of any later one
    (models trained before score it as any other: settings.score_history).
    """

    Settings = TransitionSettings
    FEATURES = (
        Feature("transitions"),
        Feature("transitions_borrowed", (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0), untrained=True),
        Feature("co_occurrence", (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)),  # cosines are small
    )
    PER_ITEM = ("next_items", "next_weights", "next_cosines")

    next_items: Tensor
    next_weights: Tensor
    next_cosines: Tensor

    def __init__(self, settings: TransitionSettings, shape: Shape, vectors: ItemVectors):
        super().__init__(settings, shape, vectors)
        table = (shape.n_items, settings.neighbours)
        self.register_buffer("next_items", torch.zeros(table, dtype=torch.int32))
        for name in ("next_weights", "next_cosines"):  # of models trained before: 32 bits, as their file has them
            self.register_buffer(name, torch.zeros(table, dtype=torch.float16))
        self._borrowers: tuple[Tensor, Tensor, Tensor] | None = None
        self._used: list[bool] | None = None
        self._tables: _LoopTables | None = None
        self._given = False  # whether the borrowers were read from a file

    @classmethod
    def fit(
        cls, settings: TransitionSettings, dataset: Dataset, vectors: ItemVectors, context: FitContext
    ) -> "TransitionScorer":
        scorer = cls(settings, dataset.shape, vectors)
        files = dataset.files("train")
        steps = step_order(files, dataset.vocabulary.ids.tolist())
        directed = settings.directed
        if directed is None:
            directed = steps.ascending is None or steps.ascending < SORTED
        context.report(f"counting item-to-item transitions{_direction(steps, directed, settings.directed is None)}")
        known = files, dataset.shape.n_items, dataset.train_counts, settings.neighbours
        backward = BACKWARD if directed else 1.0
        if fits(dataset.train_counts, context.device):
            found = count_transitions_on(context.device, *known, backward=backward)
        else:
            found = count_transitions(*known, context.scratch, backward=backward)
        for table, values in zip((scorer.next_items, scorer.next_weights, scorer.next_cosines), found):
            table.copy_(torch.from_numpy(values))
        return scorer

    def prepare(self, bulk: bool = False) -> None:
        self._used = self._tables = None
        if not self._given:
            self._borrowers = self._nearest() if self.borrows else None

    def graph(self, batch_size: int = 64) -> nn.Module:
        self.prepare()  # or what is asked once would be a part of the traced graph
        return super().graph(batch_size)

    def weights_changed(self) -> None:
        self._used = self._tables = None

    @property
    def used(self) -> list[bool]:
        """Which features have a weight. Asked once: on a GPU the answer is waited for."""
        if self._used is None:
            self._used = (self.weights != 0).tolist()
        return self._used

    @property
    def borrows(self) -> bool:
        """Whether the second feature has a weight."""
        return self.used[1]

    def _apply(self, *arguments: Any, **options: Any) -> "TransitionScorer":
        self._borrowers = self._tables = None  # of the device that the tables leave
        return super()._apply(*arguments, **options)

    @property
    def borrowers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Items without transitions int64 [N], the nearest items that have some [N, k], and their cosines [N, k]."""
        if self._borrowers is None:
            self._borrowers = self._nearest()
        return self._borrowers

    def _nearest(self) -> tuple[Tensor, Tensor, Tensor]:
        has = self.next_weights[:, 0] > 0
        without = (~has).nonzero().squeeze(1)
        without, lenders = without[without >= FIRST_ITEM], has.nonzero().squeeze(1)
        nearest = min(NEAREST, len(lenders))
        if self.vectors.semantic is None or not nearest or not len(without):
            none = without.new_zeros(0, 1)
            return none[:, 0], none, none.float()
        most = max(_PAIRS // len(without), _FEWEST)
        if len(lenders) > most:
            _log.info(
                "%d items without transitions borrow from the %d of %d items that have the most",
                len(without), most, len(lenders),
            )  # fmt: skip
            known = (self.next_weights[lenders] > 0).sum(1)
            lenders = lenders[known.argsort(descending=True, stable=True)[:most].sort().values]
        units = unit_vectors(self.vectors, self.vectors.lexical_share)
        lent = units[lenders].T
        parts = [(units[some] @ lent).topk(nearest, dim=1) for some in without.split(max(_ROOM // len(lenders), 1))]
        cosines, places = (torch.cat(part) for part in zip(*parts))
        return without, lenders[places], cosines.clamp_min(0)

    def forward(self, histories: Tensor, items: Tensor | None = None) -> Tensor:
        own = self._own(histories)
        features = torch.stack([own, self._added(torch.zeros_like(own), own, 1.0), self._together(histories)])
        features = self._of_others(features, histories)
        return features if items is None else features.gather(2, items.expand(3, -1, -1))

    def weighted(self, histories: Tensor, items: Tensor | None = None) -> Tensor:
        own = self._own(histories)
        total = self.weights[0] * own
        if self.borrows:
            total = self._added(total, own, self.weights[1])
        if self.used[2]:
            total = total + self.weights[2] * self._together(histories)
        total = self._of_others(total, histories)
        return total if items is None else total.gather(1, items)

    def add_to(self, histories: Tensor, total: Tensor) -> None:
        from llmcfsr_merlin.scoring.search.loops import add_sums  # compiles them

        if self._tables is None:
            self._tables = _LoopTables.of(self)
        tables, own = self._tables, self.settings.score_history
        (known, borrowed, together), read = tables.weights, histories.contiguous().numpy()
        first = tables.values, tables.decay, read, True, known, borrowed, *tables.lent
        add_sums(tables.items, *first, own, total.numpy())
        if together:
            once = distinct(histories).numpy()
            second = tables.cosines, np.ones_like(tables.decay), once, False, together, 0.0, *tables.nobody
            add_sums(tables.items, *second, own, total.numpy())

    def of_span(self, histories: Tensor, span: slice) -> Tensor:
        if self.borrows:  # of items that any shard may hold
            return self.weighted(histories)[:, span]
        total = self.weights[0] * self._sums(histories, self._decayed(histories), span).mul(100).log1p()
        if self.used[2]:
            items = distinct(histories)
            total += self.weights[2] * self._sums(items, self.next_cosines[items].float(), span)
        return self._of_others(total, histories, span)

    def weighted_by(self, weightings: Sequence[Sequence[float]], histories: Tensor) -> list[Tensor]:
        own = self._own(histories)
        together = self._together(histories) if any(cosines for *_, cosines in weightings) else None
        totals = []
        for known, borrowed, cosines in weightings:
            total = self._added(known * own, own, borrowed) if borrowed else known * own
            if together is not None and cosines:
                total.add_(together, alpha=cosines)
            totals.append(self._of_others(total, histories))
        return totals

    def _of_others(self, scores: Tensor, histories: Tensor, span: slice | None = None) -> Tensor:
        """scores [..., B, V] without those of the items of histories [B, L]."""
        return scores if self.settings.score_history else with_history_scores(scores, histories, 0.0, span)

    def _added(self, total: Tensor, own: Tensor, weight: Tensor | float) -> Tensor:
        """total [B, V] with what is borrowed of own [B, V], times a weight."""
        without, near, cosines = self.borrowers
        if not len(without):
            return total
        pieces = zip(near.split(_PIECE), cosines.split(_PIECE))
        borrowed = torch.cat([(own[:, lenders] * cosine).amax(2) for lenders, cosine in pieces], dim=1)
        return total.scatter_add(1, without.expand_as(borrowed), weight * borrowed)

    def _own(self, histories: Tensor) -> Tensor:
        return self._sums(histories, self._decayed(histories)).mul(100).log1p()

    def _together(self, histories: Tensor) -> Tensor:
        items = distinct(histories)
        return self._sums(items, self.next_cosines[items].float())

    def _sums(self, histories: Tensor, values: Tensor, span: slice | None = None) -> Tensor:
        """values [B, L, neighbours] of the neighbours of histories [B, L], summed by item: [B, V] or [B, span]."""
        place, width = self.next_items[histories].long().flatten(1), self.shape.n_items
        if span is not None:
            width, place = span.stop - span.start, place - span.start
            place = place.masked_fill((place < 0) | (place >= width), width)  # elsewhere
        # Not new_zeros: a traced graph would hard-code its size.
        sums = torch.zeros_like(histories[:, :1], dtype=values.dtype).expand(-1, width + (span is not None))
        return sums.scatter_add(1, place, values.flatten(1))[:, :width]

    def tables(self) -> dict[str, Tensor]:
        """Who borrows from whom, where that counts."""
        names = ("borrowers", "lenders", "cosines")
        return dict(zip(names, (part.cpu() for part in self.borrowers))) if self.borrows else {}

    def take_tables(self, tables: Mapping[str, Tensor]) -> None:
        borrowers, lenders, cosines = (tables[name] for name in ("borrowers", "lenders", "cosines"))
        self._borrowers, self._given = (borrowers, lenders, cosines), True

    def bound(self, histories: Tensor) -> Bound:
        """Exact for what follows the history, a bound for what borrows from that."""
        n_items = self.shape.n_items
        weights, near = self._decayed(histories).flatten(1), self.next_items[histories].flatten(1)
        row, place = near.nonzero(as_tuple=True)  # of an age at which the weight is rounded to 0, too
        keys, sums = sum_by_key(row * n_items + near[row, place], weights[row, place])
        own = sums.mul(100).log1p()
        lifts = self.weights[0] * own
        if self.used[2]:
            items = distinct(histories)
            cosines = self.next_cosines[items].float().flatten(1)
            row, place = cosines.nonzero(as_tuple=True)  # of neighbours, which are all among the keys
            places = torch.searchsorted(keys, row * n_items + self.next_items[items].flatten(1)[row, place])
            lifts.index_add_(0, places, self.weights[2] * cosines[row, place])
        if not self.settings.score_history and len(keys):
            of_history = (torch.arange(len(histories))[:, None] * n_items + histories).flatten()
            places = torch.searchsorted(keys, of_history).clamp_max(len(keys) - 1)
            lifts[places[keys[places] == of_history]] = 0
        return Bound(keys, lifts, own=own)

    def add_bound(self, bound: Bound, row: int, total: Tensor) -> None:
        """What borrows gets the largest of the row at most, times its largest cosine."""
        if self.borrows and bound.own is not None:
            first = row * self.shape.n_items
            own = slice(*torch.searchsorted(bound.keys, torch.tensor([first, first + self.shape.n_items])).tolist())
            without, _, cosines = self.borrowers
            if own.start < own.stop and len(without):
                most = bound.own[own].amax() * self.weights[1].clamp_min(0)
                total.index_add_(0, without, cosines[:, 0] * most)

    def rescore(self, bound: Bound, row: int, history: Tensor, items: Tensor) -> Tensor:
        first = row * self.shape.n_items
        total = value_of(bound.keys, bound.lifts, first + items)
        if not self.borrows or bound.own is None:
            return total
        without, near, cosines = self.borrowers
        if len(without):
            place = torch.searchsorted(without, items).clamp_max(len(without) - 1)
            lacks = without[place] == items
            if not self.settings.score_history:
                lacks &= ~torch.isin(items, history)
            lent = value_of(bound.keys, bound.own, first + near[place[lacks]]) * cosines[place[lacks]]
            total[lacks] += self.weights[1] * lent.amax(1)
        return total

    def _decayed(self, histories: Tensor) -> Tensor:
        """[B, L, neighbours]; PAD has no neighbours."""
        places = torch.arange(histories.shape[1], device=histories.device)
        age = ((histories != PAD).sum(1, keepdim=True) - 1 - places).clamp_min(0)
        return self.next_weights[histories].float() * (RECENCY**age).unsqueeze(-1)

    @property
    def scores_new_items(self) -> bool:
        return bool(self.weights[1]) and self.vectors.semantic is not None

    def append_items(self, new: NewItems) -> None:
        super().append_items(new)
        self._borrowers, self._tables, self._given = None, None, False

    @classmethod
    def memory_bytes(cls, settings: TransitionSettings, shape: Shape) -> int:
        """Ids, weights and cosines: as they are counted, as they are kept, in 16 bits, and in a checkpoint."""
        return (12 + 8 + 8) * shape.n_items * settings.neighbours


class _LoopTables(NamedTuple):
    """A scorer's tables as the loops read them. cosines: empty if they have no weight."""

    weights: list[float]
    items: np.ndarray
    values: np.ndarray
    cosines: np.ndarray
    decay: np.ndarray
    lent: list[np.ndarray]
    nobody: list[np.ndarray]

    @classmethod
    def of(cls, scorer: TransitionScorer) -> "_LoopTables":
        cosines = scorer.next_cosines if scorer.used[2] else scorer.next_cosines[:0]
        tables = scorer.next_items.int(), scorer.next_weights.float(), cosines.float()
        items, values, kept = (one.contiguous().numpy() for one in tables)
        decay = RECENCY ** torch.arange(scorer.shape.max_length)
        nobody = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 1, dtype=torch.int64), torch.zeros(0, 1)
        both = scorer.borrowers if scorer.borrows else nobody, nobody
        lent, none = ([part.contiguous().numpy() for part in parts] for parts in both)
        return cls(scorer.weights.tolist(), items, values, kept, decay.numpy(), lent, none)


def _direction(steps: StepOrder, directed: bool, found: bool) -> str:
    """What the report says of the direction of transitions, if that is worth a word. found: not given by a setting."""
    if not directed:
        why = f": {steps.ascending:.0%} of the steps ascend by item id, so order is not time" if found else ""
        return f", both directions alike{why}"
    if not steps.known:
        return " (steps within one time are not told apart: an earlier version prepared the data)"
    share = steps.tied / max(steps.all, 1)
    return f", {share:.1%} of the steps are within one time and have no direction" if steps.tied else ""
