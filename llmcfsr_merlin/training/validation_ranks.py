"""Ranks of the validation items under both history rules, for many score weights in one pass over the users."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from llmcfsr_merlin.dataset.names import FIRST_ITEM, ITEM, KEPT, MASKED
from llmcfsr_merlin.dataset.user_histories import lists_of
from llmcfsr_merlin.scoring.ensemble import WeightedFeature
from llmcfsr_merlin.scoring.ndcg import ndcg_gains
from llmcfsr_merlin.scoring.ranker import pad
from llmcfsr_merlin.scoring.scorer import Scorer
from llmcfsr_merlin.training.validation import CUT_OFF

_CACHED = 1 << 18  # scores
_SORTED = 64  # batches whose rows are sorted by length, so that little of them is padding

Point = tuple[float, ...]  # one weight per feature


class Features(Protocol):
    """What tells the features of items: a model (scoring/ensemble.py), or what was kept of it (candidates.py)."""

    names: list[str]

    @property
    def features(self) -> Sequence[WeightedFeature]: ...

    @property
    def scorers(self) -> Mapping[str, Scorer]: ...

    def each_feature(
        self, histories: Tensor, items: Tensor | None = None, names: Collection[str] | None = None
    ) -> list[Tensor]: ...


class ValidationBatches:
    """Histories int64 [B, L] and targets int64 [B] of the rows of a split; the target is a row's last item."""

    def __init__(self, files: Sequence[str], size: int, device: torch.device):
        """size: users per batch."""
        self.files, self.size, self.device = files, size, device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for file in self.files:
            for block in pq.ParquetFile(file).iter_batches(_SORTED * self.size, columns=[ITEM]):
                rows = sorted(lists_of(block.column(0)), key=len) if block.num_rows else []
                for start in range(0, len(rows), self.size):
                    some = rows[start : start + self.size]
                    histories = pad([row[:-1].tolist() for row in some], len(some[-1]))
                    yield histories.to(self.device), torch.tensor([int(row[-1]) for row in some]).to(self.device)


def repeated_targets(files: Sequence[str]) -> tuple[int, int]:
    """How many rows of some validation files end with an item that is also before in the row, and how many rows."""
    repeated = rows = 0
    for file in files:
        for block in pq.ParquetFile(file).iter_batches(columns=[ITEM]):
            lists = lists_of(block.column(0)) if block.num_rows else []
            repeated += sum(bool((row[:-1] == row[-1]).any()) for row in lists)
            rows += len(lists)
    return repeated, rows


