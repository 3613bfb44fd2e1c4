"""Parses dates in text columns: ISO and variants, 04/03/2012, "Tue Apr 03 18:00:09 +0000 2012"."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_SECOND = r"(?P<S>\d{2})(?P<f>[.,]\d{1,18})?"
_CLOCK = rf"(?P<H>\d{{1,2}}):(?P<M>\d{{2}})(?::{_SECOND})?(?:\s*(?P<p>[AaPp])\.?[Mm]\.?)?"
_ZONE = r"(?P<z>[A-Za-z]{1,4}|(?:UTC|GMT)?[+-]\d{2}(?::?\d{2})?)"
_AGAIN = r"(?:\s*\([^)]*\)|\[[^\]]*\])?"  # "(Central European Time)" and "[Europe/Paris]" repeat the zone
_END = rf"(?:\s*{_ZONE})?{_AGAIN}$"
_NAME = r"(?P<m>[A-Za-z]{3,9})\.?"
_WEEKDAY = r"^(?:[A-Za-z]{3,9}\.?,?\s+)?"
_DAY = r"(?P<d>\d{1,2})(?:st|nd|rd|th)?"
_SLASHED = rf"^(?P<a>\d{{1,2}})[-/.](?P<b>\d{{1,2}})[-/.](?P<y>\d{{4}})(?:(?:,|T|\s)+{_CLOCK})?{_END}"
_TWO_DIGITS = r"^\d{1,2}[-/.]\d{1,2}[-/.]\d{2}([T ,].*)?$"
_PATTERNS = (
    rf"^(?P<y>\d{{4}})[-/.](?P<m>\d{{1,2}})[-/.](?P<d>\d{{1,2}})(?:(?:[Tt,]|\s)+{_CLOCK})?{_END}",
    rf"^(?P<y>\d{{4}})(?P<m>\d{{2}})(?P<d>\d{{2}})[Tt ](?P<H>\d{{2}}):?(?P<M>\d{{2}})(?::?{_SECOND})?{_END}",
    # Twitter, Foursquare and C: Tue Apr 03 18:00:09 +0000 2012
    rf"{_WEEKDAY}{_NAME}\s+{_DAY},?\s+{_CLOCK}(?:\s+{_ZONE})?\s+(?P<y>\d{{4}})$",
    # Apr 3, 2012 6:00 PM; Goodreads' Sun Jul 30 07:44:10 -0700 2017 is the one above
    rf"{_WEEKDAY}{_NAME}\s+{_DAY},?\s+(?P<y>\d{{4}})(?:(?:,|at|\s)+{_CLOCK})?{_END}",
    # RFC 2822, Apache, 24-Jan-1997: Tue, 03 Apr 2012 18:00:09 GMT
    rf"{_WEEKDAY}{_DAY}[-/\s]+{_NAME},?[-/\s]+(?P<y>\d{{4}})(?:(?:[T:,]|at|\s)+{_CLOCK})?{_END}",
    # Amazon: 09 4, 2015
    r"^(?P<m>\d{1,2})\s+(?P<d>\d{1,2}),\s*(?P<y>\d{4})$",
)
_MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october",
           "november", "december")  # fmt: skip
# RFC 2822 defines the American ones, the others are unambiguous; IST, BST and AST mean different things to different
# people.
_HOURS = {"": 0, "z": 0, "ut": 0, "utc": 0, "gmt": 0, "est": -5, "edt": -4, "cst": -6, "cdt": -5, "mst": -7, "mdt": -6,
          "pst": -8, "pdt": -7, "wet": 0, "west": 1, "cet": 1, "cest": 2, "eet": 2, "eest": 3, "msk": 3, "jst": 9,
          "kst": 9, "aest": 10, "aedt": 11, "nzst": 12, "nzdt": 13}  # fmt: skip


def parse_dates(texts: pa.Array, day_first: bool | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unix seconds (int64; UTC if a text names no zone), the part of a second after them (float64 in [0, 1)) and
    whether the text is a date at all (bool). day_first: of 04/03/2012, which is no date if it is None."""
    seconds, rest = np.zeros(len(texts), np.int64), np.zeros(len(texts))
    good = np.zeros(len(texts), bool)
    left = np.flatnonzero(texts.is_valid().to_numpy(zero_copy_only=False))
    for pattern in (*_PATTERNS, *([] if day_first is None else [_SLASHED])):
        if not len(left):
            break
        parts = pc.extract_regex(texts.take(pa.array(left)), pattern)
        matched = parts.is_valid().to_numpy(zero_copy_only=False)
        if matched.any():
            here = left[matched]
            fields = dict(zip((field.name for field in parts.type), parts.filter(pa.array(matched)).flatten()))
            seconds[here], rest[here], good[here] = _read(fields, day_first)
            left = left[~matched]
    return seconds, rest, good


