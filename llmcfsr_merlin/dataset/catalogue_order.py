"""The order of a catalogue sorted by raw item id, in which many public logs list what happened at one time."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from llmcfsr_merlin.dataset.names import FIRST_ITEM, ITEM, TIED


def catalogue_order(ids: Sequence[str]) -> np.ndarray:
    """The place of each raw item id, int64 [N], in a file sorted by item: by number if all are numbers, else by text.

    >>> catalogue_order(["10", "9", "B0"]).tolist(), catalogue_order(["10", "9"]).tolist()
    ([0, 1, 2], [1, 0])
    """
    texts = np.asarray(ids, dtype=str)
    numbers = len(texts) > 0 and all(text.isdecimal() and len(text) < 19 for text in texts.tolist())
    return np.unique(texts.astype(np.int64) if numbers else texts, return_inverse=True)[1].astype(np.int64)


class StepOrder(NamedTuple):
    """Steps from one item of a sequence to the next. up, down: in the catalogue's order, from one time to a later one.
    tied: within one time, all: with those from an item to itself. known: whether the files say what is tied."""

    up: int
    down: int
    tied: int
    all: int
    known: bool

    @property
    def ascending(self) -> float | None:
        """Share that goes up among the steps in time that go up or down; None if there is none."""
        return self.up / (self.up + self.down) if self.up + self.down else None


def step_order(files: Sequence[str], ids: Sequence[str]) -> StepOrder:
    """The steps of some sequences (Parquet files of stage prepare). ids: raw ids of the items by code, from FIRST_ITEM.

    Steps within one time are no evidence of what order the log has, if the files say which they are (names.TIED).
    """
    order = np.r_[np.zeros(FIRST_ITEM, np.int64), catalogue_order(ids)]
    found, known = np.zeros(4, np.int64), bool(files)
    for path in files:
        with pq.ParquetFile(path) as file:
            columns = [name for name in (ITEM, TIED) if name in file.schema_arrow.names]
            known &= TIED in columns
            for batch in file.iter_batches(columns=columns):
                column = batch.column(ITEM)
                codes = column.flatten().to_numpy(zero_copy_only=False)
                row = np.repeat(np.arange(len(column)), np.diff(column.offsets.to_numpy(zero_copy_only=False)))
                inside, tied = row[1:] == row[:-1], np.zeros(max(len(codes) - 1, 0), bool)
                if TIED in columns:
                    tied = batch.column(TIED).flatten().to_numpy(zero_copy_only=False).astype(bool)[1:]
                step = np.diff(order[codes])[inside & ~tied]
                found += [(step > 0).sum(), (step < 0).sum(), (inside & tied).sum(), inside.sum()]
    up, down, tied_steps, steps = found.tolist()
    return StepOrder(up, down, tied_steps, steps, known)
