"""Which items follow which in the training sequences, as a short list of neighbours an item.

    w(i, j) = sum over pairs (i, j) of a user's sequence, at most 20 places apart, of
              distance^-1/2 (times 0.3 where j came before i), / (sqrt(n_i n_j) + 5)

An item may follow itself: people return to places. It is an item-kNN (Sarwar et al. 2001, shrinkage as in Bell and
Koren 2007) that knows order and distance, as neighbour models of sessions do (Ludewig and Jannach 2018, arXiv
1803.09587). Its constants were chosen on validation items of Beauty and Yelp (docs/results/README.md).
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow.parquet as pq
import scipy.sparse

from llmcfsr_merlin.contract import FIRST_ITEM, ITEM

_SPAN, _BACKWARD, _SHRINKAGE = 20, 0.3, 5.0
_ROOM = 1 << 26  # pairs held at once


def count_transitions(
    files: Sequence[str], rows: int, train_counts: np.ndarray, neighbours: int, room: int = _ROOM
) -> tuple[np.ndarray, np.ndarray]:
    """For each item the `neighbours` with the largest w: codes int32 and weights float32, both [V, neighbours].

    files: Parquet of training sequences, a list of codes a row. rows: V. train_counts: int64 [V]. Shorter lists end
    with code 0 and weight 0. Where the pairs are more than `room`, the files are read once for each part of the items.
    """
    codes, weights = np.zeros((rows, neighbours), np.int32), np.zeros((rows, neighbours), np.float32)
    scale = np.sqrt(np.maximum(train_counts, 1)).astype(np.float32)
    pairs = 2 * _SPAN * int(train_counts.sum())
    size = max(-(-rows * room // max(pairs, 1)), 1)
    for start in range(0, rows, size):
        stop = min(start + size, rows)
        table = scipy.sparse.csr_matrix((stop - start, rows), dtype=np.float32)
        for file in files:
            for group in range(pq.read_metadata(file).num_row_groups):
                table = table + _pairs(*_sequences(file, group), start, stop, rows)
        source = np.repeat(np.arange(start, stop), np.diff(table.indptr))
        table.data /= scale[source] * scale[table.indices] + _SHRINKAGE
        place, kept = largest_of_each_row(table, neighbours)
        codes[source[kept], place] = table.indices[kept]
        weights[source[kept], place] = table.data[kept]
    return codes, weights


def _sequences(file: str, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes int32 [M] of all sequences of a row group, one after the other, and the row of each, [M]."""
    lists = pq.ParquetFile(file).read_row_group(group, columns=[ITEM])[ITEM].combine_chunks()
    codes = lists.flatten().to_numpy(zero_copy_only=False).astype(np.int32)
    lengths = np.diff(lists.offsets.to_numpy(zero_copy_only=False))
    return codes, np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)


def _pairs(codes: np.ndarray, row: np.ndarray, start: int, stop: int, rows: int) -> scipy.sparse.csr_matrix:
    """Sums of the pairs' weights for first items start <= i < stop, [stop - start, V]."""
    sources, followers, weights = [], [], []
    for first, second, weight in _directed(codes, row):
        chosen = (first >= max(start, FIRST_ITEM)) & (first < stop) & (second >= FIRST_ITEM)
        sources.append(first[chosen] - start)
        followers.append(second[chosen])
        weights.append(np.full(chosen.sum(), weight, np.float32))
    entries = np.concatenate(weights), (np.concatenate(sources), np.concatenate(followers))
    return scipy.sparse.csr_matrix(entries, (stop - start, rows))


def _directed(codes: np.ndarray, row: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """All pairs of a sequence up to _SPAN places apart, in both directions, with their weight."""
    for distance in range(1, _SPAN + 1):
        together = row[distance:] == row[:-distance]
        earlier, later = codes[:-distance][together], codes[distance:][together]
        yield earlier, later, distance**-0.5
        yield later, earlier, _BACKWARD * distance**-0.5


def largest_of_each_row(table: scipy.sparse.csr_matrix, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` largest entries of each row, ties by the smaller column: the rank of each in its row, from 0, and
    where it stands among the table's entries, row after row.
    """
    row = np.repeat(np.arange(table.shape[0]), np.diff(table.indptr))
    order = np.lexsort((table.indices, -table.data, row))
    place = np.arange(len(order)) - table.indptr[row]
    kept = place < count
    return place[kept], order[kept]
