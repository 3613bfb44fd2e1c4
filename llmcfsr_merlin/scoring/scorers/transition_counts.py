"""Item-to-item transitions of the training sequences, as a short neighbour list per item.

    w(i, j) = sum over pairs (i, j) of a user's sequence, at most 20 places apart, of
              distance^-1/2 (times 0.3 where j came before i, if directed), / (sqrt(n_i n_j) + 5)

Of two interactions at one time nobody knows which came first: the mean of both orders, (1 + 0.3) / 2, counts in either
direction, so that a tied pair weighs as much as any other and says nothing of direction.

An item may follow itself: people return to places. It is an item-kNN (Sarwar et al. 2001, shrinkage as in Bell and
Koren 2007) that knows order and distance, as neighbour models of sessions do (Ludewig and Jannach 2018, arXiv
1803.09587). Its constants were chosen on validation items of Beauty and Yelp (docs/results/README.md).
"""

import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import scipy.sparse

from llmcfsr_merlin.dataset.names import FIRST_ITEM, ITEM, TIED

SPAN, BACKWARD, SHRINKAGE = 20, 0.3, 5.0
_ROOM = 1 << 26  # pairs held at once
_SEQUENCES = 1 << 14  # read at once


def count_transitions(
    files: Sequence[str],
    n_items: int,
    train_counts: np.ndarray,
    neighbours: int,
    scratch: Path,
    room: int = _ROOM,
    backward: float = BACKWARD,
) -> tuple[np.ndarray, np.ndarray]:
    """For each item the `neighbours` with the largest w: encoded ids int32 and weights float32, both [V, neighbours].

    files: Parquet of training sequences, one list of encoded ids per row, and beside it which of them are tied
    (names.TIED), if that is known; they are read once. n_items: V. train_counts: int64 [V]. scratch: a folder that
    holds, while this runs, sums of more than `room` pairs, cut into parts of the items. backward: the share of a pair's
    weight where j came before i. Shorter lists end with id 0 and weight 0.
    """
    item_ids, weights = np.zeros((n_items, neighbours), np.int32), np.zeros((n_items, neighbours), np.float32)
    scale = np.sqrt(np.maximum(train_counts, 1)).astype(np.float32)
    parts = 2 * SPAN * int(train_counts.sum()) // room + 1
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        for start, table in _sums(files, item_parts(train_counts, n_items, parts), Path(folder), room, backward):
            source = np.repeat(np.arange(start, start + table.shape[0]), np.diff(table.indptr))
            table.data /= scale[source] * scale[table.indices] + SHRINKAGE
            place, kept = largest_of_each_row(table, neighbours)
            item_ids[source[kept], place] = table.indices[kept]
            weights[source[kept], place] = table.data[kept]
    return item_ids, weights


def item_parts(train_counts: np.ndarray, n_items: int, parts: int) -> list[int]:
    """Where to cut the items into parts of about as many interactions each: 0, ..., n_items."""
    wanted = np.linspace(0, train_counts.sum(), parts + 1)[1:-1]
    return np.unique([0, *(np.searchsorted(train_counts.cumsum(), wanted) + 1), n_items]).tolist()


def _sums(
    files: Sequence[str], bounds: list[int], folder: Path, room: int, backward: float
) -> Iterator[tuple[int, scipy.sparse.csr_matrix]]:
    """Sums of the pairs' weights for first items start <= i < stop: start and [stop - start, V], part by part."""
    n_items, count = bounds[-1], 0
    if len(bounds) == 2:
        none = scipy.sparse.csr_matrix((n_items, n_items), dtype=np.float32)
        yield 0, sum(_tables(files, n_items, room, backward), start=none)
        return
    for table in _tables(files, n_items, room, backward):
        for part, (start, stop) in enumerate(pairwise(bounds)):
            scipy.sparse.save_npz(folder / f"{part}-{count}.npz", table[start:stop], compressed=False)
        count += 1
    for part, (start, stop) in enumerate(pairwise(bounds)):
        total = scipy.sparse.csr_matrix((stop - start, n_items), dtype=np.float32)
        for number in range(count):
            saved = folder / f"{part}-{number}.npz"
            total = total + scipy.sparse.load_npz(saved)
            saved.unlink()
        yield start, total


