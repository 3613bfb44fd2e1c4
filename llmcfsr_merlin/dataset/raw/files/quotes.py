"""Parses quotes in delimited text so that a stray quote costs only its own line, not the rows after it.

Arrow does the parsing. An unclosed quote makes it silently swallow the next rows as the text of one field.
So a block with fewer rows than lines, or with rows of a wrong width, is examined here: a
field goes over several lines only if it is well-formed (opened at the start of a field, closed before a delimiter) and
most of its lines do not look like rows. A line whose quotes make no sense is read as it stands.

Widths are numbers of columns; `mark` is the delimiter, one byte.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from llmcfsr_merlin.dataset.raw.files.quote_rules import QuoteRule, arrow_width, cells_of, quoted_line, rules_of

_QUOTE, _NEWLINE, _RETURN = 34, 10, 13
_FEW = 3  # lines; a stray quote and one at the end of a later field look well-formed, but each line is whole
_KINDS = Literal["plain", "record", "stray"]


@dataclass
class Repaired:
    """A block that Arrow reads by one rule. data: quoted by "" throughout; lines: int64, the line of each row."""

    data: bytes
    lines: np.ndarray
    bad: list[int] = field(default_factory=list)
    """Lines that are no row of the width, whatever their quotes mean; they are not in `data`."""
    stray: list[int] = field(default_factory=list)
    """Lines that were read literally."""


def matter(data: bytes, mark: bytes, quoting: QuoteRule) -> bool:
    """Whether there is a quote that may be syntax."""
    return quoting != "none" and b'"' in data and bool(rules_of(mark, quoting).opening.search(data))


def repair(data: bytes, mark: bytes, quoting: QuoteRule, width: int) -> Repaired:
    """The block with every row on its own, fields quoted if they must be."""
    out: list[bytes] = []
    at: list[np.ndarray] = []
    done = Repaired(b"", np.empty(0, np.int64))
    line = 0
    for start, end, kind in _walk(data, mark, quoting, width):
        piece = data[start:end]
        count = piece.count(b"\n") + (not piece.endswith(b"\n"))
        if kind == "plain":
            out.append(piece)
            at.append(np.arange(line, line + count))
        else:
            cells = _meant(piece, mark, quoting, width, kind)
            if cells is None:
                out.append(piece)
            elif len(cells) == width:
                out.append(quoted_line(cells, mark))
                if kind == "stray":
                    done.stray.append(line)
            else:
                done.bad.append(line)
            if cells is None or len(cells) == width:
                at.append(np.array([line]))
        line += count
    done.data, done.lines = b"".join(out), np.concatenate(at) if at else done.lines
    return done


def starts(data: bytes, mark: bytes, width: int) -> np.ndarray | None:
    """The line on which each record begins, int64; None if a quote is not well-formed or a long field in doubt.

    Records of another width are not found here: Arrow leaves them out.
    """
    raw = np.frombuffer(data, np.uint8)
    quotes = np.flatnonzero(raw == _QUOTE)
    if len(quotes) % 2 or not _well_formed(raw, quotes, mark):
        return None
    bounds = np.flatnonzero(raw == _NEWLINE) + 1  # of lines
    if len(raw) and (not len(bounds) or bounds[-1] < len(raw)):
        bounds = np.append(bounds, len(raw))
    last = np.flatnonzero(np.searchsorted(quotes, bounds) % 2 == 0)  # lines that end a record
    first = np.append(0, last[:-1] + 1)
    opened, closed = (np.searchsorted(bounds, at, side="right") for at in (quotes[0::2], quotes[1::2]))
    several = np.flatnonzero(opened < closed)
    if len(several) and width > 1:
        full = np.diff(np.searchsorted(np.flatnonzero(raw == ord(mark)), bounds), prepend=0) == width - 1
        above = np.append(0, np.cumsum(full))
        opened, closed = opened[several], closed[several]
        if (2 * (above[closed + 1] - above[opened]) > closed - opened + 1).any():
            return None
    return first


def last_boundary(data: bytes, mark: bytes, quoting: QuoteRule, width: int) -> int:
    """Where the last whole record of `data` (whole lines) ends: before a field that is still open, if there is one."""
    if quoting == "double":
        raw = np.frombuffer(data, np.uint8)
        quotes = np.flatnonzero(raw == _QUOTE)
        if len(quotes) % 2 and _well_formed(raw, quotes, mark):
            start = len(data)
            while start and np.searchsorted(quotes, start) % 2:
                start = data.rfind(b"\n", 0, min(start - 1, int(quotes[np.searchsorted(quotes, start) - 1]))) + 1
            if _open(data, start, mark, quoting, width):
                return start
    end = 0
    for start, stop, kind in _walk(data, mark, quoting, width):
        if kind == "stray" and _open(data, start, mark, quoting, width):
            return start
        end = stop
    return end


def _well_formed(raw: np.ndarray, quotes: np.ndarray, mark: bytes) -> bool:
    """Whether every other quote opens a field and the ones between them close one (or stand for a quote in it)."""
    ends = np.zeros(256, bool)
    ends[[ord(mark), _NEWLINE, _QUOTE]] = True
    opens, closes = quotes[0::2], quotes[1::2]
    before = ends[raw[opens[opens > 0] - 1]]
    ends[_RETURN] = True
    return bool(before.all() and ends[raw[closes[closes < len(raw) - 1] + 1]].all())


def split(data: bytes, mark: bytes, quoting: QuoteRule, limit: int) -> Iterator[tuple[int, list[str]]]:
    """The cells of the first records and the number of lines before each; the first record gives the width."""
    line, width, found = 0, 0, 0
    text = data
    while text and found < limit:
        start, end, kind = next(_records(text, mark, quoting, width))
        piece = text[start:end]
        cells = _meant(piece, mark, quoting, width, kind) if kind != "plain" else None
        if cells is None:
            cells = cells_of(piece, mark, quoting) if quoting != "none" else piece.rstrip(b"\r\n").split(mark)
        if piece.strip():
            width, found = width or len(cells), found + 1
            yield line, [cell.decode("utf-8", "replace") for cell in cells]
        line += piece.count(b"\n")
        text = text[end:]


def _records(data: bytes, mark: bytes, quoting: QuoteRule, width: int) -> Iterator[tuple[int, int, _KINDS]]:
    if quoting == "none":
        yield 0, data.find(b"\n") + 1 or len(data), "plain"
        return
    for start, end, kind in _walk(data, mark, quoting, width):
        if kind == "plain":
            end = data.find(b"\n", start) + 1 or len(data)
        yield start, end, kind


def _walk(data: bytes, mark: bytes, quoting: QuoteRule, width: int) -> Iterator[tuple[int, int, _KINDS]]:
    """(start, end, kind) of what the block is made of: plain lines, records with quotes, lines with stray quotes."""
    rules = rules_of(mark, quoting)
    position = 0
    while position < len(data):
        found = rules.opening.search(data, position)
        if not found:
            yield position, len(data), "plain"
            return
        start = data.rfind(b"\n", position, found.end()) + 1 or position
        if start > position:
            yield position, start, "plain"
        end = data.find(b"\n", found.end()) + 1 or len(data)
        if rules.line.fullmatch(data, start, end):
            yield start, end, "record"
        else:
            record = rules.record.match(data, start)
            if record and _sensible(record.group(), mark, quoting, width):
                end = record.end()
                yield start, end, "record"
            else:
                yield start, end, "stray"
        position = end


def _sensible(record: bytes, mark: bytes, quoting: QuoteRule, width: int) -> bool:
    """Whether a record of well-formed fields is one: of the width, its long fields no rows."""
    if not width:
        return True
    if len(cells_of(record, mark, quoting)) != width:
        return False
    fields = rules_of(mark, quoting).quoted.finditer(record)
    return not any(b"\n" in field.group() and _rows(record, *field.span(), mark, width) for field in fields)


def _rows(data: bytes, start: int, end: int, mark: bytes, width: int) -> bool:
    """Whether most of the lines that a field touches look like rows. Prose has a space after its commas, rows none."""
    if width == 1:
        return False
    start = data.rfind(b"\n", 0, start) + 1
    end = data.find(b"\n", end)
    lines = data[start : end if end >= 0 else len(data)].split(b"\n")
    spaced = mark + b" "
    spaces = spaced in lines[0].partition(b'"')[0]
    like = sum(line.count(mark) == width - 1 and (spaces or spaced not in line) for line in lines)
    return 2 * like > len(lines)


def _open(data: bytes, start: int, mark: bytes, quoting: QuoteRule, width: int) -> bool:
    tail = data[start:]
    if not rules_of(mark, quoting).unclosed.fullmatch(tail):
        return False
    return tail.count(b"\n") < _FEW or not _rows(tail, 0, len(tail), mark, width)


def _meant(piece: bytes, mark: bytes, quoting: QuoteRule, width: int, kind: str) -> list[bytes] | None:
    """The cells of a record or a stray line; None: as Arrow reads it."""
    if kind == "record" and quoting != "minimal" and (not width or arrow_width(piece, mark, quoting) == width):
        return None
    readings: list[QuoteRule] = [quoting, "backslash"] if quoting == "double" and b'\\"' in piece else [quoting]
    for reading in readings:
        cells = cells_of(piece, mark, reading, strict=len(readings) > 1)
        if len(cells) == width:
            return cells
    literal = piece.rstrip(b"\r\n").split(mark)
    if len(literal) == width:
        return literal
    return None if kind == "record" and quoting != "minimal" else cells
