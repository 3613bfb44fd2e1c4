"""Counts of dropped rows by reason, with the location of the first one."""

import logging
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from llmcfsr_merlin.runtime.errors import InputError

_WARN = 0.01
_ABSENT = ("no_user", "no_item", "no_time", "metadata_no_item")  # a missing value is not unreadable: it does not count
_SHOWN = 60  # most characters of an example


class Tally(Counter):
    """Counts by reason; `first`: reason -> row of the first one, `examples`: reason -> what stands there."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.first: dict[str, int] = {}
        self.examples: dict[str, str] = {}

    def __reduce__(self) -> tuple:
        return _tally, (dict(self), self.first, self.examples)

    def note(self, reason: str, row: int, count: int = 1) -> None:
        """Count rows dropped for a reason; row: the first of them."""
        self[reason] += count
        self.first[reason] = min(row, self.first.get(reason, row))

    def take(self, other: Counter) -> None:
        """Add the counts of a later block; the examples that are here stand."""
        self.update(other)
        for reason, example in getattr(other, "examples", {}).items():
            self.examples.setdefault(reason, example)


def _tally(counts: dict, first: dict, examples: dict) -> Tally:
    made = Tally(counts)
    made.first, made.examples = first, examples
    return made


@dataclass(frozen=True)
class Place:
    """Where a block stands in its file. before: lines (rows of Parquet) of the file before its first one; known:
    reasons that have their example already."""

    path: str
    before: int = 0
    known: Container[str] = ()

    def exemplify(self, tally: Tally, data: bytes | pa.RecordBatch) -> None:
        """Add file:line and its text, shortened, for each reason without an example."""
        for reason, line in tally.first.items():
            if reason not in self.known and reason not in tally.examples:
                text = _line(data, line) if isinstance(data, bytes) else str(data.slice(line, 1).to_pylist()[0])
                text = text[:_SHOWN] + "..." if len(text) > _SHOWN else text
                shown = repr(text).replace("\\\\", "\\")
                tally.examples[reason] = f"{self.path}:{self.before + line + 1}: {shown}"


def _line(data: bytes, number: int) -> str:
    start = 0
    for _ in range(number):
        start = data.find(b"\n", start) + 1
    end = data.find(b"\n", start)
    line = data[start : end if end >= 0 else len(data)]
    return line[: 4 * _SHOWN].decode("utf-8", "backslashreplace").rstrip("\r")


def check_dropped(
    tally: Tally, reasons: tuple[str, ...], noted: tuple[str, ...], read: int, limit: float, what: str
) -> list[tuple[int, str]]:
    """The lines to log: one per drop reason, and a warning if many rows were dropped.

    reasons: of dropped rows; noted: counts of kept rows to report. read: rows read. limit: share of them that may
    be unreadable (data.max_dropped); InputError if more are. what: interactions or items.
    """
    lost = {name: tally[name] for name in reasons if tally[name]}
    reported = lost | {name: tally[name] for name in noted if tally[name]}
    lines = [
        (logging.INFO, f"{what}: {name.replace('_', ' ')}: {count:,}{_first(tally, name)}")
        for name, count in reported.items()
    ]
    total = sum(lost.values())
    unreadable = {name: count for name, count in lost.items() if name not in _ABSENT}
    if read and sum(unreadable.values()) > limit * read:
        total, lost = sum(unreadable.values()), unreadable
        worst = max(lost, key=lambda name: lost[name])
        prefix = "data.item_" if what == "items" else "data."
        raise InputError(
            f"{what}: expected at most {limit:.0%} of the rows to be unreadable, found {total:,} of {read:,} "
            f"({', '.join(f'{count:,} {name}' for name, count in lost.items())}){_first(tally, worst)}: check "
            f"{prefix}columns, {prefix}delimiter and {prefix}quoting, or set "
            f"data.max_dropped={min(1, total / read + 0.005):.2f}"
        )
    if read and total > _WARN * read:
        lines.append((logging.WARNING, f"{what}: {total:,} of {read:,} rows ({total / read:.1%}) could not be read"))
    return lines


def _first(tally: Tally, reason: str) -> str:
    example = tally.examples.get(reason)
    return f"; first {example}" if example else ""
