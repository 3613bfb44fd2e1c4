"""Item-to-item transitions of the training sequences, as a short neighbour list per item, and how often both occur.

    w(i, j) = sum over pairs (i, j) of a user's sequence, at most 20 places apart, of
              distance^-1/2 (times 0.3 where j came before i, if directed), / (sqrt(n_i n_j) + 5)

Of two interactions at one time nobody knows which came first: the mean of both orders, (1 + 0.3) / 2, counts in either
direction, so that a tied pair weighs as much as any other and says nothing of direction.

An item may follow itself: people return to places. It is an item-kNN (Sarwar et al. 2001, shrinkage as in Bell and
Koren 2007) that knows order and distance, as neighbour models of sessions do (Ludewig and Jannach 2018, arXiv
1803.09587). Its constants were chosen on validation items of Beauty and Yelp (docs/results/README.md).

Beside it, for the same neighbours, the cosine of an item-kNN that knows neither:

    c(i, j) = (users who have both, their first times at most 20 places apart) / (sqrt(n_i n_j) + 10), c(i, i) = 0

Each user counts once: a pair that one user repeats says little of others (measured: docs/results/scores_log.md).
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
COSINE_SHRINKAGE = 10.0
# Of each pair of items the sum of distance^-1/2 in the real part and the number of users in the imaginary one: two sums
# with one index.
_SUMS = np.complex64
_ROOM = 1 << 26  # pairs held at once
_SEQUENCES = 1 << 14  # read at once


class Transitions(NamedTuple):
    """For each item its neighbours, all [V, neighbours]; shorter lists end with zeros.

    item_ids: encoded, int32. weights: w, float32. cosines: c, float32.
    """

    item_ids: np.ndarray
    weights: np.ndarray
    cosines: np.ndarray


def count_transitions(
    files: Sequence[str],
    n_items: int,
    train_counts: np.ndarray,
    neighbours: int,
    scratch: Path,
    room: int = _ROOM,
    backward: float = BACKWARD,
) -> Transitions:
    """For each item the `neighbours` with the largest w.

    files: Parquet of training sequences, one list of encoded ids per row, and beside it which of them are tied
    (names.TIED), if that is known; they are read once. n_items: V. train_counts: int64 [V]. scratch: a folder that
    holds, while this runs, sums of more than `room` pairs, cut into parts of the items. backward: the share of a pair's
    weight where j came before i.
    """
    found = Transitions(*(np.zeros((n_items, neighbours), kind) for kind in (np.int32, np.float32, np.float32)))
    scale = np.sqrt(np.maximum(train_counts, 1)).astype(np.float32)
    parts = 2 * SPAN * int(train_counts.sum()) // room + 1
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        for start, table in _sums(files, item_parts(train_counts, n_items, parts), Path(folder), room, backward):
            table.sort_indices()
            source = np.repeat(np.arange(start, start + table.shape[0]), np.diff(table.indptr))
            cosines = table.data.imag / (scale[source] * scale[table.indices] + COSINE_SHRINKAGE)
            weight = table.data.real / (scale[source] * scale[table.indices] + SHRINKAGE)
            weights = scipy.sparse.csr_matrix((weight, table.indices, table.indptr), table.shape)
            place, kept = largest_of_each_row(weights, neighbours)
            for array, values in zip(found, (table.indices, weights.data, cosines)):
                array[source[kept], place] = values[kept]
    return found


def item_parts(train_counts: np.ndarray, n_items: int, parts: int) -> list[int]:
    """Where to cut the items into parts of about as many interactions each: 0, ..., n_items."""
    wanted = np.linspace(0, train_counts.sum(), parts + 1)[1:-1]
    return np.unique([0, *(np.searchsorted(train_counts.cumsum(), wanted) + 1), n_items]).tolist()


def _sums(
    files: Sequence[str], bounds: list[int], folder: Path, room: int, backward: float
) -> Iterator[tuple[int, scipy.sparse.csr_matrix]]:
    """Sums (see _SUMS) for first items start <= i < stop: start and [stop - start, V], part by part."""
    n_items, count = bounds[-1], 0
    if len(bounds) == 2:
        none = scipy.sparse.csr_matrix((n_items, n_items), dtype=_SUMS)
        yield 0, sum(_tables(files, n_items, room, backward), start=none)
        return
    for table in _tables(files, n_items, room, backward):
        for part, (start, stop) in enumerate(pairwise(bounds)):
            scipy.sparse.save_npz(folder / f"{part}-{count}.npz", table[start:stop], compressed=False)
        count += 1
    for part, (start, stop) in enumerate(pairwise(bounds)):
        total = scipy.sparse.csr_matrix((stop - start, n_items), dtype=_SUMS)
        for number in range(count):
            saved = folder / f"{part}-{number}.npz"
            total = total + scipy.sparse.load_npz(saved)
            saved.unlink()
        yield start, total


def _tables(files: Sequence[str], n_items: int, room: int, backward: float) -> Iterator[scipy.sparse.csr_matrix]:
    """Sums (see _SUMS) [V, V] of some sequences after others, each of about room / 4 different pairs."""
    table = scipy.sparse.csr_matrix((n_items, n_items), dtype=_SUMS)
    for file in files:
        for steps in read_steps(file, _SEQUENCES):
            across, within = _pairs(steps, n_items)
            table = table + across + _weighed(across.T, backward)
            if within.nnz:
                table = table + _weighed(within + within.T, (1 + backward) / 2)
            if table.nnz > room // 4:
                yield table
                table = scipy.sparse.csr_matrix((n_items, n_items), dtype=_SUMS)
    yield table


def _weighed(table: scipy.sparse.spmatrix, weight: float) -> scipy.sparse.spmatrix:
    """The weights of sums times a factor, the users as they are."""
    table.data = table.data.copy()  # a transposed table shares it
    table.data.real *= weight
    return table


class Steps(NamedTuple):
    """Sequences, concatenated: encoded ids, the row of each, and the number of its time, all int32 [M]; bool [M],
    whether the item is not before in the row.

    Two of a row have one number if their times are equal; each its own if that is not known.
    """

    item_ids: np.ndarray
    row: np.ndarray
    moment: np.ndarray
    first: np.ndarray


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
            yield Steps(item_ids, row, new.cumsum(dtype=np.int32), _first(item_ids, row))


def _first(item_ids: np.ndarray, row: np.ndarray) -> np.ndarray:
    order = np.lexsort((item_ids, row))  # stable
    again = (item_ids[order][1:] == item_ids[order][:-1]) & (row[order][1:] == row[order][:-1])
    first = np.ones(len(order), bool)
    first[order[1:]] = ~again
    return first


def _pairs(steps: Steps, n_items: int) -> list[scipy.sparse.csr_matrix]:
    """Sums (see _SUMS) over all pairs of a sequence up to SPAN places apart, earlier item by later, [V, V] each: pairs
    of different times, and of one."""
    item_ids, row, moment, first = steps
    found: tuple[list, list] = [], []
    for distance in range(1, min(SPAN, len(row) - 1) + 1):
        earlier, later = item_ids[:-distance], item_ids[distance:]
        pair = (row[distance:] == row[:-distance]) & (earlier >= FIRST_ITEM) & (later >= FIRST_ITEM)
        tied = moment[distance:] == moment[:-distance]
        value = distance**-0.5 + 1j * (first[:-distance] & first[distance:])
        for entries, some in zip(found, (pair & ~tied, pair & tied)):
            entries.append((value[some].astype(_SUMS), earlier[some], later[some]))
    return [_table(entries, n_items) for entries in found]


def _table(entries: list[tuple[np.ndarray, ...]], n_items: int) -> scipy.sparse.csr_matrix:
    """[V, V], from pieces of (values, rows, columns); the values of one place are added."""
    if not entries:
        return scipy.sparse.csr_matrix((n_items, n_items), dtype=_SUMS)
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
