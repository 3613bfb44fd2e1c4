"""Detects the dialect of a delimited file (delimiter, quotes, header) from its first lines; ambiguous files are
refused.

The column names in the settings identify the delimiter; without a header, nothing is guessed except
what the values show.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmcfsr_merlin.config.data_settings import Quoting
from llmcfsr_merlin.dataset.raw.files import quotes
from llmcfsr_merlin.dataset.raw.files.quote_rules import QuoteRule
from llmcfsr_merlin.dataset.raw.files.source import Source
from llmcfsr_merlin.runtime.errors import InputError

_CANDIDATES = ("\t", "::", "\x01", ";", "|", ",", " ")
_NAMED = {"\t": "tab", ";": "semicolon", ",": "comma", "|": "pipe", " ": "space", "\x01": "\\x01"}
_SEPARATOR = "\x1f"  # stands for a multi-character delimiter, which Arrow does not support
_SPACES, _OUTER = re.compile(rb" +"), re.compile(rb"^ | (?=\r?$)", re.MULTILINE)
_LOOKED_AT = 100  # rows
# Unix seconds after 1980, and the same in milli-, micro- and nanoseconds.
_TIMES = ((3e8, 5e9), (3e11, 5e12), (3e14, 5e15), (3e17, 5e18))
_BEST_RATING = 100


@dataclass(frozen=True)
class Text:
    """Settings of delimited files. prefix: of the settings' names, "data." or "data.item_"."""

    prefix: str = "data."
    delimiter: str | None = None
    quoting: Quoting = "auto"
    header: bool | None = None
    names: tuple[str, ...] = ()
    wanted: tuple[str | int | None, ...] = ()
    """Columns that must be there: user and item, or the item."""
    placed: bool = False
    """Whether any column is given by its position."""

    @property
    def columns(self) -> str:
        """The setting that names the columns."""
        return f"{self.prefix}columns"


@dataclass(frozen=True)
class Dialect:
    """names: all columns in order, "" for one without a name. skip: lines before the first row."""

    names: tuple[str, ...]
    delimiter: str
    quoting: QuoteRule
    skip: int = 0
    header: bool = True
    guessed: bool = False
    """No header and no names: columns are named by their values."""

    @property
    def mark(self) -> bytes:
        """The delimiter as one byte."""
        encoded = self.delimiter.encode()
        return encoded if len(encoded) == 1 else _SEPARATOR.encode()

    @property
    def width(self) -> int:
        return len(self.names)

    def normalised(self, data: bytes) -> bytes:
        """The block with `mark` between its columns."""
        encoded = self.delimiter.encode()
        if self.delimiter == " " and (b"  " in data or b" \n" in data or b"\n " in data or data.startswith(b" ")):
            return _OUTER.sub(b"", _SPACES.sub(b" ", data))  # columns aligned by spaces
        return data if len(encoded) == 1 else data.replace(self.mark, b" ").replace(encoded, self.mark)


@dataclass(frozen=True)
class _Reading:
    """The first rows by one delimiter: (lines before it, cells) each."""

    dialect: Dialect
    rows: list[tuple[int, list[str]]]

    @property
    def first(self) -> tuple[str, ...]:
        cells = tuple(cell.strip() for cell in self.rows[0][1])
        if self.dialect.quoting != "minimal":
            return cells
        return tuple(cell[1:-1] if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell for cell in cells)

    @property
    def widths(self) -> set[int]:
        return {len(cells) for _, cells in self.rows}

    @property
    def even(self) -> bool:
        """Whether it splits every row into the same number of columns, two or more."""
        return len(self.widths) == 1 and min(self.widths) > 1


