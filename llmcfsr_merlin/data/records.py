"""Lines of a log -> an Arrow table of raw user, item, time, order and rating.

pyarrow's parsers do the work and release the GIL; a line that they refuse is found by halving its block, and read in
Python.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.json as arrow_json

from llmcfsr_merlin.data.source import Source, read_record
from llmcfsr_merlin.data.values import as_text
from llmcfsr_merlin.errors import InputError

ROLES = ("user", "item", "time", "order", "rating")
LINE = "line"  # int64, position of the row among the lines of its block
_FEW = 64  # lines that are read in Python rather than halved again


@dataclass(frozen=True)
class Layout:
    """Which fields of a format play which role: names in order of preference, the first one present is taken."""

    format: str
    user: tuple[str, ...]
    item: tuple[str, ...]
    time: tuple[str, ...]
    order: tuple[str, ...] = ()
    rating: tuple[str, ...] = ()
    hint: Callable[[set[str]], str] = lambda found: ""
    """What to do, from the fields found, where one is missing."""
    file_order: bool = False
    """Rows without time and order are taken in file order."""
    needs_rating: bool = False

    def fields(self, source: Source, found: list[str], file_order: bool = False) -> dict[str, str]:
        """Role -> field of one file; InputError that names the missing field and those found."""
        chosen = {}
        for role in ROLES:
            for name in getattr(self, role):
                if name in found:
                    chosen[role] = name
                    break
        if "time" in chosen:
            chosen.pop("order", None)
        missing = [role for role in ("user", "item") if role not in chosen]
        if not (self.file_order or file_order) and "time" not in chosen and "order" not in chosen:
            missing.append("time")
        if self.needs_rating and "rating" not in chosen:
            missing.append("rating")
        if missing:
            role = missing[0]
            names = " or ".join((*getattr(self, role), *(self.order if role == "time" else ())))
            raise InputError(
                f"{source.path}: expected {self.format} with a field {names or role} ({role}), found "
                f"{', '.join(map(str, found[:20]))}{self.hint(set(found))}"
            )
        return chosen


@dataclass(frozen=True)
class JsonParser:
    """Blocks of JSON lines (or Python literals) -> raw tables. fields: role -> field; kinds: role -> Arrow type."""

    fields: dict[str, str]
    kinds: dict[str, pa.DataType]
    literal: bool = False

    @classmethod
    def of(cls, source: Source, fields: dict[str, str]) -> "JsonParser":
        """A parser with the types that the first lines have."""
        kinds = {}
        for role, name in fields.items():
            values = [record[name] for record in source.records() if record.get(name) is not None]
            kind = pa.string() if values and isinstance(values[0], str) else pa.int64()
            if role == "rating" or any(isinstance(value, float) for value in values):
                kind = pa.float64() if kind != pa.string() else kind
            kinds[role] = kind
        return cls(fields, kinds, source.kind == "literal")

    def __call__(self, data: bytes, lines: int, dropped: Counter) -> list[pa.Table]:
        """Tables of the roles and LINE; dropped["bad_lines"] counts what is no JSON object."""
        tables: list[pa.Table] = []
        self._parse(data, lines, 0, dropped, tables)
        return tables

    def _parse(self, data: bytes, lines: int, first: int, dropped: Counter, tables: list[pa.Table]) -> None:
        if not self.literal:
            try:
                table = self._arrow(data)
            except pa.ArrowInvalid:
                table = None
            if table is not None and table.num_rows == lines:  # not so with blank lines or two objects on one
                tables.append(table.append_column(LINE, pa.array(np.arange(first, first + lines))))
                return
        if lines > _FEW and not self.literal:
            middle = data.find(b"\n", len(data) // 2) + 1
            if 0 < middle < len(data):
                above = data.count(b"\n", 0, middle)
                self._parse(data[:middle], above, first, dropped, tables)
                self._parse(data[middle:], lines - above, first + above, dropped, tables)
                return
        tables.append(self._python(data, first, dropped))

    def _arrow(self, data: bytes) -> pa.Table:
        schema = pa.schema([(name, self.kinds[role]) for role, name in self.fields.items()])
        table = arrow_json.read_json(
            pa.BufferReader(data),
            read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
        return table.rename_columns(list(self.fields))

    def _python(self, data: bytes, first: int, dropped: Counter) -> pa.Table:
        columns: dict[str, list] = {role: [] for role in self.fields}
        at = []
        text = data.decode("utf-8", "replace")
        for number, line in enumerate(text.split("\n")):
            if not line.strip():
                continue
            try:
                record = read_record(line)
            except ValueError:
                dropped["bad_lines"] += 1
                continue
            at.append(first + number)
            for role, name in self.fields.items():
                columns[role].append(as_text(record.get(name)))
        arrays = {role: pa.array(values, pa.string()) for role, values in columns.items()}
        return pa.table({**arrays, LINE: pa.array(at, pa.int64())})


@dataclass(frozen=True)
class DelimitedParser:
    """Blocks of CSV, TSV or space-separated rows -> raw tables. names: all columns, in order."""

    fields: dict[str, str]
    names: tuple[str, ...]
    delimiter: str
    header: bool = True

    def __call__(self, data: bytes, lines: int, dropped: Counter) -> list[pa.Table]:
        """Tables of the roles and LINE; dropped["bad_lines"] counts rows with another number of columns."""
        table, numbers = read_delimited(data, self.names, self.delimiter, list(dict.fromkeys(self.fields.values())))
        dropped["bad_lines"] += len(numbers)
        at = np.arange(table.num_rows + len(numbers))
        if numbers:
            at = np.delete(at, np.asarray(numbers) - 1)
        columns = {role: table[name] for role, name in self.fields.items()}
        return [pa.table({**columns, LINE: at})]


def read_delimited(
    data: bytes, names: tuple[str, ...], delimiter: str, wanted: list[str]
) -> tuple[pa.Table, list[int]]:
    """The wanted columns of a block as strings, and the numbers (from 1) of the rows that were left out."""
    skipped: list[int] = []

    def skip(row) -> str:
        skipped.append(row.number)
        return "skip"

    quote = '"' if delimiter in ",;|" else False
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(data),
            read_options=arrow_csv.ReadOptions(
                use_threads=False, column_names=list(names), block_size=min(len(data) + 1, 1 << 30)
            ),
            parse_options=arrow_csv.ParseOptions(
                delimiter=delimiter,
                quote_char=quote,
                ignore_empty_lines=False,
                newlines_in_values=bool(quote),
                invalid_row_handler=skip,
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(wanted, pa.string()),
                include_columns=wanted,
                strings_can_be_null=True,
                null_values=[""],
            ),
        )
    except pa.ArrowInvalid:
        text = data.decode("utf-8", "replace").encode()
        if text == data:
            raise
        return read_delimited(text, names, delimiter, wanted)
    return table, skipped


def delimited_header(
    source: Source, names: tuple[str, ...], roles: tuple[str, ...]
) -> tuple[tuple[str, ...], str, bool]:
    """Columns and delimiter of a delimited file, and whether its first line is a header.

    names: all columns of a file without a header line. Where none are given and the first line holds numbers only, as
    in the papers' files, the columns are `roles` (user item [time [rating]]).
    """
    first = source.head[0]
    delimiter = next((mark for mark in "\t,;| " if mark in first), ",")
    cells = tuple(cell.strip().strip('"') for cell in first.split(delimiter))
    if not names and roles[0] not in cells and all(map(_is_number, cells)) and 2 <= len(cells) <= len(roles):
        names = roles[: len(cells)]
    if not names:
        return cells, delimiter, True
    if len(names) != len(cells):
        raise InputError(
            f"{source.path}: expected {len(names)} columns ({', '.join(names)}; data.columns.names), found "
            f"{len(cells)} on the first line: {first[:60]!r}"
        )
    return names, delimiter, False


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
