"""Blocks of delimited rows -> Arrow tables of text, each row with its line."""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv

from llmcfsr_merlin.dataset.raw.files import quotes
from llmcfsr_merlin.dataset.raw.files.dialect import Dialect
from llmcfsr_merlin.dataset.raw.tally import Tally

LINE = "line"  # int64, position of the row among the lines of its block


@dataclass(frozen=True)
class DelimitedParser:
    """Blocks of rows -> raw tables. columns: role -> position of its column."""

    columns: dict[str, int]
    dialect: Dialect
    constants: dict[str, str | None] = field(default_factory=dict)
    """Roles that the folders of the file give (Hive partitions)."""

    def __call__(self, data: bytes, lines: int, dropped: Tally) -> list[pa.Table]:
        """Tables of the roles and LINE; `dropped` counts bad_lines (another number of columns), repeated_header,
        not_utf8, and stray_quotes, whose rows stay."""
        table, at = read_delimited(data, lines, self.dialect, list(self.columns.values()), dropped)
        columns = {role: table[str(position)] for role, position in self.columns.items()}
        for role, value in self.constants.items():
            columns[role] = pa.array([value] * table.num_rows, pa.string())
        return [pa.table({**columns, LINE: at})]


def read_delimited(
    data: bytes, lines: int, dialect: Dialect, wanted: list[int], dropped: Tally
) -> tuple[pa.Table, np.ndarray]:
    """The wanted columns of a block as strings, named by their positions, and the line of each row (int64)."""
    wanted = sorted(set(wanted))
    table, at = _rows(dialect.normalised(data), lines, dialect, wanted, dropped)
    keep = np.ones(len(at), bool)
    for name in table.column_names:
        if pa.types.is_binary(table[name].type):
            fits = np.array([_is_utf8(value) for value in table[name].to_pylist()], bool)
            _drop(keep, ~fits, at, "not_utf8", dropped)
    if dialect.header and (same := _repeats(table, dialect)) is not None:
        _drop(keep, same, at, "repeated_header", dropped)
    nothing = table.column(0).is_null()
    if table.num_rows and pc.any(nothing).as_py():
        keep &= ~(nothing.to_numpy().astype(bool) & np.isin(at, _blank(data)))
    if not keep.all():
        table, at = table.filter(pa.array(keep)), at[keep]
    return table.cast(pa.schema([(name, pa.string()) for name in table.column_names])), at


def _rows(data: bytes, lines: int, dialect: Dialect, wanted: list[int], dropped: Tally) -> tuple[pa.Table, np.ndarray]:
    quoting = dialect.quoting
    if not quotes.matter(data, dialect.mark, quoting):
        table, skipped = _arrow(data, dialect, wanted, quoted=False)
        return table, _numbered(np.arange(table.num_rows + len(skipped)), skipped, dropped)
    if quoting != "minimal":
        table, skipped = _arrow(data, dialect, wanted, quoted=True)
        total = table.num_rows + len(skipped)
        at = np.arange(total) if total == lines else quotes.starts(data, dialect.mark, dialect.width)
        if at is not None and len(at) == total and not any('"' in text for _, text in skipped):
            return table, _numbered(at, skipped, dropped)
    whole = quotes.repair(data, dialect.mark, quoting, dialect.width)
    table, skipped = _arrow(whole.data, dialect, wanted, quoted=True)
    for reason, rows in (("bad_lines", whole.bad), ("stray_quotes", whole.stray)):
        if rows:
            dropped.note(reason, rows[0], len(rows))
    return table, _numbered(whole.lines, skipped, dropped)


def _numbered(at: np.ndarray, skipped: list[tuple[int, str]], dropped: Tally) -> np.ndarray:
    if not skipped:
        return at
    gone = np.array([number - 1 for number, _ in skipped])
    dropped.note("bad_lines", int(at[gone].min()), len(gone))
    return np.delete(at, gone)


def _drop(keep: np.ndarray, gone: np.ndarray, at: np.ndarray, reason: str, dropped: Tally) -> None:
    gone = gone & keep
    if gone.any():
        dropped.note(reason, int(at[gone].min()), int(gone.sum()))
        keep &= ~gone


def _repeats(table: pa.Table, dialect: Dialect) -> np.ndarray | None:
    """Rows that repeat the header, as in concatenated files; None: none."""
    same = None
    for name in table.column_names:
        expected = dialect.names[int(name)]
        if not expected or not pa.types.is_string(table[name].type):
            continue
        equal = pc.fill_null(pc.equal(table[name], expected), False)
        if same is None and not pc.any(equal).as_py():
            return None
        same = equal if same is None else pc.and_(same, equal)
    return None if same is None else same.to_numpy().astype(bool)


def _blank(data: bytes) -> np.ndarray:
    return np.array([n for n, line in enumerate(data.split(b"\n")) if line in (b"", b"\r")])


def _is_utf8(value: bytes | None) -> bool:
    try:
        return value is None or bool(value.decode("utf-8") or True)
    except UnicodeDecodeError:
        return False


def _arrow(
    data: bytes, dialect: Dialect, wanted: list[int], quoted: bool, kind: pa.DataType | None = None
) -> tuple[pa.Table, list[tuple[int, str]]]:
    """The requested columns, and (number from 1, text) of the dropped rows."""
    kind = kind or pa.string()
    skipped: list[tuple[int, str]] = []

    def skip(row: arrow_csv.InvalidRow) -> str:
        skipped.append((row.number, row.text or ""))
        return "skip"

    names = [str(position) for position in range(dialect.width)]
    include = [str(position) for position in wanted]
    if not data:
        return pa.table({name: pa.array([], kind) for name in include}), skipped
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(data),
            read_options=arrow_csv.ReadOptions(
                use_threads=False, column_names=names, block_size=min(len(data) + 1, 1 << 30)
            ),
            parse_options=arrow_csv.ParseOptions(
                delimiter=dialect.mark.decode("latin-1"),
                quote_char='"' if quoted else False,
                escape_char="\\" if quoted and dialect.quoting == "backslash" else False,
                ignore_empty_lines=False,
                newlines_in_values=quoted,
                invalid_row_handler=skip,
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(include, kind),
                include_columns=include,
                strings_can_be_null=True,
                null_values=[""],
            ),
        )
    except pa.ArrowInvalid:  # bytes that are not UTF-8, in a requested column
        if kind != pa.string():
            raise
        return _arrow(data, dialect, wanted, quoted, pa.binary())
    return table, skipped
