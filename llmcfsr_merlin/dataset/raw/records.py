"""Lines of a log -> an Arrow table of raw user, item, time, order and rating.

pyarrow's parsers do the work and release the GIL; a line that they reject is found by bisecting its block and read in
Python.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.json as arrow_json

from llmcfsr_merlin.dataset.raw.fields.values import as_text
from llmcfsr_merlin.dataset.raw.files.delimited import LINE
from llmcfsr_merlin.dataset.raw.files.source import Source, read_record
from llmcfsr_merlin.dataset.raw.tally import Tally
from llmcfsr_merlin.runtime.errors import InputError

ROLES = ("user", "item", "time", "order", "tie", "rating")
_FEW = 64  # up to so many lines are read in Python instead of bisected


@dataclass(frozen=True)
class Layout:
    """Maps the fields of a format to roles: names in order of preference, the first one present is used.

    A number is the position of a column.
    """

    format: str
    user: tuple[str | int, ...]
    item: tuple[str | int, ...]
    time: tuple[str | int, ...]
    order: tuple[str | int, ...] = ()
    tie: tuple[str | int, ...] = ()
    rating: tuple[str | int, ...] = ()
    hint: Callable[[set[str]], str] = lambda found: ""
    """The suggestion if a field is missing, given the fields found."""
    file_order: bool = False
    """Rows without time and order are taken in file order."""
    needs_rating: bool = False

    def fields(self, source: Source, found: list[str], file_order: bool = False) -> dict[str, int]:
        """Role -> position among the fields of one file; InputError that names the missing field and those found."""
        chosen = {}
        for role in ROLES:
            for name in getattr(self, role):
                if (position := place(source, found, name, f"data.columns.{role}")) is not None:
                    chosen[role] = position
                    break
        if "time" in chosen:
            chosen.pop("order", None)
        missing = [role for role in ("user", "item") if role not in chosen]
        if not (self.file_order or file_order) and "time" not in chosen and "order" not in chosen:
            missing.append("time")
        if self.needs_rating and "rating" not in chosen:
            missing.append("rating")
        if self.tie and "tie" not in chosen:
            missing.append("tie")
        if missing:
            role = missing[0]
            names = " or ".join(map(str, (*getattr(self, role), *(self.order if role == "time" else ()))))
            raise InputError(
                f"{source.path}: expected {self.format} with a field {names or role} ({role}), found "
                f"{', '.join(map(str, found[:20]))}{self.hint(set(found))}"
                f"{' (names that are not UTF-8: set data.encoding)' if chr(0xFFFD) in str(found) else ''}"
                f"{', or data.columns.time=null for the order of the file' if role == 'time' and self.order else ''}"
            )
        return chosen


def place(source: Source, found: list[str], name: str | int, setting: str = "") -> int | None:
    """Where a column of that name (or position) stands; None: nowhere. InputError if two have the name."""
    if isinstance(name, int):
        return name if 0 <= name < len(found) and source.kind in ("delimited", "parquet") else None
    places = [number for number, other in enumerate(found) if other == name]
    if len(places) > 1:
        raise InputError(
            f"{source.path}: expected one column {name}, found {len(places)} of that name (columns "
            f"{', '.join(str(number + 1) for number in places)}): rename one"
            f"{f', or give the position, {setting}={places[0]} (counted from 0)' if setting else ''}"
        )
    return places[0] if places else None


@dataclass(frozen=True)
class JsonParser:
    """Blocks of JSON lines (or Python literals) -> raw tables. fields: role -> field; kinds: role -> Arrow type."""

    fields: dict[str, str]
    kinds: dict[str, pa.DataType]
    literal: bool = False
    constants: dict[str, str | None] = field(default_factory=dict)
    """Roles that the folders of the file give (Hive partitions)."""

    @classmethod
    def of(cls, source: Source, fields: dict[str, str], constants: dict[str, str | None]) -> "JsonParser":
        """A parser with the types that the first lines have; InputError if they are lists."""
        kinds = {}
        records = source.records()
        for role, name in fields.items():
            values = [record[name] for record in records if record.get(name) is not None]
            if values and all(isinstance(value, list) for value in values):
                raise InputError(grouped(source, name, role))
            kind = pa.string() if values and isinstance(values[0], str) else pa.int64()
            if role == "rating" or any(isinstance(value, float) for value in values):
                kind = pa.float64() if kind != pa.string() else kind
            kinds[role] = kind
        return cls(fields, kinds, source.kind == "literal", constants)

    def __call__(self, data: bytes, lines: int, dropped: Tally) -> list[pa.Table]:
        """Tables of the roles and LINE; `dropped` counts bad_lines (no JSON object) and not_utf8."""
        tables: list[pa.Table] = []
        self._parse(data, lines, 0, dropped, tables)
        for role, value in self.constants.items():
            tables = [table.append_column(role, pa.array([value] * len(table), pa.string())) for table in tables]
        return tables

    def _parse(self, data: bytes, lines: int, first: int, dropped: Tally, tables: list[pa.Table]) -> None:
        if not self.literal:
            try:
                table = self._arrow(data)
            except pa.ArrowInvalid:
                table = None
            if table is not None and table.num_rows == lines:  # unless there are blank lines or two objects on one line
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
        table = arrow_json.read_json(  # it does not validate UTF-8
            pa.BufferReader(data),
            read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
        if not data.isascii():
            table.validate(full=True)
        return table.rename_columns(list(self.fields))

    def _python(self, data: bytes, first: int, dropped: Tally) -> pa.Table:
        columns: dict[str, list] = {role: [] for role in self.fields}
        at = []
        for number, raw in enumerate(data.split(b"\n")):
            # Bytes that are not UTF-8 become surrogates, which UTF-8 cannot encode: a row is lost only if it needs
            # them.
            line = raw.decode("utf-8", "surrogateescape")
            if not line.strip():
                continue
            try:
                record = read_record(line)
            except ValueError:
                dropped.note("bad_lines", first + number)
                continue
            values = {role: record.get(name) for role, name in self.fields.items()}
            if any(is_damaged(value, line) for value in values.values()):
                dropped.note("not_utf8", first + number)
                continue
            at.append(first + number)
            for role, value in values.items():
                columns[role].append(as_text(value))
        arrays = {role: pa.array(values, pa.string()) for role, values in columns.items()}
        return pa.table({**arrays, LINE: pa.array(at, pa.int64())})


def grouped(source: Source, name: str, role: str) -> str:
    """The error for a column of lists."""
    return (
        f"{source.path}: expected one {role} per row, found lists in column {name} (already grouped sessions): "
        f"write a row for each entry, e.g. pandas.DataFrame.explode({name!r}), with its position as column `order`"
    )


def is_damaged(value: object, line: str) -> bool:
    """Whether a value holds bytes that were not UTF-8 in `line`, decoded with surrogateescape."""
    return not line.isascii() and isinstance(value, str) and any("\udc80" <= c <= "\udcff" and c in line for c in value)
