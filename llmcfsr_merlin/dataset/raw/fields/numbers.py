"""Numbers of a column of any type, with what stands among them as text."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmcfsr_merlin.dataset.raw.fields.values import as_text

NUMBER = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$"


def to_ratings(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """float32 ratings, null if a value is missing or no number; "4,5" is 4.5."""
    ratings = numbers_of(one_array(column), pa.float64()).cast(pa.float64())
    return pc.if_else(pc.is_finite(ratings), ratings, None).cast(pa.float32())


def numbers_of(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """int64 or float64."""
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        column, _ = split_numbers(column, numbers=False)
    for target in dict.fromkeys((kind, pa.float64())):
        try:
            return column.cast(target)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
    numeric = pc.fill_null(pc.match_substring_regex(column, NUMBER), False)
    return pc.if_else(numeric, column, None).cast(pa.float64())


def split_numbers(column: pa.Array, numbers: bool = True) -> tuple[pa.Array, np.ndarray]:
    """A column as trimmed text (empty ones null, decimal commas as points), and its numbers as float64 (else NaN)."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_nested(column.type) or pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        text = pa.array([as_text(value) for value in column.to_pylist()], pa.string())
    elif pa.types.is_floating(column.type):  # Arrow writes 1e+09
        text = pa.array([None if v is None else repr(v) for v in column.cast(pa.float64()).to_pylist()], pa.string())
    else:
        text = column.cast(pa.string())
    text = pc.utf8_trim_whitespace(text)
    text = pc.if_else(pc.equal(text, ""), None, text)
    if pc.any(pc.match_substring_regex(text, r"^-?[0-9]+,[0-9]+$")).as_py():
        text = pc.replace_substring_regex(text, r"^(-?[0-9]+),([0-9]+)$", r"\1.\2")
    if not numbers:
        return text, np.empty(0)
    numeric = pc.fill_null(pc.match_substring_regex(text, NUMBER), False)
    values = pc.if_else(numeric, text, None).cast(pa.float64())
    return pc.if_else(numeric, None, text), values.to_numpy(zero_copy_only=False)


def one_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column in one piece."""
    if isinstance(column, pa.ChunkedArray):
        if column.num_chunks == 0:
            return pa.array([], column.type)
        return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
    return column


def values_of(column: pa.Array) -> np.ndarray:
    """numpy of a column of numbers, 0 for null."""
    return column.fill_null(0).to_numpy(zero_copy_only=False)


def array_like(values: np.ndarray, like: pa.Array, bad: np.ndarray | None = None) -> pa.Array:
    """int64 values, null if `like` is or they are `bad`."""
    mask = like.is_null().to_numpy(zero_copy_only=False) if like.null_count else None
    if bad is not None and bad.any():
        mask = bad if mask is None else mask | bad
    return pa.array(values, pa.int64(), mask=mask)
