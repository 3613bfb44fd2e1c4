"""Normalises user and item ids: one rule for logs, metadata, new items and requests."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import SupportsInt, cast

import pyarrow as pa
import pyarrow.compute as pc

# Texts that may need more than trimming: integers written as floats (pandas "10.0", Spark "1.5E7"), objects and lists
# of JSON, and MongoDB's ids as its CSV export writes them. Arrow and Python read the same pattern.
_ODD = r"^(-?[0-9]+\.0|[1-9]\.[0-9]+E[0-9]+|(?s:\{.*\}|\[.*\])|ObjectId\([^()]*\))$"
_odd = re.compile(_ODD)
_FLOAT = re.compile(r"(0|-?[1-9][0-9]*)\.0")
_SPARK = re.compile(r"[1-9]\.[0-9]+E[0-9]+")
_MONGO = re.compile(r"ObjectId\([\"']?([0-9a-fA-F]{24})[\"']?\)")
_SPACE = " \t\n\r\v\f\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff" + "".join(
    map(chr, range(0x2000, 0x200B))
)
_EXACT = 2**53  # above this, float64 cannot represent every integer


class NotAnId(ValueError):
    """A list or an object in place of an id."""


def clean_id(value: object) -> str | None:
    """An id in the vocabulary's form; None for missing ids (None, NaN, an empty text).

    Surrounding white space goes, integers written as floats lose their ".0" (leading zeros and versions such as "1.10"
    stay), bytes are UTF-8 (hexadecimal if they are not), MongoDB's {"$oid": ...} is unwrapped. Raises NotAnId for
    lists and other objects.

    >>> [clean_id(value) for value in (" a ", 10, 10.0, "10.0", "1.10", "007", b"a", float("nan"), {"$oid": "5f"})]
    ['a', '10', '10', '10', '1.10', '007', 'a', None, '5f']
    """
    if isinstance(value, str):
        text = value.strip(_SPACE)
        return (_odd_id(text) if _odd.match(text) else _utf8(text)) or None
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, (bytes, bytearray, memoryview)):
        try:
            return clean_id(bytes(value).decode())
        except UnicodeDecodeError:
            return bytes(value).hex()
    if isinstance(value, Mapping):
        inner = unwrapped(value)
        if isinstance(inner, Mapping):
            raise NotAnId(f"expected an id, found the object {_short(value)}")
        return clean_id(inner)
    if isinstance(value, (list, tuple, set, frozenset)) or bool(getattr(value, "ndim", False)):
        raise NotAnId(f"expected an id, found the list {_short(value)}")
    if isinstance(value, (Real, Decimal)) and not isinstance(value, bool):
        if value != value:
            return None
        if abs(value) != float("inf") and value == (whole := int(cast(SupportsInt, value))):
            return str(whole)
    return str(value).strip(_SPACE) or None


def unwrapped(value: object) -> object:
    """What MongoDB's extended JSON wraps ({"$oid": "5f..."}, {"$date": {"$numberLong": "7"}}); else the value."""
    while isinstance(value, Mapping) and len(value) == 1 and str(next(iter(value))).startswith("$"):
        value = next(iter(value.values()))
    return value


@dataclass
class Ids:
    """A column of ids. texts: string, null if there is none. nested: bool, lists and objects (null in texts); None
    if there are none. from_floats: how many were integers written as floats; inexact: floats above 2**53."""

    texts: pa.ChunkedArray
    nested: pa.Array | None = None
    from_floats: int = 0
    inexact: int = 0


def clean_ids(column: pa.ChunkedArray, nulls: Sequence[str] = ()) -> Ids:
    """clean_id of every value of a column of any type; `nulls` are texts that stand for no value."""
    kind = column.type
    found = Ids(column)
    if pa.types.is_floating(kind):
        texts = _from_floats(column, found)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind):
        texts = column.cast(pa.string())
        texts = texts if pa.types.is_integer(kind) else _from_texts(texts, found)
    elif pa.types.is_null(kind):
        texts = column.cast(pa.string())
    elif pa.types.is_dictionary(kind):
        return clean_ids(column.cast(kind.value_type), nulls)
    else:
        texts = _by_value(column, found)
    missing = pc.is_in(texts, value_set=pa.array(["", *nulls], pa.string()))
    found.texts = pc.if_else(missing, None, texts) if pc.any(missing).as_py() else texts
    return found


def _from_texts(texts: pa.ChunkedArray, found: Ids) -> pa.ChunkedArray:
    texts = pc.utf8_trim(texts, characters=_SPACE)
    odd = pc.fill_null(pc.match_substring_regex(texts, _ODD), False)
    if not pc.any(odd).as_py():
        return texts
    cleaned = _by_value(pc.if_else(odd, texts, None), found)
    floats = pc.and_(pc.match_substring_regex(texts, r"^-?[0-9.]+(E[0-9]+)?$"), pc.not_equal(cleaned, texts))
    found.from_floats = pc.sum(pc.and_(odd, pc.fill_null(floats, False))).as_py() or 0
    return pc.if_else(odd, cleaned, texts)


def _from_floats(column: pa.ChunkedArray, found: Ids) -> pa.ChunkedArray:
    finite = pc.if_else(pc.is_finite(column), column, None)
    found.inexact = pc.sum(pc.greater_equal(pc.abs(finite), float(_EXACT))).as_py() or 0
    try:
        return finite.cast(pa.int64()).cast(pa.string())  # a column of integers with gaps, as pandas writes it
    except pa.ArrowInvalid:
        return _by_value(finite, found)


def _by_value(column: pa.ChunkedArray, found: Ids) -> pa.ChunkedArray:
    """clean_id of each distinct value."""
    known: dict = {}
    texts, nested = [], []
    for value in column.to_pylist():
        key = value if isinstance(value, (str, bytes, float)) else None
        if key is None or key not in known:
            try:
                entry = (clean_id(value), False)
            except NotAnId:
                entry = (None, True)
            if key is None:
                texts.append(entry[0])
                nested.append(entry[1])
                continue
            known[key] = entry
        texts.append(known[key][0])
        nested.append(known[key][1])
    if any(nested):
        found.nested = pa.array(nested)
    return pa.chunked_array([pa.array(texts, pa.string())])


def _odd_id(text: str) -> str | None:
    if match := _FLOAT.fullmatch(text):
        return match[1]
    if _SPARK.fullmatch(text):
        value = Decimal(text)
        return str(int(value)) if value == int(value) else text
    if match := _MONGO.fullmatch(text):
        return match[1]
    if text[0] in "{[":
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return text  # "[new]" is an id like another
        return clean_id(value)
    return text


def _utf8(text: str) -> str:
    """Lone surrogates, which UTF-8 cannot encode, become '?'."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:60] + "..."
