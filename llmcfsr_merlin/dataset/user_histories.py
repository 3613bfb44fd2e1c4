"""Full user sequences as written by stage prepare, and their cuts into training, validation and test."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmcfsr_merlin.dataset.names import ITEM, SEQUENCES, TARGETS, TRAIN_ITEMS, USER, VALID_ITEMS
from llmcfsr_merlin.runtime.errors import InputError

_BLOCK = 4096  # users read at once


class Histories(NamedTuple):
    """A block of users.

    users: object [B], raw ids. sequences: encoded ids int64 per user, in order. train, valid: int64 [B], how many of
    these are before validation and before test: all but two and all but one, or those before the times of a temporal
    split. targets: last, first or all: which items of validation, and of test, are targets; None for leave-one-out.
    """

    users: np.ndarray
    sequences: list[np.ndarray]
    train: np.ndarray
    valid: np.ndarray
    targets: str | None = None

    def cases(self, split: str) -> Iterator[tuple[int, int]]:
        """(user's position, target's position in the sequence) of each row of `valid` or `test`.

        The history of a target is everything before it, including items after the cut. A user without an item before
        the cut has no row.
        """
        for user, sequence in enumerate(self.sequences):
            if split == "valid":
                first, end = int(self.train[user]), int(self.valid[user])
            else:
                first, end = int(self.valid[user]), len(sequence)
            if self.targets is not None and not 1 <= first < end:
                continue
            if self.targets in (None, "last"):
                first = end - 1
            elif self.targets == "first":
                end = first + 1
            for target in range(first, end):
                yield user, target


def read_histories(sequences: Path, block: int = _BLOCK) -> Iterator[Histories]:
    """Stream the part files of a folder `sequences` in file order. InputError if there are none."""
    parts = sorted(Path(sequences).glob("*.parquet"))
    if not parts:
        raise InputError(f"expected part files in {sequences}, found none: run `llmcfsr prepare` first")
    for part in parts:
        with pq.ParquetFile(part) as file:
            timed = TRAIN_ITEMS in file.schema_arrow.names
            targets = (file.schema_arrow.metadata or {}).get(TARGETS.encode(), b"last").decode()
            columns = [USER, ITEM, *([TRAIN_ITEMS, VALID_ITEMS] if timed else [])]
            for batch in file.iter_batches(block, columns=columns):
                if not batch.num_rows:  # dask writes empty partitions, whose list column can be of type null
                    continue
                users, items = batch.column(USER).to_numpy(zero_copy_only=False), lists_of(batch.column(ITEM))
                if timed:
                    train, valid = (batch.column(name).to_numpy() for name in (TRAIN_ITEMS, VALID_ITEMS))
                else:
                    lengths = np.array([len(sequence) for sequence in items])
                    train, valid = np.maximum(lengths - 2, 0), np.maximum(lengths - 1, 0)
                yield Histories(users, items, train, valid, targets if timed else None)


def read_sequences(prepared: Path, block: int = _BLOCK) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Stream (user ids object [B], their whole sequences of encoded ids) of a prepare directory, in file order."""
    for block_of in read_histories(Path(prepared) / SEQUENCES, block):
        yield block_of.users, block_of.sequences


def lists_of(column: pa.Array) -> list[np.ndarray]:
    """Rows of a list column as int64 arrays, without a Python object per element."""
    offsets = column.offsets.to_numpy()
    return np.split(column.flatten().to_numpy().astype(np.int64, copy=False), (offsets - offsets[0])[1:-1])
