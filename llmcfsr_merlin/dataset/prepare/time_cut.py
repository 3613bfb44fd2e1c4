"""The two cut times of prepare.split=temporal: days, or quantiles of the times of all interactions."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timezone

import numpy as np
import pyarrow.parquet as pq

from llmcfsr_merlin.config.prepare_settings import PrepareConfig
from llmcfsr_merlin.dataset.names import TIME
from llmcfsr_merlin.dataset.prepare.partitions import Chunk
from llmcfsr_merlin.dataset.raw.fields.times import EARLY
from llmcfsr_merlin.runtime.device import Array
from llmcfsr_merlin.runtime.errors import InputError

_BINS = 1 << 16


@dataclass(frozen=True)
class TimeCut:
    """Validation is [valid_from, test_from), test what is later, in unix seconds. targets: as prepare.targets."""

    valid_from: int
    test_from: int
    targets: str

    def segments(self, time: Array) -> Array:
        """Segment (int8) of interactions at `time` (int64 seconds): equal times are never on two sides of a cut."""
        return (time >= self.valid_from).astype("int8") + (time >= self.test_from).astype("int8")


def time_cut(chunks: list[Chunk], settings: PrepareConfig) -> TimeCut | None:
    """The two times of prepare.split=temporal, None for leave-one-out; reads only the time column.

    A quantile is the time of an interaction (numpy's method "lower") of the log as it comes in, before any filter.
    Raises InputError if the log has positions instead of times, and if a part would be empty.
    """
    if settings.split != "temporal":
        return None

    def times() -> Iterator[np.ndarray]:
        for chunk in chunks:
            for path, group in chunk.pieces:
                yield pq.ParquetFile(path).read_row_group(group, columns=[TIME])[TIME].drop_null().to_numpy()

    low, high, rows = _bounds(times())
    if high < EARLY:
        raise InputError(
            f"prepare.split=temporal: expected times in the log, found positions or dates before 1990 (the latest is "
            f"{high} in unix seconds): set data.columns.timestamp, or prepare.split=leave_one_out"
        )
    cuts = []
    for day, share in ((settings.valid_from, settings.valid_quantile), (settings.test_from, settings.test_quantile)):
        cuts.append(_midnight(day) if day else _at_place(times, int(np.floor(share * (rows - 1))), low, high))
    valid, test = cuts
    if not low < valid < test <= high:
        raise InputError(
            f"prepare.split=temporal: expected interactions before validation, in it and in test, found a log from "
            f"{format_time(low)} to {format_time(high)} cut at {format_time(valid)} and "
            f"{format_time(test)}: set prepare.valid_from and prepare.test_from, or other quantiles"
        )
    return TimeCut(valid, test, settings.targets)


def format_time(seconds: int) -> str:
    """Unix seconds as a date and time (UTC)."""
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, OSError, ValueError):
        return str(seconds)


def _midnight(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=timezone.utc).timestamp())


def _bounds(times: Iterable[np.ndarray]) -> tuple[int, int, int]:
    low, high, rows = 1 << 63, -(1 << 63), 0
    for values in times:
        if len(values):
            low, high, rows = min(low, int(values.min())), max(high, int(values.max())), rows + len(values)
    return low, high, rows


def _at_place(times: Callable[[], Iterable[np.ndarray]], place: int, low: int, high: int) -> int:
    """The `place`-th smallest value (from 0), by histograms: memory holds at most one partition."""
    while low < high:
        width = -(-(high - low + 1) // _BINS)
        counts = np.zeros(_BINS, np.int64)
        for values in times():
            inside = values[(values >= low) & (values <= high)]
            counts += np.bincount((inside - low) // width, minlength=_BINS)
        ends = np.cumsum(counts)
        bin_ = int(np.searchsorted(ends, place, "right"))
        place -= int(ends[bin_ - 1]) if bin_ else 0
        low += bin_ * width
        high = min(high, low + width - 1)
    return low
