"""For each item the items with the most similar vectors: the table of the scorer `content`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.scoring.search.cells import Cells

if TYPE_CHECKING:
    from llmcfsr_merlin.scoring.scorer import Report

_ROOM = 1 << 26  # cosines held at once
COSINE_NOISE = 1e-5  # of a float32 cosine
MOST = 200_000  # items from which on each is compared with those of the nearest cells alone, on a CPU


class Neighbours(NamedTuple):
    """items: int32 [V, M], the M nearest of each item but itself, 0 past the last. cosines: float16 [V, M], rounded up.

    cut: float32 [V], no item that is not listed has a larger cosine. proven: bool [V], whether that is sure; else it
    was compared with a part of the items.
    """

    items: Tensor
    cosines: Tensor
    cut: Tensor
    proven: Tensor


def find_neighbours(
    units: Tensor,
    count: int,
    known: Neighbours | None = None,
    folder: Path | None = None,
    report: "Report" = lambda done, of: None,
    most: int | None = None,
) -> Neighbours:
    """Compare unit vectors float [V, D] (zero on reserved rows): all with each other, which is quadratic in V, up to
    `most` items or on a GPU; else those of near cells, which proves nothing.

    known: the table of the leading rows, whose items are compared with the new ones alone. folder: keeps finished
    blocks of rows, so that a build that was interrupted goes on there. report: called with rows done and of all.
    """
    n_items = len(units)
    count = max(min(count, n_items - FIRST_ITEM - 1), 0)
    found = Neighbours(
        torch.zeros(n_items, count, dtype=torch.int32), torch.zeros(n_items, count, dtype=torch.float16),
        torch.zeros(n_items), torch.ones(n_items, dtype=torch.bool),
    )  # fmt: skip
    if not count:
        found.cut.fill_(1.0)
        return found
    before = len(known.cut) if known is not None and known.items.shape[1] == count else FIRST_ITEM
    old = known if before > FIRST_ITEM else None
    few = not units.is_cuda and n_items > (MOST if most is None else most)
    cells = Cells(units) if few else None
    done = 0
    for number, (rows, former) in enumerate(_blocks(n_items, before, old, cells)):
        kept = None if folder is None else folder / f"{number}-{len(rows)}-{n_items}-{before}.npz"
        if kept is not None and kept.is_file():
            parts = np.load(kept)
            items, cosines = torch.from_numpy(parts["items"]), torch.from_numpy(parts["cosines"])
        else:
            if cells is not None and former is None:
                items, cosines = cells.nearest(rows, count)
            else:  # what is new is compared with all that was there, whatever the cells say: it is little
                items, cosines = _nearest(units, rows, count, former)
            if kept is not None:
                partial = kept.with_suffix(".partial.npz")
                np.savez(partial, items=items.numpy(), cosines=cosines.numpy())
                partial.rename(kept)
        found.items[rows], found.cosines[rows] = items, rounded_up(cosines)
        found.cut[rows] = cosines[:, -1] + COSINE_NOISE  # not in 16 bits: that would cost candidates
        found.proven[rows] = former.proven[rows] if former is not None else torch.tensor(cells is None)
        done += len(rows)
        report(done, n_items - FIRST_ITEM)
    return found


def _blocks(
    n_items: int, before: int, old: Neighbours | None, cells: Cells | None
) -> Iterator[tuple[Tensor, Neighbours | None]]:
    """Rows int64 [N] that are compared together, and the table that knows them already."""
    size = max(_ROOM // n_items, 16)
    for rows in torch.arange(FIRST_ITEM, before).split(size):
        if len(rows):
            yield rows, old
    if cells is not None:
        yield from ((rows, None) for some in cells.blocks() if len(rows := some[some >= before]))
    else:
        yield from ((rows, None) for rows in torch.arange(before, n_items).split(size) if len(rows))


def _nearest(units: Tensor, rows: Tensor, count: int, known: Neighbours | None) -> tuple[Tensor, Tensor]:
    """Items int32 and cosines float32, [rows, count], best first, on the CPU."""
    first = FIRST_ITEM if known is None else len(known.cut)
    cosines = units[rows] @ units[first:].T
    inside = rows >= first
    cosines[inside.nonzero()[:, 0], rows[inside] - first] = -2.0
    best = cosines.topk(min(count, cosines.shape[1]), dim=1)
    items, values = (best.indices + first).cpu(), best.values.cpu()
    if known is not None:
        listed = known.items[rows].long()
        again = torch.stack([units[one] @ unit for one, unit in zip(listed, units[rows])]).cpu()
        values, place = torch.cat([again, values], 1).topk(count, dim=1)
        items = torch.cat([listed, items], 1).gather(1, place)
    return items.int(), values


def rounded_up(values: Tensor) -> Tensor:
    """float32 to the next float16 that is not smaller."""
    half = values.to(torch.float16)
    bits = half.view(torch.int16)  # the next number up is one more for positive ones, one less for negative ones
    up = torch.where(half >= 0, 1, -1).to(torch.int16)
    return torch.where(half.float() < values, bits + up, bits).view(torch.float16)
