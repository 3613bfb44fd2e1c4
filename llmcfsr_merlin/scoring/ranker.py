"""The one top-k over the catalogue, shared by evaluation, `recommend` and serving."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from llmcfsr_merlin.dataset.names import FIRST_ITEM, PAD
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.scoring.ensemble import Ensemble
from llmcfsr_merlin.scoring.search.best_items import Found, Search
from llmcfsr_merlin.scoring.search.estimated import best_by_estimates

_BLOCK, _BLOCKS_FROM = 128, 16  # items of a block; blocks for each place, from which on it is faster
_SPARE = 32  # positions beyond k that are checked for ties


def pad(histories: Sequence[Sequence[int]], max_length: int) -> Tensor:
    """Ragged encoded ids -> int64 [B, L] right-padded, L = the longest kept; the last `max_length` items are kept."""
    kept = [list(history)[-max_length:] for history in histories]
    width = max((len(history) for history in kept), default=0) or 1
    return torch.tensor([history + [0] * (width - len(history)) for history in kept], dtype=torch.long)


class Ranker:
    """Scores and ranks the full catalogue for histories; what all histories share is computed once, at construction.

    Reserved rows always score -inf. Ties are broken by the smaller id, so that every path gives the same items.
    """

    def __init__(self, model: Ensemble, bulk: bool = False, shortlist: int = 0, uncertain: str = "answer",
                 shard: tuple[int, int] | None = None):  # fmt: skip
        """bulk: many histories will be scored.

        shortlist: most items that are scored for a history, the others are bounded (search/best_items.py); on
        a GPU, or 0: every item is scored. uncertain: what is done if that does not prove the top k. answer: return
        the best that were found; exact: score every item. shard: (number from 1, how many): rank that part of the
        catalogue alone, all of it exactly.
        """
        self.span = None if shard is None else shard_span(model.shape.n_items, *shard)
        if self.span is not None:
            model.restrict(self.span)
            shortlist = 0
        self.model = model.eval().prepare(bulk)
        self.n_items, self.max_length = model.shape.n_items, model.shape.max_length
        self.device, self.uncertain = model.device, uncertain
        self.shortlist = shortlist if shortlist < self.n_items - FIRST_ITEM and self.device.type == "cpu" else 0
        self._search = None
        if self.shortlist:
            with torch.inference_mode():
                self._search = Search(model, self.shortlist)

    def pad(self, histories: Sequence[Sequence[int]]) -> Tensor:
        """Ragged encoded ids -> int64 [B, L] right-padded; the last `max_length` items are kept."""
        return pad(histories, self.max_length)

    def blocked(self, allow: Sequence[Sequence[int] | None], block: Sequence[Sequence[int]]) -> Tensor:
        """Bool [B, V] for `top_k`, from each row's encoded ids: all but those of `allow`, if given, and those of
        `block`.

        Built on the device: for a large catalogue it is far larger than the lists of ids.
        """
        if self.device.type == "cpu":  # row by row: a few microseconds each, a tenth of what listing all places takes
            blocked = np.zeros((len(block), self.n_items), bool)
            for row, (only, never) in enumerate(zip(allow, block)):
                if only is not None:
                    blocked[row] = True
                    blocked[row, np.asarray(only, dtype=np.int64)] = False
                blocked[row, np.asarray(never, dtype=np.int64)] = True
            return torch.from_numpy(blocked)
        mask = torch.zeros(len(block), self.n_items, dtype=torch.bool, device=self.device)
        listed = [(row, ids) for row, ids in enumerate(allow) if ids is not None]
        if listed:
            mask[torch.tensor([row for row, _ in listed], device=self.device)] = True
            mask[self._places(listed)] = False
        mask[self._places(enumerate(block))] = True
        return mask

    def _places(self, item_ids: Iterable[tuple[int, Sequence[int]]]) -> tuple[Tensor, Tensor]:
        """Row numbers and encoded ids, int64 [N] each on the device."""
        rows, lists = zip(*((row, np.asarray(one, dtype=np.int64)) for row, one in item_ids))
        places = np.stack([np.repeat(np.array(rows), list(map(len, lists))), np.concatenate(lists)])
        first, second = torch.from_numpy(places).to(self.device)
        return first, second

    @torch.inference_mode()
    def scores(self, histories: Tensor) -> Tensor:
        """histories int64 [B, L] right-padded -> float32 [B, V], -inf on reserved rows."""
        self._check(histories)
        return self.model.scores(self._on_device(histories))

    def by_history(self, served: str) -> Callable[[Tensor], Tensor | dict[str, Tensor]]:
        """The scoring function for evaluation: scores under both history rules, each with its own weights.

        If only one set of weights is known: scores of `served` alone, the rule that they were calibrated for;
        without weights to calibrate: one tensor for both.
        """
        if len(self.model.features) == 1:
            return self.scores
        if not self.model.history_weights:
            return lambda histories: {served: self.scores(histories)}
        return self._scores_by_history

    @torch.inference_mode()
    def _scores_by_history(self, histories: Tensor) -> dict[str, Tensor]:
        return self.model.scores_by_history(self._on_device(histories))

    def top_k(self, histories: Tensor, k: int, blocked: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Top-k items per history: int64 [B, k'] and scores float32 [B, k'], best first, k' = min(k, V - 3).

        blocked: bool [B, V], items that must not be returned. A row with fewer than k' left ends with 0 and -inf.
        """
        found = self.find(histories, k, blocked)
        return found.items, found.scores

    @torch.inference_mode()
    def find(self, histories: Tensor, k: int, blocked: Tensor | None = None) -> Found:
        """top_k, and whether each row is proven to be that of the full ranking."""
        self._check(histories)
        k = min(k, self.n_items - FIRST_ITEM if self.span is None else self.span.stop - self.span.start)
        if self._search is None or not len(histories) or not 0 < k < self.shortlist:
            return self._of_all(histories, k, blocked)
        found = self._search.top_k(histories, k, blocked)
        if self.uncertain == "exact":
            return self._completed(found, histories, k, blocked, self._of_all)
        return found

    def _of_all(self, histories: Tensor, k: int, blocked: Tensor | None) -> Found:
        nearly = best_by_estimates(self.model, histories, k, blocked) if len(histories) and k else None
        if nearly is None:
            return self._by_scores(histories, k, blocked)
        return self._completed(nearly, histories, k, blocked, self._by_scores)

    def _completed(
        self, found: Found, histories: Tensor, k: int, blocked: Tensor | None, rank: Callable[..., Found]
    ) -> Found:
        """What was found, with the rows that are not proven ranked by `rank`."""
        if not bool(found.exact.all()):
            rows = (~found.exact).nonzero()[:, 0]
            again = rank(histories[rows], k, None if blocked is None else blocked[rows])
            for part, value in zip(found, again):
                part[rows] = value
        return found

    def _by_scores(self, histories: Tensor, k: int, blocked: Tensor | None) -> Found:
        items, scores = self.best(self.scores(histories), k, blocked)
        return Found(items, scores, torch.ones(len(items), dtype=torch.bool, device=items.device))

    def best(self, scores: Tensor, k: int, blocked: Tensor | None) -> tuple[Tensor, Tensor]:
        """The top k of scores [B, V], or [B, span] of a shard: encoded ids, 0 if the score is -inf, and scores.

        blocked: bool [B, V].
        """
        if blocked is not None:
            blocked = blocked if self.span is None else blocked[:, self.span]
            scores = scores.masked_fill(blocked.to(scores.device), -torch.inf)
        items, scores = select_top_k(scores, k)
        if self.span is not None:
            items = (items + self.span.start).masked_fill(scores == -torch.inf, PAD)
        return items, scores

    def _check(self, histories: Tensor) -> None:
        """ValueError for what compiled loops would read beyond their tables."""
        if histories.shape[1] > self.max_length:
            raise ValueError(
                f"expected histories of at most {self.max_length} items, found {histories.shape[1]}: use pad()"
            )
        if histories.numel() and not histories.is_cuda:  # of a GPU the answer would be waited for, and it checks itself
            least, most = (int(end) for end in histories.aminmax())
            if least < 0 or most >= self.n_items:
                raise ValueError(f"expected encoded ids 0 to {self.n_items - 1}, found {least} to {most}")

    def _on_device(self, histories: Tensor) -> Tensor:
        if self.device.type != "cpu" and not histories.is_cuda and len(histories):
            # Trim all-padding columns: they cost a GPU as much as others.
            histories = histories[:, : max(int((histories != PAD).sum(1).max()), 1)]
        return histories.to(self.device)


