"""Interactions of JSON-lines logs (Amazon 2014, 2018 and 2023, Yelp): a block of lines -> a table of the contract."""

import io
import json
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from llmcfsr_merlin.contract import ITEM, RATING, ROW, TIME, USER
from llmcfsr_merlin.data.lines import Block

SCHEMA = pa.schema(
    [(USER, pa.string()), (ITEM, pa.string()), (TIME, pa.int64()), (ROW, pa.int64()), (RATING, pa.float32())]
)

NO_USER, NO_ITEM, NO_TIME, BAD_LINE = "without a user", "without an item", "without a time", "not a JSON object"


@dataclass(frozen=True)
class LogFormat:
    """Where a format keeps what. Each field lists the names in use, the first present one counts."""

    name: str
    user: tuple[str, ...]
    item: tuple[str, ...]
    time: tuple[str, ...]
    rating: tuple[str, ...]


LOGS = {
    # 2014 and 2018: reviewerID, asin, unixReviewTime (s), overall; 2023: user_id, parent_asin, timestamp (ms), rating.
    "amazon": LogFormat(
        "Amazon reviews",
        ("reviewerID", "user_id"),
        ("parent_asin", "asin"),
        ("unixReviewTime", "timestamp"),
        ("overall", "rating"),
    ),
    "yelp": LogFormat("Yelp reviews", ("user_id",), ("business_id",), ("date",), ("stars",)),
}


def parse_log(block: Block, form: LogFormat) -> tuple[pa.Table, Counter]:
    """Rows of a block that have a user, an item and a time, as SCHEMA; and how many were left out, by reason."""
    names = dict.fromkeys(name for group in (form.user, form.item, form.time, form.rating) for name in group)
    table, row, dropped = read_json_lines(block.data, names)
    columns = {}
    for field, group in (("user", form.user), ("item", form.item), ("time", form.time), ("rating", form.rating)):
        present = [table[name] for name in group if name in table.column_names]
        columns[field] = pc.coalesce(*present) if present else pa.nulls(table.num_rows)
    user, item = (pc.utf8_trim_whitespace(columns[name].cast(pa.string())) for name in ("user", "item"))
    time = seconds(columns["time"])
    rating = pd.to_numeric(columns["rating"].to_pandas(), errors="coerce").to_numpy(np.float32)
    return keep_rows(user, item, time, rating, row + block.first, dropped), dropped


def keep_rows(user, item, time: pa.Array, rating: np.ndarray, row: np.ndarray, dropped: Counter) -> pa.Table:
    """SCHEMA of the rows that have a user, an item and a time; counts the others in `dropped`."""
    keep = np.ones(len(row), bool)
    for reason, missing in (
        (NO_USER, pc.or_kleene(pc.is_null(user), pc.equal(user, ""))),
        (NO_ITEM, pc.or_kleene(pc.is_null(item), pc.equal(item, ""))),
        (NO_TIME, pc.is_null(time)),
    ):
        missing = np.asarray(pc.fill_null(missing, True)).astype(bool)
        dropped[reason] += int((keep & missing).sum())
        keep &= ~missing
    table = pa.table([user, item, time, pa.array(row), pa.array(rating, from_pandas=True)], schema=SCHEMA)
    return table if keep.all() else table.filter(pa.array(keep))


def seconds(column: pa.ChunkedArray) -> pa.Array:
    """Unix seconds (int64) of numbers (milliseconds where too large for seconds) or dates; null if unreadable."""
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return column.cast(pa.timestamp("s"), safe=False).cast(pa.int64()).combine_chunks()
    numbers = pd.to_numeric(column.to_pandas(), errors="coerce")
    if pa.types.is_string(column.type) and numbers.isna().any():
        dates = pd.to_datetime(column.to_pandas()[numbers.isna()], errors="coerce", utc=True)
        numbers = numbers.astype(float)
        numbers[dates.index] = np.where(dates.isna(), np.nan, dates.astype("int64") // 10**9)
    numbers = numbers.to_numpy(float)
    numbers = np.where(np.abs(numbers) > 1e11, numbers // 1000, numbers)  # 1e11 s is the year 5138
    return pa.array(np.where(np.isfinite(numbers), numbers, 0).astype(np.int64), mask=~np.isfinite(numbers))


def read_json_lines(data: bytes, names: dict) -> tuple[pa.Table, np.ndarray, Counter]:
    """The wanted fields of JSON lines, the place of each row among the lines, and how many lines were no object."""
    dropped: Counter = Counter()
    table, row = _parse_fast(data, names) or _parse_slowly(data, names, dropped)
    return table, row, dropped


def _parse_fast(data: bytes, names: dict) -> tuple[pa.Table, np.ndarray] | None:
    """Only the wanted fields, by Arrow's reader; None where a line needs a closer look."""
    lines = data.count(b"\n") + (not data.endswith(b"\n"))
    options = pj.ParseOptions(
        unexpected_field_behavior="ignore", explicit_schema=pa.schema([(n, _kind(n)) for n in names])
    )
    try:
        table = pj.read_json(
            io.BytesIO(data), pj.ReadOptions(use_threads=False, block_size=len(data) + 1), parse_options=options
        )
    except pa.ArrowInvalid:
        return None
    return (table, np.arange(lines)) if table.num_rows == lines else None  # empty lines shift the rows


def _kind(name: str) -> pa.DataType:
    if name in ("unixReviewTime", "timestamp"):
        return pa.int64()
    return pa.float64() if name in ("overall", "rating", "stars") else pa.string()


def _parse_slowly(data: bytes, names: dict, dropped: Counter) -> tuple[pa.Table, np.ndarray]:
    """Line by line: counts what is no JSON object, takes numbers written as text."""
    rows, places = [], []
    for place, line in enumerate(data.splitlines()):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            dropped[BAD_LINE] += 1
            continue
        rows.append([None if record.get(name) is None else str(record[name]) for name in names])
        places.append(place)
    columns = list(zip(*rows)) if rows else [[] for _ in names]
    table = pa.table({name: pa.array(column, pa.string()) for name, column in zip(names, columns)})
    return table, np.array(places, np.int64)