def detect(source: Source, text: Text, roles: Sequence[str | int]) -> Dialect:
    """The dialect of a file. roles: what user, item, time and rating are called in a file of numbers without names.

    Raises InputError, which names the setting, if the lines can be read in more than one way.
    """
    lines, before, delimiter = source.start, 0, text.delimiter
    declared = re.match(r'\s*"?sep=(.)"?\r?\n', lines)  # Excel's line
    if declared:
        before, lines, delimiter = declared.group().count("\n"), lines[declared.end() :], delimiter or declared.group(1)
    candidates = (delimiter,) if delimiter else tuple(mark for mark in _CANDIDATES if mark in source.head[0])
    readings = [_read(lines, mark, text.quoting) for mark in candidates or (",",)]
    if not readings[0].rows:
        raise InputError(f"{source.path}: expected rows, found blank lines only")
    reading = _choose(source, text, readings)
    dialect = replace(reading.dialect, skip=before)
    return _named(source, text, roles, dialect, reading)


def _read(text: str, delimiter: str, quoting: Quoting) -> _Reading:
    meant: QuoteRule = quoting if quoting != "auto" else "double" if delimiter in ",;|" else "minimal"
    dialect = Dialect((), delimiter, meant)
    data = dialect.normalised(text.encode())
    rows = list(quotes.split(data, dialect.mark, meant, _LOOKED_AT))
    if quoting == "auto" and meant == "minimal" and rows:
        first = [cell.strip() for cell in rows[0][1]]
        # Every name in quotes: R's write.table, or a writer that quotes all fields.
        if len(first) > 1 and all(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in first):
            return _read(text, delimiter, "double")
    return _Reading(dialect, rows)


def _choose(source: Source, text: Text, readings: list[_Reading]) -> _Reading:
    if len(readings) == 1:
        return readings[0]
    fitting = [reading for reading in readings if _fits(reading, text)]
    even = [reading for reading in fitting or readings if reading.even]
    if len(fitting) == 1:
        return fitting[0]
    if not even:
        return max(fitting or readings, key=lambda reading: len(reading.first))
    strong = [reading for reading in even if reading.dialect.delimiter in ("\t", "::", "\x01")]
    even = strong[:1] or [reading for reading in even if reading.dialect.delimiter != " "] or even
    if len(even) > 1:
        marks = " or ".join(_called(reading.dialect.delimiter) for reading in even)
        raise InputError(
            f"{source.path}: expected one way to split {source.head[0][:60]!r} into columns, found {marks}: set "
            f"{text.prefix}delimiter={_called(even[0].dialect.delimiter)} (or the other)"
        )
    return even[0]


def _fits(reading: _Reading, text: Text) -> bool:
    if text.names:
        return len(reading.first) == len(text.names)
    wanted = [name for name in text.wanted if name is not None]
    if any(isinstance(name, int) for name in wanted):
        return reading.even and max(name for name in wanted if isinstance(name, int)) < len(reading.first)
    return bool(wanted) and all(name in reading.first for name in wanted)


def _named(source: Source, text: Text, roles: Sequence[str | int], dialect: Dialect, reading: _Reading) -> Dialect:
    first = reading.first
    if text.names:
        # R's row names and a delimiter at the end of the rows make the header shorter or longer than the rows.
        if len(text.names) != len(first) and not (text.header and len(text.names) in reading.widths):
            raise InputError(
                f"{source.path}: expected {len(text.names)} columns ({', '.join(text.names)}; "
                f"{text.columns}.names), found {len(first)} on the first line: {source.head[0][:60]!r} "
                f"({text.prefix}delimiter sets the delimiter)"
            )
        header = first == text.names or _names_numbers(reading) if text.header is None else text.header
        return replace(dialect, names=text.names, header=header, skip=_after(dialect, reading, header))
    header = _has_header(source, text, reading) if text.header is None else text.header
    skip = _after(dialect, reading, header)
    if header:
        return replace(dialect, names=_rows_names(source, text, first, reading), skip=skip)
    if text.placed:
        names = [role if isinstance(role, str) else f"column {n}" for n, role in enumerate(roles[:2])]
        names += [f"column {n}" for n in range(2, len(first))]
        return replace(dialect, names=tuple(names[: len(first)]), header=False, skip=skip)
    guessed = _guessed(source, text, roles, [cells for _, cells in reading.rows], len(first))
    return replace(dialect, names=guessed, header=False, skip=skip, guessed=True)