def shard_span(n_items: int, number: int, count: int) -> slice:
    """The encoded ids of shard `number` (from 1) of `count` equal parts of a catalogue; V reserved rows included.

    >>> [shard_span(13, number, 3) for number in (1, 2, 3)]
    [slice(3, 6, None), slice(6, 9, None), slice(9, 13, None)]
    """
    if not 1 <= number <= count or count > n_items - FIRST_ITEM:
        raise InputError(
            f"expected a shard of 1/1 to {n_items - FIRST_ITEM}/{n_items - FIRST_ITEM}, found {number}/{count}"
        )
    start, stop = (FIRST_ITEM + place * (n_items - FIRST_ITEM) // count for place in (number - 1, number))
    return slice(start, stop)


def select_top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Indices and scores of the k largest of each row, ties by the smaller index, without sorting the row.

    scores: float [B, V]. Returns int64 [B, k] and float [B, k]; index 0 if the score is -inf.

    >>> select_top_k(torch.tensor([[-torch.inf, 2.0, 3.0, 3.0]]), 2)[0].tolist()
    [[2, 3]]
    """
    # topk picks any of the items that tie at the k-th: if the next few contain the whole tie, sorting them suffices.
    picked, places, left = _largest(scores, min(k + _SPARE, scores.shape[1]))
    last = picked[:, k - 1]
    cut = ((last == picked[:, -1]) & (picked[:, -1] > -torch.inf)) | ((last <= left) & (left > -torch.inf))
    places, order = places.sort(dim=1)
    picked = picked.gather(1, order)
    order = picked.argsort(dim=1, descending=True, stable=True)[:, :k]
    places, picked = places.gather(1, order), picked.gather(1, order)
    if scores.shape[1] > k + _SPARE and bool(cut.any()):
        places[cut], picked[cut] = _with_long_ties(scores[cut], k)
    return places.masked_fill(picked == -torch.inf, 0), picked


def _largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores and places of the k largest of each row, and a bound [B] of all others (-inf if there is none).

    Of a large catalogue the k blocks with the largest maxima hold them: a sixth of the time of topk over a million.
    """
    rows, width = scores.shape
    blocks = width // _BLOCK
    if blocks < _BLOCKS_FROM * k:
        picked, places = scores.topk(k, dim=1)
        return picked, places, torch.full_like(picked[:, -1], -torch.inf)
    maxima, chosen = scores[:, : blocks * _BLOCK].unflatten(1, (blocks, _BLOCK)).amax(2).topk(k, dim=1)
    inside = (chosen.unsqueeze(2) * _BLOCK + torch.arange(_BLOCK, device=scores.device)).flatten(1)
    rest = torch.arange(blocks * _BLOCK, width, device=scores.device).expand(rows, -1)
    looked = torch.cat([inside, rest], dim=1)
    picked, at = scores.gather(1, looked).topk(k, dim=1)
    return picked, looked.gather(1, at), maxima[:, -1]


def _with_long_ties(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same over the whole row: of all items that tie at the k-th, the smallest indices are kept."""
    threshold = scores.topk(k, dim=1).values[:, -1:]
    above, tied = scores > threshold, scores == threshold
    room = k - above.sum(1, keepdim=True)
    chosen = above | (tied & (tied.cumsum(1) <= room))
    places = chosen.nonzero()[:, 1].view(len(scores), k)  # ascending in each row
    picked = scores.gather(1, places)
    order = picked.argsort(dim=1, descending=True, stable=True)
    return places.gather(1, order), picked.gather(1, order)