def _tables(files: Sequence[str], n_items: int, room: int, backward: float) -> Iterator[scipy.sparse.csr_matrix]:
    """Sums of the pairs' weights [V, V] of some sequences after others, each of about room / 4 different pairs."""
    table = scipy.sparse.csr_matrix((n_items, n_items), dtype=np.float32)
    for file in files:
        for steps in read_steps(file, _SEQUENCES):
            across, within = _pairs(steps, n_items)
            table = table + across + backward * across.T
            if within.nnz:
                table = table + (1 + backward) / 2 * (within + within.T)
            if table.nnz > room // 4:
                yield table
                table = scipy.sparse.csr_matrix((n_items, n_items), dtype=np.float32)
    yield table


class Steps(NamedTuple):
    """Sequences, concatenated: encoded ids, the row of each, and the number of its time, all int32 [M].

    Two of a row have one number if their times are equal; each its own if that is not known.
    """

    item_ids: np.ndarray
    row: np.ndarray
    moment: np.ndarray


def read_steps(file: str, size: int = 1 << 16) -> Iterator[Steps]:
    """The sequences of a Parquet file, `size` of them at a time."""
    with pq.ParquetFile(file) as source:
        columns = [name for name in (ITEM, TIED) if name in source.schema_arrow.names]
        for batch in source.iter_batches(size, columns=columns):
            lists = batch.column(ITEM)
            item_ids = lists.flatten().to_numpy(zero_copy_only=False).astype(np.int32)
            row = np.repeat(np.arange(len(lists), dtype=np.int32), np.diff(lists.offsets.to_numpy()))
            new = np.ones(len(item_ids), bool)
            if TIED in columns:
                new = ~batch.column(TIED).flatten().to_numpy(zero_copy_only=False).astype(bool)
            yield Steps(item_ids, row, new.cumsum(dtype=np.int32))


def _pairs(steps: Steps, n_items: int) -> list[scipy.sparse.csr_matrix]:
    """Sums of distance^-1/2 over all pairs of a sequence up to SPAN places apart, earlier item by later, [V, V] each:
    pairs of different times, and of one."""
    item_ids, row, moment = steps
    found: tuple[list, list] = [], []
    for distance in range(1, min(SPAN, len(row) - 1) + 1):
        earlier, later = item_ids[:-distance], item_ids[distance:]
        pair = (row[distance:] == row[:-distance]) & (earlier >= FIRST_ITEM) & (later >= FIRST_ITEM)
        tied = moment[distance:] == moment[:-distance]
        for entries, some in zip(found, (pair & ~tied, pair & tied)):
            entries.append((np.full(some.sum(), distance**-0.5, np.float32), earlier[some], later[some]))
    return [_table(entries, n_items) for entries in found]


def _table(entries: list[tuple[np.ndarray, ...]], n_items: int) -> scipy.sparse.csr_matrix:
    """[V, V], from pieces of (values, rows, columns); the values of one place are added."""
    if not entries:
        return scipy.sparse.csr_matrix((n_items, n_items), dtype=np.float32)
    values, *places = (np.concatenate(part) for part in zip(*entries))
    return scipy.sparse.csr_matrix((values, places), (n_items, n_items))


def largest_of_each_row(table: scipy.sparse.csr_matrix, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` largest entries of each row, ties by the smaller column: the rank of each in its row, from 0, and
    where it stands among the table's entries, row after row. The table's columns are sorted in place.
    """
    table.sort_indices()
    # Row by row: one sort of all entries by row and value took most of the time of counting.
    best = [first + np.argsort(-table.data[first:end], kind="stable")[:count] for first, end in pairwise(table.indptr)]
    sizes = np.minimum(np.diff(table.indptr), count)
    place = np.arange(sizes.sum()) - np.repeat(sizes.cumsum() - sizes, sizes)
    return place, np.concatenate(best)
