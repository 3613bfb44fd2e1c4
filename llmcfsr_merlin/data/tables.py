"""Any table of interactions (CSV, TSV, text without a header, Parquet, JSON lines) as the contract's columns."""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmcfsr_merlin.config import TableColumns
from llmcfsr_merlin.data.lines import Block
from llmcfsr_merlin.data.logs import keep_rows, read_json_lines, seconds
from llmcfsr_merlin.errors import InputError

_PARQUET = b"PAR1"


def is_parquet(path: Path) -> bool:
    with open(path, "rb") as stream:
        return stream.read(4) == _PARQUET


class TextTable:
    """A CSV-like or JSON-lines file, understood from its first lines: separator, header or none, columns."""

    def __init__(self, block: Block, columns: TableColumns):
        self.path, self.columns = block.path, columns
        first = block.data[: block.data.find(b"\n") if b"\n" in block.data else None].decode("utf-8-sig", "replace")
        if "\0" in first:
            raise InputError(f"{self.path}: expected text or Parquet, found binary data: check data.interactions")
        self.json = first.lstrip().startswith("{")
        self.names: list[str] | None = None
        self.separator, self.header = ",", b""
        if self.json:
            return
        self.separator = next((mark for mark in ("\t", ",", ";", "|", " ") if mark in first), ",")
        fields = next(csv.reader([first.strip("\r")], delimiter=self.separator))
        if columns.user in fields:
            self.names, self.header = fields, block.data[: block.data.find(b"\n") + 1]
        elif all(_is_number(field) for field in fields):
            # Without a header: `user item [time [rating]]`, as in the papers' files.
            order = [columns.user, columns.item, columns.time or "", columns.rating or ""]
            self.names = [name or f"column {place}" for place, name in enumerate(order[: len(fields)])]
        else:
            raise InputError(
                f"{self.path}: expected a column {columns.user!r}, found {', '.join(fields)}: name yours by "
                "data.columns.user=..., data.columns.item=..."
            )

    def parse(self, block: Block) -> tuple[pa.Table, Counter]:
        """Rows of a block as SCHEMA and what was left out; the same whether or not the block is the first one."""
        data = block.data[len(self.header) :] if block.data.startswith(self.header) else block.data
        shift = len(self.header) > 0 and len(data) < len(block.data)
        if self.json:
            names = dict.fromkeys(filter(None, self.columns.model_dump().values()))
            table, row, dropped = read_json_lines(data, names)
            present = [name for name in table.column_names if table[name].null_count < table.num_rows]
            converted, more = convert(table.select(present), self.columns, self.path, row + block.first)
            return converted, dropped + more
        try:
            frame = pd.read_csv(
                io.BytesIO(data), sep=self.separator, names=self.names, dtype=str, keep_default_na=False,
                na_values=[""], skip_blank_lines=False, encoding_errors="replace",
            )  # fmt: skip
        except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{self.path}: expected {len(self.names)} columns ({', '.join(self.names)}): {reason}"
            ) from error
        table = pa.Table.from_pandas(frame, preserve_index=False)
        first = block.first + shift
        return convert(table, self.columns, self.path, np.arange(first, first + table.num_rows))


def parquet_pieces(path: Path, columns: TableColumns, start: int) -> Iterator[tuple[pa.Table, Counter]]:
    """A Parquet file by record batches of half a million rows."""
    file, place = pq.ParquetFile(path), start
    wanted = [name for name in (columns.user, columns.item, columns.time, columns.order, columns.rating) if name]
    present = [name for name in wanted if name in file.schema_arrow.names]
    _check(file.schema_arrow.names, columns, path)
    for batch in file.iter_batches(500_000, columns=present):
        yield convert(pa.Table.from_batches([batch]), columns, path, np.arange(place, place + len(batch)))
        place += len(batch)


def convert(table: pa.Table, columns: TableColumns, path: Path, row: np.ndarray) -> tuple[pa.Table, Counter]:
    """A table of the user's columns as SCHEMA. Time is the time column, else the order column, else the row itself."""
    _check(table.column_names, columns, path)
    dropped: Counter = Counter()
    user, item = (pc.utf8_trim_whitespace(_text(table[name])) for name in (columns.user, columns.item))
    source = next((name for name in (columns.time, columns.order) if name in table.column_names), None)
    if source == columns.order and source is not None:
        order = pd.to_numeric(table[source].to_pandas(), errors="coerce")
        time = pa.array(order.fillna(0).astype(np.int64), mask=order.isna().to_numpy())
    else:
        time = pa.array(row) if source is None else seconds(table[source])
    rating = np.full(table.num_rows, np.nan, np.float32)
    if columns.rating in table.column_names:
        rating = pd.to_numeric(table[columns.rating].to_pandas(), errors="coerce").to_numpy(np.float32)
    return keep_rows(user, item, time, rating, row, dropped), dropped


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Ids as text; whole numbers without a decimal point."""
    if pa.types.is_floating(column.type):
        column = column.cast(pa.int64())
    return column.cast(pa.string())


def _check(names: list[str], columns: TableColumns, path: Path) -> None:
    for what, name in (("user", columns.user), ("item", columns.item)):
        if name not in names:
            raise InputError(
                f"{path}: expected a column {name!r}, found {', '.join(names)}: name yours by data.columns.{what}=..."
            )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
