"""What a quote means in one record of delimited text, as patterns and as cells; `mark` is the delimiter, one byte."""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

QuoteRule = Literal["double", "backslash", "minimal", "none"]
"""double: "" inside quotes is a quote; backslash: so is \\"; minimal: only fields that needed quotes are unquoted, as
in tab-separated files, where a quote is mostly a character like others; none: quotes are always characters."""


@dataclass(frozen=True)
class Rules:
    """Patterns of one delimiter and rule."""

    opening: re.Pattern
    """A quote that may be syntax."""
    quoted: re.Pattern
    """A well-formed quoted field."""
    field: re.Pattern
    """A field as Arrow delimits it, if its quote is closed."""
    line: re.Pattern
    """A line whose quotes are closed on it, if not well; Arrow ends its record there."""
    record: re.Pattern
    """A record of well-formed fields, over any number of lines."""
    unclosed: re.Pattern
    """A record whose last field is open."""


@lru_cache
def rules_of(mark: bytes, quoting: QuoteRule) -> Rules:
    end = re.escape(mark)
    if quoting == "backslash":
        inner, inline = rb'[^"\\]*(?:(?:\\[\s\S]|"")[^"\\]*)*', rb'[^"\\\n]*(?:(?:\\.|"")[^"\\\n]*)*'
    else:
        inner, inline = rb'[^"]*(?:""[^"]*)*', rb'[^"\n]*(?:""[^"\n]*)*'
    plain = rb'(?!")[^%b\n]*' % end
    field_ = rb'(?:"%b"|%b)' % (inner, plain)
    line = rb'(?:"%b"(?!")[^%b\n]*|%b)' % (inline, end, plain)
    whole = rb'(?:"%b"(?!")[^%b\n]*|%b)' % (inner, end, plain)
    fields = rb"%b(?:%b%b)*" % (field_, end, field_)
    return Rules(
        opening=re.compile(rb'(?:^|(?<=%b))"' % end if quoting == "minimal" else rb'"', re.MULTILINE),
        quoted=re.compile(rb'"(%b)"(?=%b|\r?\n|\Z)' % (inner, end)),
        field=re.compile(whole),
        line=re.compile(rb"%b(?:%b%b)*\r?\n?" % (line, end, line)),
        record=re.compile(rb"%b\r?(?:\n|\Z)" % fields),
        unclosed=re.compile(rb'(?:%b%b)*"%b' % (field_, end, inner)),
    )


def cells_of(piece: bytes, mark: bytes, quoting: QuoteRule, strict: bool = False) -> list[bytes]:
    """The fields of one record. strict: [] if a field that starts with a quote is not well-formed."""
    rules = rules_of(mark, quoting)
    piece = piece.removesuffix(b"\n").removesuffix(b"\r")
    cells, position = [], 0
    while True:
        found = rules.quoted.match(piece, position)
        if found:
            end = found.end()
            inner = found.group(1)
            needed = b'""' in inner or mark in inner or b"\n" in inner
            if quoting == "minimal" and not needed:
                cells.append(found.group())
            else:
                if quoting == "backslash":
                    inner = re.sub(rb"\\([\s\S])", rb"\1", inner)
                cells.append(inner.replace(b'""', b'"'))
        else:
            if strict and piece.startswith(b'"', position):
                return []
            end = piece.find(mark, position)
            end = len(piece) if end < 0 else end
            cells.append(piece[position:end])
        if end >= len(piece):
            return cells
        position = end + 1


def arrow_width(piece: bytes, mark: bytes, quoting: QuoteRule) -> int:
    """How many columns Arrow finds: after a closing quote it goes on to the next delimiter."""
    piece = piece.removesuffix(b"\n").removesuffix(b"\r")
    width, position = 0, -1
    while position < len(piece):
        field_ = rules_of(mark, quoting).field.match(piece, position + 1)
        assert field_, "a field may be empty"
        position = field_.end()
        width += 1
        if not piece.startswith(mark, position):
            break
    return width


def quoted_line(cells: list[bytes], mark: bytes) -> bytes:
    """The record with "" for a quote inside quotes, as Arrow reads it."""
    quoted = [b'"' + cell.replace(b'"', b'""') + b'"' if b'"' in cell or mark in cell or b"\n" in cell else cell
              for cell in cells]  # fmt: skip
    return mark.join(quoted) + b"\n"
