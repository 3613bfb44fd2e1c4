"""Counts the same transitions on a GPU: each pair is one integer; pairs are sorted and summed there."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.scoring.scorers.transition_counts import (
    BACKWARD,
    COSINE_SHRINKAGE,
    SHRINKAGE,
    SPAN,
    Transitions,
    item_parts,
    read_steps,
)

_BYTES = 80  # of the device's memory a pair takes while it is sorted and summed
_ITEM_BYTES = 48  # and each interaction


def fits(train_counts: np.ndarray, device: torch.device) -> bool:
    """Whether the interactions, and pairs enough at a time, fit the free memory of the device."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return _ITEM_BYTES * int(train_counts.sum()) < free // 2


def count_transitions_on(
    device: torch.device,
    files: Sequence[str],
    n_items: int,
    train_counts: np.ndarray,
    neighbours: int,
    room: int | None = None,
    backward: float = BACKWARD,
) -> Transitions:
    """As transition_counts.count_transitions; room: pairs at once, None: as many as half of the free memory holds.

    Sums are of double precision: rounded, they do not show in which order a GPU added.
    """
    if room is None:
        room = torch.cuda.mem_get_info(device)[0] // 2 // _BYTES
    item_ids = torch.zeros(n_items, neighbours, dtype=torch.int32, device=device)
    weights, cosines = torch.zeros(2, n_items, neighbours, device=device)
    steps = _read(files, device)
    scale = torch.from_numpy(np.sqrt(np.maximum(train_counts, 1)).astype(np.float32)).to(device)
    parts = 2 * SPAN * int(train_counts.sum()) // room + 1
    for start, stop in pairwise(item_parts(train_counts, n_items, parts)):
        pairs, sums, users = _sums(steps, n_items, start, stop, backward)
        first, second = pairs // n_items, pairs % n_items
        size = scale[first] * scale[second]
        score = sums.float() / (size + SHRINKAGE)
        cosine = users.float() / (size + COSINE_SHRINKAGE)
        # By item, then by score, then by neighbour: pairs ascend, and stable sorts keep that among equals.
        order = score.argsort(descending=True, stable=True)
        order = order[first[order].argsort(stable=True)]
        counts = torch.bincount(first, minlength=n_items)
        place = torch.arange(len(first), device=device) - (counts.cumsum(0) - counts)[first]  # as `first` ascends
        kept = place < neighbours
        first, place, order = first[kept], place[kept], order[kept]
        for table, values in ((item_ids, second.int()), (weights, score), (cosines, cosine)):
            table[first, place] = values[order]
    return Transitions(*(table.cpu().numpy() for table in (item_ids, weights, cosines)))


class _Log(NamedTuple):
    """All sequences, concatenated: encoded ids int32 [M], the numbers of each one's sequence and of its time, and
    whether it is not before in the sequence."""

    items: Tensor
    sequence: Tensor
    moment: Tensor
    first: Tensor


def _read(files: Sequence[str], device: torch.device) -> _Log:
    parts, sequences, moments = [[*[np.zeros(0, np.int32)] * 3, np.zeros(0, bool)]], 0, 0
    for file in files:
        for steps in read_steps(file):
            parts.append(
                [steps.item_ids, steps.row + np.int32(sequences), steps.moment + np.int32(moments), steps.first]
            )
            if len(steps.row):  # rows without an item at the end need no number
                sequences, moments = int(parts[-1][1][-1]) + 1, int(parts[-1][2][-1])
    return _Log(*(torch.from_numpy(np.concatenate(part)).to(device) for part in zip(*parts)))


def _sums(log: _Log, n_items: int, start: int, stop: int, backward: float) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of first items start <= i < stop as i * V + j, int64 [N] ascending, and double sums of their weights and
    users."""
    pairs, weights = [log.items.new_zeros(0, dtype=torch.int64)], [log.items.new_zeros(0, dtype=torch.float64)]
    once = [log.first[:0]]
    for some, weight, new in _pairs(log, n_items, start, stop, backward):
        pairs.append(some)
        weights.append(torch.full_like(some, weight, dtype=torch.float64))
        once.append(new)
    found, place = torch.cat(pairs).unique(return_inverse=True)
    none = weights[0].new_zeros(len(found))
    sums, users = (none.index_add(0, place, torch.cat(values).double()) for values in (weights, once))
    return found, sums, users


def _pairs(log: _Log, n_items: int, start: int, stop: int, backward: float) -> Iterator[tuple[Tensor, float, Tensor]]:
    """By distance, direction and tie, pairs of first items start <= i < stop as i * V + j, the weight of each, and
    whether neither is before in the sequence."""
    for distance in range(1, min(SPAN, len(log.items) - 1) + 1):
        (earlier, later), (before, after), (then, now), (new, too) = ((of[:-distance], of[distance:]) for of in log)
        real = (before == after) & (earlier >= FIRST_ITEM) & (later >= FIRST_ITEM)
        tied = then == now
        for first, second, share in ((earlier, later, 1.0), (later, earlier, backward)):
            here = real & (first >= start) & (first < stop)
            for some, weight in ((here & ~tied, share), (here & tied, (1 + backward) / 2)):
                yield first[some].long() * n_items + second[some], weight * distance**-0.5, (new & too)[some]
