"""Item metadata -> the items table: each item of the log once, with the attributes of all its metadata rows."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmcfsr_merlin.dataset.names import ITEM, TITLE
from llmcfsr_merlin.dataset.raw.fields.clean_text import clean as clean_text
from llmcfsr_merlin.dataset.raw.fields.ids import NotAnId, clean_id
from llmcfsr_merlin.dataset.raw.fields.values import Attribute, as_attribute
from llmcfsr_merlin.dataset.raw.files.delimited import read_delimited
from llmcfsr_merlin.dataset.raw.files.dialect import Dialect
from llmcfsr_merlin.dataset.raw.files.lines import Block
from llmcfsr_merlin.dataset.raw.files.source import read_record
from llmcfsr_merlin.dataset.raw.interactions import PartWriter, hash_ids
from llmcfsr_merlin.dataset.raw.tally import Place, Tally

_TITLE_CHARS = 300
_ROWS = 50_000  # per part file: long descriptions are read part by part
_PLACE = ".place"  # of a row's item in the catalogue, until the rows of an item are one
_EXAMPLES = 3


@dataclass(frozen=True)
class ItemReader:
    """Blocks of metadata -> tables of ITEM and attributes (string or list<string>).

    attributes: one record -> one row. columns: the columns that the format always has and their type (str or list).
    dialect: of a delimited file. nulls: texts that stand for no value.
    """

    attributes: Callable[[Mapping], dict[str, Attribute]]
    columns: dict[str, type]
    dialect: Dialect | None = None
    nulls: tuple[str, ...] = ()

    def __call__(self, data: Block | pa.RecordBatch, where: Place) -> tuple[pa.Table, Tally]:
        """Rows of a block in order; the tally has metadata_read, bad_titles and, with an example, what was dropped:
        metadata_bad_lines, metadata_not_utf8, metadata_repeated_header, metadata_no_item, metadata_nested_item; also
        metadata_stray_quotes and metadata_binary (values that are bytes and no text), whose rows stay."""
        counts = Tally()
        rows = []
        for line, record in self._records(data, counts):
            row = self.attributes(record)
            counts["metadata_read"] += 1
            try:
                item = clean_id(row[ITEM])
            except NotAnId:
                counts.note("metadata_nested_item", line)
                continue
            if item is None or item in self.nulls:
                counts.note("metadata_no_item", line)
                continue
            row = {name: None if self._empty(value) else value for name, value in row.items()}
            row[ITEM] = item
            title = row.get(TITLE)
            if isinstance(title, list):
                title = " ".join(title)
            # People read titles as they are stored; the other attributes are cleaned when prompts are built.
            row[TITLE] = clean_text(title, _TITLE_CHARS) or None
            counts["bad_titles"] += bool(title and title.strip() and row[TITLE] is None)
            rows.append(row)
        where.exemplify(counts, data if isinstance(data, pa.RecordBatch) else data.data)
        return _table(rows, self.columns), counts

    def _empty(self, value: Attribute) -> bool:
        return isinstance(value, str) and (not value.strip() or value.strip() in self.nulls)

    def _records(self, data: Block | pa.RecordBatch, counts: Tally) -> Iterator[tuple[int, dict]]:
        """(line, record) of each row that can be read."""
        if isinstance(data, pa.RecordBatch):
            yield from enumerate(_texts(data, counts).to_pylist())
        elif self.dialect:
            lost = Tally()
            names = {str(number): name for number, name in enumerate(self.dialect.names) if name}
            table, at = read_delimited(data.data, data.lines, self.dialect, list(map(int, names)), lost)
            for reason, count in lost.items():
                counts.note(f"metadata_{reason}", lost.first[reason], count)
            rows = table.rename_columns(list(map(names.get, table.column_names))).to_pylist()
            yield from zip(at.tolist(), rows)
        else:
            for number, raw in enumerate(data.data.split(b"\n")):
                try:
                    line = raw.decode("utf-8")
                except UnicodeDecodeError:
                    counts.note("metadata_not_utf8", number)
                    continue
                if not line.strip():
                    continue
                try:
                    yield number, read_record(line)
                except ValueError:
                    counts.note("metadata_bad_lines", number)


def _texts(batch: pa.RecordBatch, counts: Tally) -> pa.Table:
    """A batch without what is no text: pictures and other bytes. Bytes that are UTF-8 are text, as Spark writes it."""
    table = pa.Table.from_batches([batch])
    for number, name in reversed(list(enumerate(table.column_names))):
        kind = table[name].type
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            try:
                table = table.set_column(number, name, table[name].cast(pa.string()))
                continue
            except pa.ArrowInvalid:
                pass
        if _holds_bytes(kind):
            counts["metadata_binary"] += len(table) - table[name].null_count
            counts.examples["metadata_binary"] = f"column {name}"
            table = table.remove_column(number)
    return table


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_holds_bytes(kind[number].type) for number in range(kind.num_fields))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _holds_bytes(kind.value_type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


@dataclass(frozen=True)
class TableAttributes:
    """A row of any table of items: `item` is the id's column, every other column is an attribute of its own name."""

    item: str

    def __call__(self, record: Mapping) -> dict[str, Attribute]:
        row = {str(name): as_attribute(value) for name, value in record.items() if name not in (self.item, ITEM)}
        return {ITEM: record.get(self.item), **row}  # the raw id: ItemReader cleans it


