"""Raw rows -> clean interactions: times read, rows dropped and counted, part files in the order of the source."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmcfsr_merlin.dataset.names import ITEM, RATING, ROW, SUBSECOND, TIME, USER
from llmcfsr_merlin.dataset.raw.fields.ids import clean_ids
from llmcfsr_merlin.dataset.raw.fields.numbers import to_ratings
from llmcfsr_merlin.dataset.raw.fields.times import EARLY, TimeReader, Times, to_integers
from llmcfsr_merlin.dataset.raw.files.delimited import LINE
from llmcfsr_merlin.dataset.raw.tally import Tally
from llmcfsr_merlin.runtime.errors import InputError

ARROW_SCHEMA = pa.schema(
    [
        (USER, pa.string()),
        (ITEM, pa.string()),
        (TIME, pa.int64()),
        (SUBSECOND, pa.float64()),
        (ROW, pa.int64()),
        (RATING, pa.float32()),
    ]
)
_ROW_GROUP = 262_144
_PART = 1_048_576
_TIES = 1 << 50  # a sequence number below it is exact as a part of a second
DROPPED = (
    "bad_lines", "not_utf8", "repeated_header", "no_user", "nested_user", "no_item", "nested_item", "no_time",
    "unreadable_time", "no_rating", "unreadable_rating", "below_min_rating", "outside_dates",
)  # fmt: skip
FILTERED = ("below_min_rating", "outside_dates")  # as the settings require
# Rows that are kept, but may have been interpreted differently than intended.
NOTED = ("times_before_1990", "times_in_future", "mixed_time_units", "unread_ratings", "unread_ties", "ids_from_floats",
         "inexact_ids")  # fmt: skip


@dataclass(frozen=True)
class Rules:
    """Which rows are kept: unix seconds start <= time < end, rating >= min_rating; None does not ask. nulls: strings
    for missing values."""

    start: int | None = None
    end: int | None = None
    min_rating: float | None = None
    nulls: tuple[str, ...] = ()


@dataclass
class Cleaned:
    """Interactions of one block. keys: uint64 hash of (user, item, time); users, items: hashes of the distinct ids."""

    table: pa.Table
    keys: np.ndarray
    users: np.ndarray
    items: np.ndarray
    dropped: Tally
    example: str = ""
    """A time that could not be read."""


def clean(
    tables: list[pa.Table], first_row: int, rules: Rules, dropped: Tally, times: TimeReader | None = None
) -> Cleaned:
    """Convert raw tables (records.py) of one block to the columns of dataset/names.py; ROW counts from first_row.

    times: reads their column `time`. `dropped` counts the rows left out by reason (DROPPED), NOTED and rows_read.
    """
    parts, example = [], ""
    for raw in tables:
        table, unreadable = _clean(raw, first_row, rules, dropped, times or TimeReader())
        parts.append(table)
        example = example or unreadable
    table = pa.concat_tables(parts).combine_chunks() if parts else ARROW_SCHEMA.empty_table()
    user_keys, users = _hash(table[USER])
    item_keys, items = _hash(table[ITEM])
    # A fraction of 0 has no bits set, so the hash does not depend on the block's other rows.
    moments = table[TIME].to_numpy().astype(np.uint64)
    moments = moments + table[SUBSECOND].to_numpy().view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    keys = _mix(user_keys, item_keys, moments)
    dropped["rows_read"] += table.num_rows + sum(dropped[name] for name in DROPPED)
    return Cleaned(table, keys, users, items, dropped, example)


def _clean(raw: pa.Table, first_row: int, rules: Rules, dropped: Tally, times: TimeReader) -> tuple[pa.Table, str]:
    example = ""
    columns: dict = {ROW: pc.add(raw[LINE], first_row)}
    nested = {}
    for name, column in ((USER, raw["user"]), (ITEM, raw["item"])):
        ids = clean_ids(column, rules.nulls)
        columns[name], nested[name] = ids.texts, ids.nested
        dropped["ids_from_floats"] += ids.from_floats
        dropped["inexact_ids"] += ids.inexact
    read = _times(raw, times, rules)
    columns[TIME] = read.seconds if read else columns[ROW]
    columns[SUBSECOND] = pa.array(read.rest) if read else np.zeros(raw.num_rows)
    if "tie" in raw.column_names:
        columns[SUBSECOND], unread = _ties(raw["tie"], columns[SUBSECOND])
        dropped["unread_ties"] += unread
    if read and "time" in raw.column_names:
        dropped["mixed_time_units"] += read.mixed
        if read.seconds.null_count:
            columns["unreadable"] = pc.and_(pc.is_null(read.seconds), _given(raw["time"], rules.nulls))
            texts = raw["time"].filter(columns["unreadable"])
            example = repr(texts[0].as_py()) if len(texts) else ""
    columns[RATING] = (
        to_ratings(raw["rating"]) if "rating" in raw.column_names else pa.nulls(raw.num_rows, pa.float32())
    )
    if columns[RATING].null_count and "rating" in raw.column_names:
        columns["unrated"] = pc.and_(pc.is_null(columns[RATING]), _given(raw["rating"], rules.nulls))
    for name, mask in nested.items():
        if mask is not None:
            columns[f"nested {name}"] = mask
    table = pa.table(columns)

    def drop(reason: str, keep: pa.ChunkedArray) -> None:
        nonlocal table
        kept = table.filter(keep)
        if kept.num_rows < table.num_rows:
            before, after = table[ROW].to_numpy(), kept[ROW].to_numpy()
            changed = np.flatnonzero(before[: len(after)] != after)
            first = before[changed[0] if len(changed) else len(after)]
            dropped.note(reason, int(first) - first_row, len(before) - len(after))
        table = kept

    for role, column in (("user", USER), ("item", ITEM)):
        if nested[column] is not None:
            drop(f"nested_{role}", pc.invert(table[f"nested {column}"]))
        if table[column].null_count:
            drop(f"no_{role}", pc.is_valid(table[column]))
    if "unreadable" in columns:
        drop("unreadable_time", pc.invert(table["unreadable"]))
    if table[TIME].null_count:
        drop("no_time", pc.is_valid(table[TIME]))
    if rules.min_rating is not None:
        if "unrated" in columns:
            drop("unreadable_rating", pc.invert(table["unrated"]))
        drop("no_rating", pc.is_valid(table[RATING]))
        drop("below_min_rating", pc.greater_equal(table[RATING], pa.scalar(rules.min_rating, pa.float32())))
    elif "unrated" in columns:
        dropped["unread_ratings"] += _count(table["unrated"])
    if rules.start is not None:
        drop("outside_dates", pc.greater_equal(table[TIME], rules.start))
    if rules.end is not None:
        drop("outside_dates", pc.less(table[TIME], rules.end))
    if "time" in raw.column_names:
        dropped["times_before_1990"] += _count(pc.less(table[TIME], EARLY))
        dropped["times_in_future"] += _count(pc.greater(table[TIME], int(time.time()) + 86_400))
    return table.select(ARROW_SCHEMA.names).cast(ARROW_SCHEMA), example


def _times(raw: pa.Table, times: TimeReader, rules: Rules) -> Times | None:
    """None if the log has neither times nor an order."""
    if "time" in raw.column_names:
        column = raw["time"]
        if pa.types.is_string(column.type) and rules.nulls:
            column = pc.if_else(_given(column, rules.nulls), column, None)
        return times(column)
    return to_integers(raw["order"]) if "order" in raw.column_names else None


def _ties(column: pa.ChunkedArray, subsecond: pa.Array | np.ndarray) -> tuple[np.ndarray, int]:
    """The numbers of data.columns.tie as parts of a second too small to be a time, and how many could not be read."""
    if np.asarray(subsecond).any():
        raise InputError(
            "data.columns.tie: expected times of whole seconds beside it, found parts of seconds: leave it out, as "
            "such times are ordered by themselves"
        )
    numbers = to_integers(column)
    values = numbers.seconds.to_numpy(zero_copy_only=False).astype(np.float64)
    unread = np.isnan(values) | (values < 0) | (values >= _TIES) | (numbers.rest != 0)
    return np.where(unread, 0, values) / _TIES, int(unread.sum())


def _given(column: pa.ChunkedArray, nulls: tuple[str, ...]) -> pa.ChunkedArray:
    """Whether there is a value: no null, NaN, empty text or one of `nulls`."""
    if pa.types.is_floating(column.type):
        return pc.fill_null(pc.invert(pc.is_nan(column)), False)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return pc.is_valid(column)
    missing = pc.is_in(pc.utf8_trim_whitespace(column), value_set=pa.array(["", *nulls], column.type))
    return pc.and_(pc.is_valid(column), pc.invert(missing))


def _count(mask: pa.ChunkedArray) -> int:
    return pc.sum(mask).as_py() or 0


def hash_ids(ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """uint64 hash of each id: a set costs 8 bytes per id; 10 million ids collide in one of 300,000 logs."""
    return _hash(ids)[0]


def _hash(ids: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    encoded = ids.dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries()
        if encoded.num_chunks == 0:
            return np.empty(0, np.uint64), np.empty(0, np.uint64)
        dictionary = encoded.chunk(0).dictionary
        indices = np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks])
    else:
        dictionary, indices = encoded.dictionary, encoded.indices.to_numpy()
    distinct = pd.util.hash_array(dictionary.to_numpy(zero_copy_only=False), categorize=False)
    return distinct[indices], distinct


def _mix(user: np.ndarray, item: np.ndarray, time: np.ndarray) -> np.ndarray:
    """One well-spread key of three columns (the finaliser of splitmix64 after each)."""
    key = user
    for column in (item, time.astype(np.uint64)):
        key = key * np.uint64(0x9E3779B97F4A7C15) + column
        key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        key = key ^ (key >> np.uint64(31))
    return key


class PartWriter:
    """Writes tables one after another into folder/part-00000.parquet, ... of about a million rows each."""

    def __init__(self, folder: Path, rows: int = _PART, row_group: int = _ROW_GROUP):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rows, self.row_group = rows, row_group
        self.total = self.parts = self._held = self._written = 0
        self._waiting: list[pa.Table] = []
        self._file: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Append rows. Table boundaries do not affect the files."""
        self._waiting.append(table)
        self._held += table.num_rows
        self.total += table.num_rows
        while self._held >= self.row_group:
            self._flush(self.row_group)

    def close(self) -> None:
        """Write what is left; an empty log makes no file."""
        if self._held:
            self._flush(self._held)
        if self._file:
            self._file.close()
            self._file = None

    def _flush(self, rows: int) -> None:
        table = pa.concat_tables(self._waiting)
        if self._file is None:
            self._file = pq.ParquetWriter(self.folder / f"part-{self.parts:05d}.parquet", table.schema)
            self.parts += 1
            self._written = 0
        self._file.write_table(table.slice(0, rows).combine_chunks())
        self._written += rows
        self._waiting, self._held = [table.slice(rows)], self._held - rows
        if self._written >= self.rows:
            self._file.close()
            self._file = None


class Distinct:
    """The distinct hashes of a stream, sorted; memory is 8 bytes per distinct value, temporarily twice that."""

    def __init__(self) -> None:
        self._sorted = np.empty(0, np.uint64)
        self._new: list[np.ndarray] = []
        self._held = 0

    def add(self, hashes: np.ndarray) -> None:
        """Add the distinct hashes of a block."""
        self._new.append(hashes)
        self._held += len(hashes)
        if self._held > max(1 << 20, len(self._sorted)):
            self._merge()

    @property
    def values(self) -> np.ndarray:
        """uint64, ascending."""
        self._merge()
        return self._sorted

    def _merge(self) -> None:
        if self._new:
            self._sorted = np.unique(np.concatenate([self._sorted, *self._new]))
            self._new, self._held = [], 0
