"""Times of any notation as unix seconds."""

from datetime import datetime, timezone

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Log times are after 1973, so the magnitude tells seconds from milli-, micro- and nanoseconds (Amazon 2023 has ms).
_UNITS = ((1e11, 1_000), (1e14, 1_000_000), (1e17, 1_000_000_000))
_FORMATS = ("%m %d, %Y", "%Y-%m-%d", "%Y/%m/%d", "%Y/%m/%d %H:%M:%S", "%b %d, %Y", "%Y%m%dT%H%M%S")


def to_seconds(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """int64 unix seconds, null where a value is missing or no time.

    Numbers are seconds, milli-, micro- or nanoseconds by their size; text is a number, an ISO date (UTC where it names
    no zone) or a date such as "09 4, 2015".
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    kind = column.type
    if pa.types.is_integer(kind):
        return _scale(column.cast(pa.int64()))
    if pa.types.is_floating(kind):
        finite = pc.if_else(pc.is_finite(column), column, None)
        return _scale(pc.floor(finite).cast(pa.int64(), safe=False))
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        micro = column.cast(pa.timestamp("us", tz=getattr(kind, "tz", None)), safe=False).cast(pa.int64())
        return _array(np.floor_divide(_values(micro), 1_000_000), micro)
    if pa.types.is_null(kind):
        return column.cast(pa.int64())
    text = column.cast(pa.string())
    for target in (pa.int64(), pa.float64(), pa.timestamp("us")):
        try:
            return to_seconds(text.cast(target))
        except pa.ArrowInvalid:
            continue
    encoded = text.dictionary_encode()
    parsed = pa.array([_parse(value) for value in encoded.dictionary.to_pylist()], pa.int64())
    return parsed.take(encoded.indices)


def to_integers(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """int64 positions (a log's `order`), null where a value is missing or no number."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    return _numbers(column, pa.int64())


def to_ratings(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """float32 ratings, null where a value is missing or no number."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    ratings = _numbers(column, pa.float64())
    return pc.if_else(pc.is_finite(ratings), ratings, None).cast(pa.float32())


def _numbers(column: pa.Array, kind: pa.DataType) -> pa.Array:
    for target in (kind, pa.float64()):
        try:
            return column.cast(target).cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
    return pa.array([_number(value, kind == pa.int64()) for value in column.to_pylist()], kind)


def _number(value: object, whole: bool) -> float | int | None:
    try:
        number = float(value)
        return int(number) if whole else number
    except (TypeError, ValueError, OverflowError):
        return None


def _values(column: pa.Array) -> np.ndarray:
    return column.fill_null(0).to_numpy(zero_copy_only=False)


def _array(values: np.ndarray, like: pa.Array) -> pa.Array:
    mask = like.is_null().to_numpy(zero_copy_only=False) if like.null_count else None
    return pa.array(values, pa.int64(), mask=mask)


def _scale(column: pa.Array) -> pa.Array:
    values = _values(column)
    size = np.abs(values)
    if len(values) == 0 or size.max() < _UNITS[0][0]:
        return column
    for floor, divisor in reversed(_UNITS):
        values = np.where(size >= floor, values // divisor, values)
        size = np.where(size >= floor, 0, size)
    return _array(values, column)


def _parse(text: str | None) -> int | None:
    if text is None or not text.strip():
        return None
    text = text.strip()
    try:
        return _scale(pa.array([int(float(text))], pa.int64()))[0].as_py()
    except (ValueError, OverflowError):
        pass
    text = text[:-1] + "+00:00" if text.endswith("Z") else text
    for form in (None, *_FORMATS):
        try:
            found = datetime.strptime(text, form) if form else datetime.fromisoformat(text)
        except ValueError:
            continue
        return int((found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp())
    return None