def slash_order(texts: pa.Array) -> str | None:
    """Whether dates such as 04/03/2012 put the "day" or the "month" first, by those that can be only one; "unclear"
    if none or both do, or the year has two digits; None if there are no such dates."""
    if pc.any(pc.match_substring_regex(texts, _TWO_DIGITS)).as_py():
        return "unclear"
    parts = pc.extract_regex(texts, _SLASHED).drop_null()
    if not len(parts):
        return None
    first, second = map(_whole, parts.flatten()[:2])
    day, month = bool((first > 12).any()), bool((second > 12).any())
    return "unclear" if day == month else "day" if day else "month"


def seconds_of(
    year: np.ndarray, month: np.ndarray, day: np.ndarray, hour: np.ndarray, minute: np.ndarray, second: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """int64 unix seconds of int64 arrays, 0 if there is no such date or time of day, and whether there is one."""
    good = (year >= 1) & (year <= 9999) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
    good &= (hour >= 0) & (hour <= 23) & (minute >= 0) & (minute <= 59) & (second >= 0) & (second <= 60)
    year, month = np.where(good, year, 1970), np.where(good, month, 1)
    of_month = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    date = of_month.astype("datetime64[D]") + (np.where(good, day, 1) - 1)
    good &= date.astype("datetime64[M]") == of_month
    return np.where(good, date.astype(np.int64) * 86_400 + hour * 3_600 + minute * 60 + second, 0), good


def _read(fields: dict[str, pa.Array], day_first: bool | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if "a" in fields:
        fields["d"], fields["m"] = (fields["a"], fields["b"]) if day_first else (fields["b"], fields["a"])
    size = len(fields["y"])
    zero = np.zeros(size, np.int64)
    month = _each(fields["m"], _month)
    hour, minute, second = (_whole(fields[name]) if name in fields else zero for name in "HMS")
    half = _each(fields["p"], lambda text: {"": 0, "a": 1, "p": 2}[text.lower()]) if "p" in fields else zero
    good = (half == 0) | ((hour >= 1) & (hour <= 12))
    hour = np.where(half == 0, hour, hour % 12 + 12 * (half == 2))
    zone = _each(fields["z"], _offset) if "z" in fields else zero
    good &= zone < _NO_ZONE
    rest = np.zeros(size)
    if "f" in fields:
        rest = _each(fields["f"], lambda text: float(f"0.{text[1:]}") if text else 0.0, float)
    seconds, real = seconds_of(_whole(fields["y"]), month, _whole(fields["d"]), hour, minute, second)
    return seconds - np.where(good, zone, 0), rest, good & real


def _each(column: pa.Array, read: Callable[[str], float], kind: type = np.int64) -> np.ndarray:
    encoded = column.fill_null("").dictionary_encode()
    values: np.ndarray = np.array([read(text) for text in encoded.dictionary.to_pylist()], kind)
    return values[encoded.indices.to_numpy(zero_copy_only=False)]


def _whole(column: pa.Array) -> np.ndarray:
    text = column.fill_null("0")
    return pc.if_else(pc.equal(text, ""), "0", text).cast(pa.int64()).to_numpy(zero_copy_only=False)


@cache
def _month(text: str) -> int:
    """1 to 12, 0 if it is none."""
    if text.isdigit():
        return int(text)
    return next((number for number, name in enumerate(_MONTHS, 1) if name.startswith(text.lower())), 0)


_NO_ZONE = 10**6


@cache
def _offset(text: str) -> int:
    """Seconds east of UTC."""
    name = text.lower()
    if name in _HOURS:
        return _HOURS[name] * 3_600
    digits = name.removeprefix("utc").removeprefix("gmt").replace(":", "")
    if digits[:1] in ("+", "-") and digits[1:].isdigit():
        hours, minutes = int(digits[1:3]), int(digits[3:5] or 0)
        return (1 if digits[0] == "+" else -1) * (hours * 3_600 + minutes * 60)
    return _NO_ZONE