class ItemTable:
    """Collects the items of a log into out/part-*.parquet. catalogue: sorted uint64 hashes of the log's item ids."""

    def __init__(self, out: Path, catalogue: np.ndarray, columns: dict[str, type]):
        self.out, self.catalogue = Path(out), catalogue
        self.rows = np.zeros(len(catalogue), np.uint32)  # of metadata, of each item
        self.unmatched: tuple[list[str], list[str]] = ([], [])
        """A few ids of metadata that are not in the log, and of the log's items without metadata."""
        self.counts: Counter = Counter()
        self._kinds = {ITEM: pa.string(), TITLE: pa.string()}
        self._kinds |= {name: _type(kind) for name, kind in columns.items()}
        self._parts: list[Path] = []
        self._waiting: list[pa.Table] = []
        self._held = 0
        self.out.mkdir(parents=True)

    def add(self, table: pa.Table) -> None:
        """Keep the rows whose item is in the log; close() makes one row of those of an item."""
        if table.num_rows == 0:
            return
        place, known = self._place(table[ITEM])
        self.counts["metadata_not_in_log"] += int((~known).sum())
        if len(self.unmatched[0]) < _EXAMPLES and not known.all():
            self._example(0, table[ITEM].filter(pa.array(~known)))
        np.add.at(self.rows, place[known], 1)
        self._append(table.filter(pa.array(known)), place[known])

    def add_missing(self, interactions: Path) -> None:
        """Add the items without metadata, with empty attributes, in the order in which the log names them."""
        self.counts["items_with_metadata"] = int((self.rows > 0).sum())
        self.counts["items_without_metadata"] = int((self.rows == 0).sum())
        self.counts["metadata_repeated"] = int(self.rows.sum()) - self.counts["items_with_metadata"]
        for part in sorted(Path(interactions).glob("part-*.parquet")):
            if self.rows.all():
                break
            for batch in pq.ParquetFile(part).iter_batches(columns=[ITEM]):
                ids = batch.column(0).unique()
                place, _ = self._place(ids)
                new = self.rows[place] == 0
                self.rows[place[new]] = 1
                missing = ids.filter(pa.array(new))
                self._example(1, missing)
                self._append(pa.table({ITEM: missing}), place[new])

    def close(self) -> None:
        """Write what is left, all parts with the same columns; of the rows of one item (of several files, perhaps) the
        first value of each attribute stands."""
        self._write()
        schema = pa.schema([*self._kinds.items(), (_PLACE, pa.int64())])
        writer = PartWriter(self.out, rows=_ROWS, row_group=_ROWS)
        for part in self._parts:
            table = _conform(pq.read_table(part), schema)
            once = self.rows[table[_PLACE].to_numpy()] == 1
            writer.write(table.filter(pa.array(once)).drop([_PLACE]))
        repeated = np.flatnonzero(self.rows > 1)
        # As many columns at a time as fit into memory, each time from all parts.
        share = np.cumsum(self.rows[repeated]) // (4 * _ROWS)
        for number in np.unique(share):
            wanted = np.zeros(len(self.rows), bool)
            wanted[repeated[share == number]] = True
            tables = [_conform(pq.read_table(part), schema) for part in self._parts]
            tables = [table.filter(pa.array(wanted[table[_PLACE].to_numpy()])) for table in tables]
            writer.write(_merged(pa.concat_tables(tables)).drop([_PLACE]))
        writer.close()
        for part in self._parts:
            part.unlink()

    def _example(self, side: int, ids: pa.Array | pa.ChunkedArray) -> None:
        kept = self.unmatched[side]
        kept += ids[: _EXAMPLES - len(kept)].to_pylist()

    def _place(self, ids: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
        hashes = hash_ids(ids)
        place = np.minimum(np.searchsorted(self.catalogue, hashes), len(self.catalogue) - 1)
        return place, self.catalogue[place] == hashes

    def _append(self, table: pa.Table, place: np.ndarray) -> None:
        if table.num_rows == 0:
            return
        for field in table.schema:
            known = self._kinds.get(field.name)
            if known is None or not pa.types.is_list(known):
                self._kinds[field.name] = field.type if pa.types.is_list(field.type) else pa.string()
        self._waiting.append(table.append_column(_PLACE, pa.array(place.astype(np.int64))))
        self._held += table.num_rows
        if self._held >= _ROWS:
            self._write()

    def _write(self) -> None:
        if not self._held:
            return
        schema = pa.schema([*self._kinds.items(), (_PLACE, pa.int64())])
        path = self.out / f".raw-{len(self._parts):05d}.parquet"
        pq.write_table(pa.concat_tables([_conform(table, schema) for table in self._waiting]), path)
        self._parts.append(path)
        self._waiting, self._held = [], 0


def _merged(table: pa.Table) -> pa.Table:
    """One row for each _PLACE: the first value, from above, of each column."""
    order = np.argsort(table[_PLACE].to_numpy(), kind="stable")
    table = table.take(pa.array(order)).combine_chunks()
    place = table[_PLACE].to_numpy()
    starts = np.flatnonzero(np.r_[True, place[1:] != place[:-1]])
    columns = {}
    for name in table.column_names:
        there = table[name].is_valid().to_numpy()
        first = np.minimum.reduceat(np.where(there, np.arange(len(place)), len(place)), starts)
        columns[name] = table[name].take(pa.array(first, mask=first == len(place)))
    return pa.table(columns)


def _type(kind: type) -> pa.DataType:
    return pa.list_(pa.string()) if kind is list else pa.string()


def _table(rows: list[dict[str, Attribute]], columns: dict[str, type]) -> pa.Table:
    names = dict.fromkeys((ITEM, TITLE, *columns))
    for row in rows:
        names.update(dict.fromkeys(row))
    arrays = {}
    for name in names:
        values = [row.get(name) for row in rows]
        many = columns.get(name) is list or any(isinstance(value, list) for value in values)
        if many:
            values = [[value] if isinstance(value, str) else value for value in values]
        arrays[name] = pa.array(values, _type(list if many else str))
    return pa.table(arrays)


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the columns of the schema: missing ones are null, a string becomes a list of one."""
    arrays = []
    for field in schema:
        if field.name not in table.column_names:
            arrays.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table[field.name].combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # pyarrow gives no single array for an empty column
            column = pa.array([], column.type)
        if pa.types.is_list(field.type) and not pa.types.is_list(column.type):
            column = pa.array([None if value is None else [value] for value in column.to_pylist()], field.type)
        arrays.append(column)
    return pa.table(arrays, schema=schema)
