"""Numbers as times: their unit by their size, and dates written together, such as 20180920."""

import time

import numpy as np

from llmcfsr_merlin.dataset.raw.fields.dates import seconds_of
from llmcfsr_merlin.runtime.errors import InputError

# A number's size tells seconds from milli-, micro- and nanoseconds: log times are after 1973 (Amazon 2023 has ms).
UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_FROM = {"ns": 10**17, "us": 10**14, "ms": 10**11, "s": 0}
DAYS = {"days": 0, "excel_days": 25_569}  # the day on which 1970 begins, counted from the unit's first day
_EXCEL = (32_874, 55_154)  # 1990 to 2050 in Excel's days


def unit_of(values: np.ndarray) -> np.ndarray:
    """The unit (of UNITS) that the size of each value tells."""
    size = np.abs(values)
    return np.select([size >= least for least in _FROM.values()], list(_FROM), "s")


def divisor(values: np.ndarray) -> int | np.ndarray:
    """What each value is divided by to be seconds; an int if it is the same for all."""
    size = np.abs(values)
    if len(values) == 0:
        return 1
    least, most = (unit_of(np.array([end])).item() for end in (size.min(), size.max()))
    return UNITS[most] if least == most else _each(size)


def in_seconds(values: np.ndarray) -> np.ndarray:
    return values / _each(np.abs(values))


def are_excel_days(values: np.ndarray) -> bool:
    """Whether all are days of 1990 to 2050 as Excel counts them."""
    return bool((_EXCEL[0] <= values).all() and (values < _EXCEL[1]).all())


def exceeds_seconds(largest: float) -> bool:
    """Whether a value is too large for seconds."""
    return largest >= _FROM["ms"]


def _each(size: np.ndarray) -> np.ndarray:
    return np.select([size >= least for least in _FROM.values()], [UNITS[unit] for unit in _FROM], 1)


def date_digits(values: np.ndarray, where: str) -> int:
    """How many digits the numbers have if all are dates written together (20180920); 0 if they are none."""
    whole = values.astype(np.int64) if np.abs(values).max() < 2**62 else np.zeros(len(values), np.int64)
    if (whole <= 0).any():
        return 0
    # Only a whole date and time has a part of a second: 20180920101112.5.
    for digits in (8, 10, 12, 14, 17) if (whole == values).all() else (14,):
        if (whole < 10 ** (digits - 1)).any() or (whole >= 10**digits).any():
            continue
        *_, good = dates_of(whole, digits)
        if not good.all():
            continue
        if digits == 10:
            if (whole < time.time()).any():
                return 0
            raise InputError(
                f"{where}: expected times, found {whole[0]}: an hour of {str(whole[0])[:4]} or a second of "
                f"{year_of(whole[0])}? Set data.time_format=%Y%m%d%H or data.time_unit=s"
            )
        return digits
    return 0


def dates_of(values: np.ndarray, digits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seconds, rest and validity of numbers such as 20180920 (8 digits) or 20180920123456789 (17)."""
    rest = np.zeros(len(values))
    if digits == 17:
        rest, values = (values % 1000) / 1000, values // 1000
    clock: list[np.ndarray] = []
    for _ in range((min(digits, 14) - 8) // 2):
        clock.insert(0, values % 100)
        values = values // 100
    clock += [np.zeros_like(values)] * (3 - len(clock))
    seconds, good = seconds_of(values // 10_000, values // 100 % 100, values % 100, *clock)
    return seconds, rest, good & (values >= 1900_00_00) & (values < 2101_00_00)


def year_of(seconds: float) -> str:
    return str(np.datetime64(int(seconds), "s").astype("datetime64[Y]"))
