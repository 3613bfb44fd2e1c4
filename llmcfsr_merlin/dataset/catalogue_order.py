"""The order of a catalogue sorted by raw item id, in which many public logs list what happened at one time."""

from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq

from llmcfsr_merlin.dataset.names import FIRST_ITEM, ITEM


def catalogue_order(ids: Sequence[str]) -> np.ndarray:
    """The place of each raw item id, int64 [N], in a file sorted by item: by number if all are numbers, else by text.

    >>> catalogue_order(["10", "9", "B0"]).tolist(), catalogue_order(["10", "9"]).tolist()
    ([0, 1, 2], [1, 0])
    """
    texts = np.asarray(ids, dtype=str)
    numbers = len(texts) > 0 and all(text.isdecimal() and len(text) < 19 for text in texts.tolist())
    return np.unique(texts.astype(np.int64) if numbers else texts, return_inverse=True)[1].astype(np.int64)


def ascending_share(files: Sequence[str], ids: Sequence[str]) -> float | None:
    """Share of the steps of some sequences (Parquet files of stage prepare) that go up in the catalogue's order, among
    those that go up or down; None if there is none. ids: raw ids of the items by code, from FIRST_ITEM.
    """
    order = np.r_[np.zeros(FIRST_ITEM, np.int64), catalogue_order(ids)]
    up, down = 0, 0
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(columns=[ITEM]):
            column = batch.column(ITEM)
            codes = column.flatten().to_numpy(zero_copy_only=False)
            row = np.repeat(np.arange(len(column)), np.diff(column.offsets.to_numpy(zero_copy_only=False)))
            step = np.sign(np.diff(order[codes]))[row[1:] == row[:-1]]
            up, down = up + int((step > 0).sum()), down + int((step < 0).sum())
    return up / (up + down) if up + down else None