@torch.inference_mode()
def validation_ranks(
    model: Features, batches: Iterable[tuple[Tensor, Tensor]], points: Sequence[Point]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Rank of each validation item, from 0, with each of the points as weights: targets int64 [N], and history rule
    (names.HISTORY_RULES) -> ranks [points, N].

    Masked: the user's own items take no part in the ranking; a target that is one of them comes last. The first feature
    has weight 1 in every point. Features are finite: points are summed by their differences. The model is prepared
    (`prepare(bulk=True)`) by the caller.
    """
    everywhere, of_history = feature_places(model)
    groups: dict[Point, list[int]] = {}  # points that differ in what is 0 outside of the history share a table
    for number, point in enumerate(points):
        groups.setdefault(tuple(point[place] for place in everywhere), []).append(number)
    extra = [tuple(point[place] for place in of_history) for point in points]
    names = [name for name, part in model.scorers.items() if not (of_history and part.HISTORY_ONLY)]
    others = [name for name in model.names if name not in names] if any(map(any, extra)) else []
    targets: list[Tensor] = []
    found: dict[str, list[Tensor]] = {MASKED: [], KEPT: []}
    for history, target in batches:
        values, wanted = model.each_feature(history, names=names), target.unsqueeze(1)
        values[0], own = values[0].clone(), values[0].gather(1, wanted)
        values[0][:, :FIRST_ITEM] = -torch.inf
        values[0].scatter_(1, wanted, own)
        past, once = _once(history, wanted)
        more = [torch.stack(model.each_feature(history, items, others)) for items in (wanted, past)] if others else []
        batch = _Batch(values, wanted, past, once, (history == wanted).any(1), more)
        # Users at once: as many rows as stay in a core's cache, over which every point goes; a third of the time.
        size = len(target) if values[0].is_cuda else max(_CACHED // values[0].shape[1], 1)
        parts = [_ranks(batch.users(slice(at, at + size)), groups, extra) for at in range(0, len(target), size)]
        ranks = torch.cat(parts, 2)
        targets.append(target.cpu())
        for rule, of_rule in zip((MASKED, KEPT), ranks.cpu()):
            found[rule].append(of_rule)
    return torch.cat(targets).numpy(), {rule: torch.cat(parts, dim=1).numpy() for rule, parts in found.items()}


class _Batch(NamedTuple):
    """values: the features that tell all items apart, [B, V] each. wanted: the targets [B, 1]. past, once: as `_once`
    gives them. repeats: bool [B], targets of the history. more: the features of the history alone, [F, B, C], of the
    targets and of the past; none if no point has a weight of theirs."""

    values: list[Tensor]
    wanted: Tensor
    past: Tensor
    once: Tensor
    repeats: Tensor
    more: list[Tensor]

    def users(self, some: slice) -> "_Batch":
        values, more = [value[some] for value in self.values], [value[:, some] for value in self.more]
        return _Batch(values, self.wanted[some], self.past[some], self.once[some], self.repeats[some], more)


def _ranks(batch: _Batch, groups: dict[Point, list[int]], extra: Sequence[Point]) -> Tensor:
    """int64 [2, points, B]: the ranks under MASKED and KEPT."""
    values, wanted, past, once, repeats, more = batch
    returned = bool(more) and bool(more[0].any())
    last = max(values[0].shape[1] - FIRST_ITEM - 1, CUT_OFF)  # not found, however few items
    # Floats, since torch adds up bools by a slow way through int64: half of the time of calibration.
    total, above = torch.empty_like(values[0]), torch.empty_like(values[0])
    ranks = torch.empty(2, len(extra), len(wanted), dtype=torch.int64, device=total.device)
    common = next(iter(groups))  # most points differ from it in one weight
    start = values[0].clone()
    for value, weight in zip(values[1:], common[1:]):
        if weight:
            start.add_(value, alpha=weight)
    for weights, numbers in groups.items():
        total.copy_(start)
        for value, weight, old in zip(values, weights, common):
            if weight != old:
                total.add_(value, alpha=weight - old)
        base, of_past = total.gather(1, wanted), total.gather(1, past)
        higher = torch.gt(total, base, out=above).sum(1)
        for number in numbers:
            mine, theirs, count = base, of_past, higher
            if more and any(extra[number]):
                mine, theirs = (
                    score + torch.einsum("f,fbc->bc", score.new_tensor(extra[number]), values_of)
                    for score, values_of in zip((base, of_past), more)
                )
                if returned:
                    count = torch.gt(total, mine, out=above).sum(1) - (base > mine).squeeze(1).float()
            without = count - ((of_past > mine) & once).sum(1)
            ranks[0, number] = without.masked_fill(repeats, last)
            ranks[1, number] = without + ((theirs > mine) & once).sum(1)
    return ranks


def feature_places(model: Features) -> tuple[list[int], list[int]]:
    """Places of the features: those that tell all items apart, and those of scorers that are HISTORY_ONLY."""
    alone = [model.scorers[feature.scorer].HISTORY_ONLY for feature in model.features]
    if alone[0]:  # what the others are weighed against has to stand in the table of all items
        alone = [False] * len(alone)
    return [place for place, one in enumerate(alone) if not one], [place for place, one in enumerate(alone) if one]


def _once(history: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Each history's items in order of id, and which of them to count: each item once, never the target."""
    past = history.sort(dim=1).values
    once = past != wanted
    once[:, 1:] &= past[:, 1:] != past[:, :-1]
    return past, once


def ndcg(ranks: np.ndarray, k: int = CUT_OFF) -> np.ndarray:
    """NDCG@k of single targets: ranks int64 [..., N], from 0, to float64 [...], their mean."""
    return ndcg_gains(ranks + 1, k).mean(-1)
