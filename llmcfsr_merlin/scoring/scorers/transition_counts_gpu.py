"""Counts the same transitions on a GPU: each pair is one integer; pairs are sorted and summed there."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from llmcfsr_merlin.dataset.names import FIRST_ITEM, ITEM
from llmcfsr_merlin.scoring.scorers.transition_counts import BACKWARD, SHRINKAGE, SPAN, item_parts, sequences_of

_BYTES = 64  # of the device's memory a pair takes while it is sorted and summed
_ITEM_BYTES = 40  # and each interaction


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
) -> tuple[np.ndarray, np.ndarray]:
    """As transition_counts.count_transitions; room: pairs at once, None: as many as half of the free memory holds.

    Sums are of double precision: rounded, they do not show in which order a GPU added.
    """
    if room is None:
        room = torch.cuda.mem_get_info(device)[0] // 2 // _BYTES
    item_ids = torch.zeros(n_items, neighbours, dtype=torch.int32, device=device)
    weights = torch.zeros(n_items, neighbours, device=device)
    items, sequence = (part.to(device) for part in _read(files))
    scale = torch.from_numpy(np.sqrt(np.maximum(train_counts, 1)).astype(np.float32)).to(device)
    parts = 2 * SPAN * int(train_counts.sum()) // room + 1
    for start, stop in pairwise(item_parts(train_counts, n_items, parts)):
        pairs, sums = _sums(items, sequence, n_items, start, stop, backward)
        first, second = pairs // n_items, pairs % n_items
        score = sums.float() / (scale[first] * scale[second] + SHRINKAGE)
        # By item, then by score, then by neighbour: pairs ascend, and stable sorts keep that among equals.
        order = score.argsort(descending=True, stable=True)
        order = order[first[order].argsort(stable=True)]
        counts = torch.bincount(first, minlength=n_items)
        place = torch.arange(len(first), device=device) - (counts.cumsum(0) - counts)[first]  # as `first` ascends
        kept = place < neighbours
        first, place, order = first[kept], place[kept], order[kept]
        item_ids[first, place], weights[first, place] = second[order].int(), score[order]
    return item_ids.cpu().numpy(), weights.cpu().numpy()


def _read(files: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Encoded ids int32 [M] of all sequences, concatenated, and each one's sequence number, int32 [M]."""
    item_ids, numbers, count = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)], 0
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(columns=[ITEM]):
            items, number = sequences_of(batch.column(ITEM))
            item_ids.append(items)
            numbers.append(number + np.int32(count))
            count += len(batch)
    return torch.from_numpy(np.concatenate(item_ids)), torch.from_numpy(np.concatenate(numbers))


def _sums(
    items: Tensor, sequence: Tensor, n_items: int, start: int, stop: int, backward: float
) -> tuple[Tensor, Tensor]:
    """Pairs of first items start <= i < stop as i * V + j, int64 [N] ascending, and sums of their weights, double."""
    pairs, weights = [items.new_zeros(0, dtype=torch.int64)], [items.new_zeros(0, dtype=torch.float64)]
    for some, weight in _pairs(items, sequence, n_items, start, stop, backward):
        pairs.append(some)
        weights.append(torch.full_like(some, weight, dtype=torch.float64))
    found, place = torch.cat(pairs).unique(return_inverse=True)
    return found, weights[0].new_zeros(len(found)).index_add_(0, place, torch.cat(weights))


def _pairs(
    items: Tensor, sequence: Tensor, n_items: int, start: int, stop: int, backward: float
) -> Iterator[tuple[Tensor, float]]:
    """By distance and direction, the pairs of first items start <= i < stop as i * V + j, and the weight of each."""
    for distance in range(1, min(SPAN, len(items) - 1) + 1):
        earlier, later = items[:-distance], items[distance:]
        real = (sequence[:-distance] == sequence[distance:]) & (earlier >= FIRST_ITEM) & (later >= FIRST_ITEM)
        for first, second, share in ((earlier, later, 1.0), (later, earlier, backward)):
            here = real & (first >= start) & (first < stop)
            yield first[here].long() * n_items + second[here], share * distance**-0.5