def _after(dialect: Dialect, reading: _Reading, header: bool) -> int:
    if not header:
        return dialect.skip + reading.rows[0][0]
    if len(reading.rows) > 1:
        return dialect.skip + reading.rows[1][0]
    return dialect.skip + reading.rows[0][0] + 1 + sum(cell.count("\n") for cell in reading.rows[0][1])


def _has_header(source: Source, text: Text, reading: _Reading) -> bool:
    first = reading.first
    if any(name in first for name in text.wanted):
        return True
    numbers = [_number(cell) is not None for cell in first]
    if not text.placed:
        return not all(numbers)
    if _names_numbers(reading):
        return True
    if any(numbers):
        return False
    raise InputError(
        f"{source.path}: expected a recognisable header or data line first, found only text: "
        f"{source.head[0][:60]!r}: set {text.prefix}header=true or false"
    )


def _names_numbers(reading: _Reading) -> bool:
    """Whether the first row is text alone and stands above a column of numbers."""
    first = reading.first
    rest = [cells for _, cells in reading.rows[1:] if len(cells) == len(first)]
    if not rest or not all(cell and _number(cell) is None for cell in first):
        return False
    return any(all(_number(cells[n]) is not None for cells in rest) for n in range(len(first)))


def _rows_names(source: Source, text: Text, names: tuple[str, ...], reading: _Reading) -> tuple[str, ...]:
    """The names, one for each column of the rows."""
    rows = [cells for _, cells in reading.rows[1:]]
    if rows and all(len(cells) == len(names) + 1 for cells in rows):
        if not any(cells[-1].strip() for cells in rows):
            return (*names, "")
        if len({cells[0] for cells in rows}) == len(rows):
            return ("", *names)  # R's row names
        raise InputError(
            f"{source.path}: expected a name for each column, found {len(names)} names and {len(names) + 1} columns: "
            f"name all in {text.columns}.names, with {text.prefix}header=true"
        )
    if rows and not names[-1] and all(len(cells) == len(names) - 1 for cells in rows):
        return names[:-1]
    return names


def _guessed(
    source: Source, text: Text, roles: Sequence[str | int], rows: list[list[str]], width: int
) -> tuple[str, ...]:
    """Names of the columns of a file of numbers: user and item come first, times and ratings show which they are."""
    names = [str(role) for role in roles[:2]] + [""] * (width - 2)
    if width > 2:
        columns = [[_number(cells[n]) for cells in rows if len(cells) == width] for n in range(width)]
        times = [n for n in range(2, width) if _are_times(columns[n])]
        ratings = [n for n in range(2, width) if n not in times and _are_ratings(columns[n])]
        if len(roles) < 3 or width > 4 or len(times) != 1 or (width == 4 and len(ratings) != 1):
            raise InputError(
                f"{source.path}: expected a header line, found {width} columns ({source.head[0][:40]!r}) that do not "
                f"identify themselves: give their positions, e.g. --set '{text.columns}={{user: 0, item: 1, rating: 2, "
                "time: 3}' (time: null if there is none)"
            )
        names[times[0]] = str(roles[2])
        if ratings and len(roles) > 3:
            names[ratings[0]] = str(roles[3])
    return tuple(names)


def _are_times(values: list[float | None]) -> bool:
    return any(all(v is not None and low <= v <= high for v in values) for low, high in _TIMES)


def _are_ratings(values: list[float | None]) -> bool:
    return all(value is not None and -_BEST_RATING <= value <= _BEST_RATING for value in values)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _called(delimiter: str) -> str:
    return _NAMED.get(delimiter, repr(delimiter))
