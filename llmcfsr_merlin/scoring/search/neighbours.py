"""For each item the items with the most similar vectors, found by comparing it with all: the table of `content`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llmcfsr_merlin.dataset.names import FIRST_ITEM

_ROOM = 1 << 26  # cosines held at once
COSINE_NOISE = 1e-5  # of a float32 cosine


class Neighbours:
    """items: int32 [V, M], the M nearest of each item but itself, 0 past the last. cosines: float16 [V, M], rounded up.

    cut: float32 [V], no item that is not listed has a larger cosine; 1 where that was not proven.
    """

    def __init__(self, items: Tensor, cosines: Tensor, cut: Tensor):
        self.items, self.cosines, self.cut = items, cosines, cut

    def __len__(self) -> int:
        return len(self.items)


def find_neighbours(
    units: Tensor,
    count: int,
    known: Neighbours | None = None,
    folder: Path | None = None,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> Neighbours:
    """Compare all unit vectors float [V, D] (zero on reserved rows) with each other; quadratic in V.

    known: the table of the leading rows, whose items are compared with the new ones alone. folder: keeps finished
    blocks of rows, so that a build that was interrupted goes on there. report: called with rows done and of all.
    """
    n_items = len(units)
    count = min(count, n_items - FIRST_ITEM - 1)
    found = Neighbours(
        torch.zeros(n_items, max(count, 0), dtype=torch.int32),
        torch.zeros(n_items, max(count, 0), dtype=torch.float16), torch.zeros(n_items),
    )  # fmt: skip
    if count < 1:
        found.cut.fill_(1.0)
        return found
    before = len(known) if known is not None and known.items.shape[1] == count else 0
    size = max(_ROOM // n_items, 16)
    for start in range(FIRST_ITEM, n_items, size):
        rows = slice(start, min(start + size, n_items))
        kept = None if folder is None else folder / f"{start}-{rows.stop}-{n_items}-{before}.npz"
        if kept is not None and kept.is_file():
            parts = np.load(kept)
            items, cosines = torch.from_numpy(parts["items"]), torch.from_numpy(parts["cosines"])
        else:
            old = known if known is not None and rows.stop <= before else None
            items, cosines = _nearest(units, rows, count, old)
            if kept is not None:
                partial = kept.with_suffix(".partial.npz")
                np.savez(partial, items=items.numpy(), cosines=cosines.numpy())
                partial.rename(kept)
        found.items[rows], found.cosines[rows] = items, rounded_up(cosines)
        # Float16 of a cut would cost candidates; the cosines' noise is added.
        found.cut[rows] = cosines[:, -1] + COSINE_NOISE
        report(rows.stop, n_items)
    return found


def _nearest(units: Tensor, rows: slice, count: int, known: Neighbours | None) -> tuple[Tensor, Tensor]:
    """Items int32 and cosines float32, [rows, count], best first."""
    first = FIRST_ITEM if known is None else len(known)
    cosines = units[rows] @ units[first:].T
    own = torch.arange(rows.start, rows.stop)
    inside = own >= first
    cosines[inside.nonzero()[:, 0], own[inside] - first] = -2.0
    best = cosines.topk(min(count, cosines.shape[1]), dim=1)
    items, values = best.indices + first, best.values
    if known is not None:
        items = torch.cat([known.items[rows].long(), items], 1)
        values = torch.cat([_cosines(units, rows, known.items[rows].long()), values], 1)
        values, place = values.topk(count, dim=1)
        items = items.gather(1, place)
    return items.int(), values


def _cosines(units: Tensor, rows: slice, items: Tensor) -> Tensor:
    return torch.stack([units[listed] @ unit for listed, unit in zip(items, units[rows])])


def rounded_up(values: Tensor) -> Tensor:
    """float32 to the next float16 that is not smaller."""
    half = values.to(torch.float16)
    bits = half.view(torch.int16)  # the next number up is one more for positive ones, one less for negative ones
    up = torch.where(half >= 0, 1, -1).to(torch.int16)
    return torch.where(half.float() < values, bits + up, bits).view(torch.float16)
