"""Batches of a split held in memory: on a GPU in device memory, so that no step waits for the host."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from llmcfsr_merlin.dataset.names import COUNT, ITEM, ROW

_SHARE = 4  # share of a GPU's free memory that a split may take


class Batches:
    """Batches of a split like a DataLoader's: {item_id: int64 [B, width] right-padded, row: int64 [B], count: items}.

    On the CPU a batch is as wide as its longest row; on a GPU as wide as the split's longest row, which the host knows.
    """

    def __init__(
        self, files: Sequence[str], batch_size: int, device: torch.device, *,
        shuffle: bool = False, seed: int = 0, prefixes: int | None = None,
    ):  # fmt: skip
        """files: Parquet with one list of encoded ids per row. seed: of the row order, which differs per epoch.
        prefixes: each prefix of at least so many items is a row of the batches, with the number of its source row, and
        so is a whole row of fewer."""
        lists = [pq.read_table(file, columns=[ITEM])[ITEM].combine_chunks() for file in files]
        lengths = np.concatenate([part.value_lengths().to_numpy(zero_copy_only=False) for part in lists])
        values = np.concatenate([part.flatten().to_numpy(zero_copy_only=False) for part in lists]).astype(np.int32)
        starts, rows = lengths.astype(np.int64).cumsum() - lengths, np.arange(len(lengths))
        if prefixes:  # an index, not a copy
            rows, lengths = prefixes_of(lengths, prefixes)
            starts = starts[rows]
        fits = device.type == "cuda" and values.nbytes < torch.cuda.mem_get_info(device)[0] // _SHARE
        self.device = device if fits else torch.device("cpu")
        self._values = torch.from_numpy(values).to(self.device)
        self._lengths = torch.from_numpy(lengths.astype(np.int64)).to(self.device)
        self._starts, self._rows = torch.from_numpy(starts).to(self.device), torch.from_numpy(rows).to(self.device)
        self._known_lengths = torch.from_numpy(lengths.astype(np.int64))  # to the host
        self._width = int(lengths.max()) if device.type == "cuda" else None
        self._shuffle, self._seed, self._epoch = shuffle, seed, 0
        self.batch_size, self.dataset = batch_size, range(len(lengths))  # as a DataLoader's, whose length is asked for

    def set_epoch(self, epoch: int) -> None:
        """Sets the row order of the next pass: an epoch has the same order after resuming."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[dict]:
        rows = torch.arange(len(self.dataset))
        if self._shuffle:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
            rows = torch.randperm(len(self.dataset), generator=generator)
        here = rows.to(self.device)
        for start in range(0, len(rows), self.batch_size):
            known = self._known_lengths[rows[start : start + self.batch_size]]
            chosen = here[start : start + self.batch_size]
            width = self._width or int(known.max())
            yield {ITEM: self._padded(chosen, width), ROW: self._rows[chosen], COUNT: int(known.sum())}

    def _padded(self, rows: Tensor, width: int) -> Tensor:
        lengths = self._lengths[rows].unsqueeze(1)
        step = torch.arange(width, device=self.device)
        places = (self._starts[rows].unsqueeze(1) + step).clamp_max(len(self._values) - 1)
        return self._values[places].long().masked_fill(step >= lengths, 0)


def prefixes_of(lengths: np.ndarray, shortest: int) -> tuple[np.ndarray, np.ndarray]:
    """Row lengths -> row and length, int64 [N], of each prefix of at least `shortest` items, in order.

    A row of fewer items, but at least two, is one sample.
    """
    first = np.minimum(lengths.astype(np.int64), shortest)
    count = np.where(first == shortest, lengths.astype(np.int64) - shortest + 1, first > 1)
    rows = np.repeat(np.arange(len(count)), count)
    return rows, np.arange(len(rows)) - (count.cumsum() - count)[rows] + first[rows]
