"""Filtered buckets -> sequences and leave-one-out splits in Parquet."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq

from llmcfsr_merlin.dataset.names import ITEM, SEQUENCES, USER
from llmcfsr_merlin.dataset.prepare.filters import load_kept

# Items at the end of a history that a split does not see.
HELD_OUT = {"train": 2, "valid": 1, "test": 0}
_ROW_GROUP = 1 << 17


def write_bucket(bucket: Path, *, out: Path, codes: Path, max_length: int) -> tuple[int, int, np.ndarray]:
    """Write one part of sequences/, train/, valid/ and test/ from a filtered bucket; returns what write_part returns.

    codes: a .npy of int64, item position -> Categorify code.
    """
    user, item, _ = load_kept(bucket)
    if not len(user):
        return 0, 0, np.zeros(0, np.int64)
    first = np.flatnonzero(np.r_[True, user[1:] != user[:-1]])
    names = feather.read_table(str(bucket / "users.arrow"))[USER].take(pa.array(user[first]))
    offsets = np.r_[first, len(user)]
    return write_part(Path(out), f"part-{bucket.name}.parquet", names, offsets, np.load(codes)[item], max_length)


def write_part(
    out: Path, part: str, names: pa.ChunkedArray, offsets: np.ndarray, values: np.ndarray, max_length: int
) -> tuple[int, int, np.ndarray]:
    """Write one part of sequences and splits; history u is values[offsets[u]:offsets[u + 1]] (int64 codes).

    Each row of a split ends with its target and has at most max_length + 1 items, the latest; rows of one item are left
    out of train. History [a, b, c, d] with max_length 2 -> sequences [a, b, c, d], train [a, b], valid [a, b, c],
    test [b, c, d].

    Returns users, train rows, and int64 counts of each code in the training part (train_counts).
    """
    write_rows(out / SEQUENCES / part, names, offsets, values)
    first, ends = offsets[:-1], offsets[1:]
    rows = 0
    for split, held_out in HELD_OUT.items():
        stop = ends - held_out
        start = np.maximum(first, stop - max_length - 1)
        if split == "train":
            enough = stop - start >= 2
            rows = int(enough.sum())
            _cut(out / split / part, names.filter(pa.array(enough)), values, start[enough], stop[enough])
        else:
            _cut(out / split / part, names, values, start, stop)
    return len(first), rows, train_counts(offsets, values)


def train_counts(offsets: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Interactions of each code (int64) in histories without their last two items, before the cut to max_length."""
    seen = np.ones(len(values), bool)
    seen[offsets[1:] - 1] = seen[offsets[1:] - 2] = False
    return np.bincount(values[seen])


def _cut(path: Path, names: pa.ChunkedArray, values: np.ndarray, start: np.ndarray, stop: np.ndarray) -> None:
    if len(start):
        offsets = np.r_[0, np.cumsum(stop - start)]
        where = np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], stop - start)
        write_rows(path, names, offsets, values[where])


def write_rows(path: Path, names: pa.Array | pa.ChunkedArray, offsets: np.ndarray, values: np.ndarray) -> None:
    """Write one part; row u is (names[u], values[offsets[u]:offsets[u + 1]]), values int64."""
    # The list column is made from offsets and values without a Python object a row; measured 40 times the speed of
    # NVTabular's Groupby and ListSlice on pandas, whose result it equals (tests/unit/dataset/test_prepare.py).
    lists = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))
    if isinstance(names, pa.ChunkedArray):  # whose chunks would show in the pages of the file
        names = names.combine_chunks()
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({USER: names.cast(pa.string()), ITEM: lists})
    # A user stands once in a part, and a dictionary of items costs a third of the writing for a seventh of the file.
    pq.write_table(table, path, row_group_size=_ROW_GROUP, use_dictionary=False)
