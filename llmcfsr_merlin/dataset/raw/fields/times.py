"""Parses times of any notation as unix seconds and fractional seconds.

A file's time format is decided once, on its first rows (TimeReader.of): the digits of one value may be seconds
or a date, and 04/03 may be in April or in March.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from llmcfsr_merlin.dataset.raw.fields.dates import parse_dates, slash_order
from llmcfsr_merlin.dataset.raw.fields.numbers import (
    NUMBER,
    array_like,
    numbers_of,
    one_array,
    split_numbers,
    values_of,
)
from llmcfsr_merlin.dataset.raw.fields.numeric_times import (
    DAYS,
    UNITS,
    are_excel_days,
    date_digits,
    dates_of,
    divisor,
    exceeds_seconds,
    in_seconds,
    unit_of,
    year_of,
)
from llmcfsr_merlin.runtime.errors import InputError

EARLY = 631_152_000  # 1990-01-01: a log of the web is not older
SETTING = "data.time_format (e.g. %d/%m/%Y %H:%M)"


@dataclass
class Times:
    """seconds: int64, null if a value is missing or no time; rest: float64 in [0, 1), the part of a second after it.

    mixed: values in another unit than the file's first rows.
    """

    seconds: pa.Array
    rest: np.ndarray
    mixed: int = 0


@dataclass(frozen=True)
class TimeReader:
    """Reads the time column of one file.

    unit: of UNITS, days or excel_days; "" if each number's size decides. usual: the unit of the first rows, to
    notice others by. digits: 8, 12, 14 or 17 if numbers are dates such as 20180920. day_first: of 04/03/2012; None
    if none was seen. format: of strptime, for all values.
    """

    unit: str = ""
    usual: str = ""
    digits: int = 0
    day_first: bool | None = None
    format: str = ""

    @classmethod
    def of(
        cls, sample: pa.ChunkedArray, where: str, unit: str = "", format: str = "", filtered: bool = False
    ) -> "TimeReader":
        """The reader for a file whose first times are `sample`.

        unit, format: data.time_unit and data.time_format, if given. filtered: data.start or data.end is set.
        Raises InputError that names `where` and the setting that decides, for times that can be read in two ways.
        """
        if format:
            return cls(format=format)
        text, numbers = split_numbers(one_array(sample))
        order = slash_order(text)
        if order == "unclear":
            example = next(value for value in text.to_pylist() if value and slash_order(pa.array([value])) is not None)
            raise InputError(
                f"{where}: expected times whose day and month can be told apart, found dates such as {example!r}: set "
                "data.time_format, e.g. %m/%d/%Y or %d/%m/%Y (with %H:%M if there is a time of day)"
            )
        day_first = None if order is None else order == "day"
        values = numbers[~np.isnan(numbers)]
        if unit or len(values) == 0 or _typed(sample.type):
            return cls(unit, unit, day_first=day_first)
        digits = date_digits(values, where)
        if not digits:
            if are_excel_days(values):
                raise InputError(
                    f"{where}: expected times, found {values[0]:.15g}: an Excel day or a second of 1970? Set "
                    "data.time_unit to excel_days or s (for plain positions: data.columns.time=null and "
                    "data.columns.order)"
                )
            if filtered and in_seconds(values).max() < EARLY:
                raise InputError(
                    f"{where}: expected times for data.start and data.end, found {values[0]:.15g}, in seconds a "
                    f"time of {year_of(in_seconds(values)[0])}: set data.time_unit (s, days, excel_days, ...) or "
                    f"{SETTING}"
                )
        usual = Counter(unit_of(values).tolist()).most_common(1)[0][0]
        return cls(usual="" if digits else usual, digits=digits, day_first=day_first)

    def __call__(self, column: pa.ChunkedArray | pa.Array) -> Times:
        """The times of a column of any type: numbers, texts, timestamps or dates."""
        column = one_array(column)
        if self.format:
            return _by_format(column, self.format)
        if _typed(column.type):
            return _typed_times(column)
        if pa.types.is_integer(column.type):
            return self._integers(column)
        if pa.types.is_floating(column.type):
            return self._floats(column)
        # Arrow's parsers are all or nothing; what they reject (spaces, zones, an odd value) is parsed by patterns.
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            for kind, read in ((pa.int64(), self._integers), (pa.timestamp("us"), _typed_times)):
                try:
                    return read(column.cast(kind))
                except pa.ArrowInvalid:
                    continue
        text, _ = split_numbers(column, numbers=False)
        try:
            floats = text.cast(pa.float64())
        except pa.ArrowInvalid:
            return self._texts(text)
        return self._decimals(text, floats)

    def _integers(self, column: pa.Array) -> Times:
        if column.type == pa.uint64():
            column = pc.if_else(pc.less(column, pa.scalar(2**63, pa.uint64())), column, None)
        column = column.cast(pa.int64())
        values = values_of(column)
        if self.digits:
            seconds, rest, good = dates_of(values, self.digits)
            return Times(array_like(seconds, column, ~good), rest)
        if self.unit in DAYS:
            values = np.clip(values, -(10**9), 10**9)
            return Times(array_like((values - DAYS[self.unit]) * 86_400, column), np.zeros(len(values)))
        by = self._divisor(values)
        mixed = self._mixed(values, by, column)
        if isinstance(by, int) and by == 1:
            return Times(array_like(values, column), np.zeros(len(values)), mixed)
        seconds = values // by
        return Times(array_like(seconds, column), (values - seconds * by) / by, mixed)

    def _floats(self, column: pa.Array) -> Times:
        column = column.cast(pa.float64())
        finite = pc.is_finite(column)
        column = pc.if_else(pc.and_(finite, pc.less(pc.abs(column), 1e19)), column, None)
        values = values_of(column)
        if self.digits:
            whole = np.floor(np.clip(values, 0, 1e18))
            found = self._integers(array_like(whole.astype(np.int64), column))
            return Times(found.seconds, found.rest + values - whole)
        by: int | np.ndarray = 1
        mixed = 0
        if self.unit in DAYS:
            values = (values - DAYS[self.unit]) * 86_400
            # Excel's noon is not exactly half a day: values within a microsecond of a second are rounded to it.
            values = np.where(np.abs(values - np.round(values)) < 1e-5, np.round(values), values)
        else:
            by = self._divisor(values)
            mixed = self._mixed(values, by, column)
        seconds = np.floor(values / by)
        rest = (values - seconds * by) / by
        inside = np.abs(seconds) < 2**62
        return Times(array_like(np.where(inside, seconds, 0).astype(np.int64), column, ~inside), rest, mixed)

    def _decimals(self, text: pa.Array, floats: pa.Array) -> Times:
        """Numbers with a fraction, as text: a float64 does not hold the nanoseconds of "1600000000.123456789"."""
        parts = pc.extract_regex(text, r"^(?P<whole>[0-9]+)(?P<part>\.[0-9]+)?$")
        if parts.null_count > text.null_count or self.digits or self.unit not in ("", "s"):
            return self._floats(floats)
        if len(floats) and exceeds_seconds(pc.max(floats).as_py() or 0):
            return self._floats(floats)
        whole, part = parts.flatten()
        part = pc.if_else(pc.equal(part, ""), ".0", part)
        rest = pc.fill_null(pc.binary_join_element_wise("0", part, "").cast(pa.float64()), 0.0)
        seconds = pc.if_else(pc.is_valid(text), whole, None).cast(pa.int64())
        return Times(seconds, rest.to_numpy(zero_copy_only=False))

    def _texts(self, text: pa.Array) -> Times:
        encoded = text.dictionary_encode()
        texts, indices = encoded.dictionary, encoded.indices
        numeric = pc.fill_null(pc.match_substring_regex(texts, NUMBER), False)
        number = numeric.to_numpy(zero_copy_only=False)
        seconds, rest, good = parse_dates(pc.if_else(numeric, None, texts), self.day_first)
        mixed = 0
        if number.any():
            found = self._decimals_or_integers(texts.filter(pa.array(number)))
            seconds[number], rest[number] = values_of(found.seconds), found.rest
            good[number] = found.seconds.is_valid().to_numpy(zero_copy_only=False)
            mixed = found.mixed
        take = indices.fill_null(0).to_numpy(zero_copy_only=False)
        missing = indices.is_null().to_numpy(zero_copy_only=False)
        if not len(texts):
            return Times(pa.nulls(len(text), pa.int64()), np.zeros(len(text)))
        return Times(pa.array(seconds[take], pa.int64(), mask=missing | ~good[take]), rest[take], mixed)

    def _decimals_or_integers(self, text: pa.Array) -> Times:
        try:
            return self._integers(text.cast(pa.int64()))
        except pa.ArrowInvalid:
            return self._floats(text.cast(pa.float64()))

    def _divisor(self, values: np.ndarray) -> int | np.ndarray:
        return UNITS[self.unit] if self.unit else divisor(values)

    def _mixed(self, values: np.ndarray, by: int | np.ndarray, column: pa.Array) -> int:
        if self.unit or not self.usual:
            return 0
        other = np.broadcast_to(np.asarray(by), values.shape) != UNITS[self.usual]
        return int((other & column.is_valid().to_numpy(zero_copy_only=False)).sum())


def to_integers(column: pa.ChunkedArray | pa.Array) -> Times:
    """Positions (a log's `order`) as Times: whole numbers and what is after them, null if there is no number."""
    numbers = numbers_of(one_array(column), pa.int64())
    if pa.types.is_integer(numbers.type):
        return Times(numbers, np.zeros(len(numbers)))
    return TimeReader("s")._floats(numbers)


def _typed(kind: pa.DataType) -> bool:
    return pa.types.is_timestamp(kind) or pa.types.is_date(kind)


def _typed_times(column: pa.Array) -> Times:
    kind = column.type
    per_second = UNITS[kind.unit] if pa.types.is_timestamp(kind) else 1_000
    if pa.types.is_date(kind):
        column = column.cast(pa.date64()).cast(pa.int64())
    values = values_of(column.cast(pa.int64()))
    seconds = np.floor_divide(values, per_second)
    return Times(array_like(seconds, column), (values - seconds * per_second) / per_second)


def _by_format(column: pa.Array, form: str) -> Times:
    text, _ = split_numbers(column, numbers=False) if not _typed(column.type) else (column.cast(pa.string()), None)
    encoded = pc.replace_substring_regex(text, r"^([0-9]+)\.0$", r"\1").dictionary_encode()
    parsed = pd.to_datetime(
        pd.Series(encoded.dictionary.to_pylist(), dtype=object), format=form, errors="coerce", utc=True
    )
    # In the unit that pandas chose: nanoseconds before pandas 3, which end in 2262.
    moments = parsed.dt.tz_localize(None).to_numpy() if len(parsed) else np.empty(0, "datetime64[ns]")
    return _typed_times(pa.array(moments).take(encoded.indices))
