"""Items in cells around k-means centres, so that an item need not be compared with all others (an inverted file)."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcfsr_merlin.dataset.names import FIRST_ITEM

_SIZE = 512  # items of a cell
_PROBES = 16  # nearest cells that an item is compared with
_ROUNDS, _SAMPLE = 6, 64  # of k-means; items of the sample for each centre
_CHUNK, _TOGETHER = 1 << 14, 32  # items, cells


class Cells:
    """units: float [V, D]. The cells, and each one's nearest."""

    def __init__(self, units: Tensor):
        self._units = units
        items = torch.arange(FIRST_ITEM, len(units))
        count = max(len(items) // _SIZE, 1)
        random = torch.Generator().manual_seed(0)
        sample = units[torch.randperm(len(items), generator=random)[: _SAMPLE * count] + FIRST_ITEM]
        centres = sample[:count].clone()
        for _ in range(_ROUNDS):
            cell = _closest(sample, centres)
            sums = torch.zeros_like(centres).index_add_(0, cell, sample)
            empty = torch.bincount(cell, minlength=count) == 0
            centres = torch.where(empty[:, None], centres, F.normalize(sums, dim=1))
        cell = _closest(units[FIRST_ITEM:], centres)
        order = cell.argsort(stable=True)
        self._members = (order + FIRST_ITEM).split(torch.bincount(cell, minlength=count).tolist())
        self._near = (centres @ centres.T).topk(min(_PROBES, count), dim=1).indices
        self._cell = F.pad(cell, (FIRST_ITEM, 0), value=-1)

    def blocks(self) -> Iterator[Tensor]:
        """All items in parts that lie together: int64 [N]."""
        for start in range(0, len(self._members), _TOGETHER):
            yield torch.cat(self._members[start : start + _TOGETHER])

    def nearest(self, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Items int32 and cosines float32, [rows, count], best first; 0 and -1 past the last that was compared."""
        items = torch.zeros(len(rows), count, dtype=torch.int32)
        cosines = torch.full(items.shape, -1.0)
        own = self._cell[rows]
        for cell in own.unique().tolist():
            asked = (own == cell).nonzero()[:, 0]
            others = torch.cat([self._members[near] for near in self._near[cell].tolist()])
            found = self._units[rows[asked]] @ self._units[others].T
            found.masked_fill_(others == rows[asked, None], -2.0)
            best = found.topk(min(count, len(others)), dim=1)
            real = best.values > -1.5
            width = best.values.shape[1]
            items[asked, :width] = torch.where(real, others[best.indices], 0).int()
            cosines[asked, :width] = torch.where(real, best.values, -1.0)
        return items, cosines


def _closest(units: Tensor, centres: Tensor) -> Tensor:
    return torch.cat([(part @ centres.T).argmax(1) for part in units.split(_CHUNK)])
