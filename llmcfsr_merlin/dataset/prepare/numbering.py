"""Texts to integers on a device: ids of users and items as positions among the distinct ones."""

from types import ModuleType

import numpy as np
import pyarrow as pa

from llmcfsr_merlin.runtime.device import Array, Series


def encode(column: Series, xp: ModuleType) -> tuple[Array, Series]:
    """A column of ids as int32 positions (-1 for null) among its distinct ids, and those, in any order.

    column: a series of cudf or pandas; xp: the array library of its values.
    """
    if str(column.dtype) == "category":
        column = column.astype(column.cat.categories.dtype)
    found = _by_hash(column, xp) if hasattr(column, "hash_values") else None
    if found is None:
        codes, distinct = column.factorize()
        found = xp.asarray(codes).astype("int32"), distinct
    return found


def _by_hash(column: Series, xp: ModuleType) -> tuple[Array, Series] | None:
    """`encode` by sorting 64-bit hashes, for cudf, whose factorize joins texts; None if two ids share a hash.

    That they do not is read off the texts themselves, not hoped for: ids come from others.
    """
    null = xp.asarray(column.isna().values)
    some = bool(null.any())
    texts = (column.dropna() if some else column).reset_index(drop=True)
    if len(texts) == 0:
        return None
    try:
        key = xp.asarray(texts.hash_values("xxhash64").values)
    except ValueError:  # a hash that this cudf has not
        return None
    order = xp.argsort(key)
    key = key[order]
    new = xp.ones(len(key), bool)
    new[1:] = key[1:] != key[:-1]
    place = xp.empty(len(key), "int32")
    place[order] = (xp.cumsum(new) - 1).astype("int32")
    distinct = texts.take(order[xp.flatnonzero(new)]).reset_index(drop=True)
    if not bool((distinct.take(place).reset_index(drop=True) == texts).all()):
        return None
    if some:
        codes = xp.full(len(null), -1, "int32")
        codes[xp.flatnonzero(~null)] = place
        place = codes
    return place, distinct


def to_arrow(ids: Series) -> pa.Array:
    """Ids of a cudf or pandas index or series as one Arrow array of strings (large ones if they pass 2 GB)."""
    values = ids.to_arrow() if hasattr(ids, "to_arrow") else pa.array(ids.to_numpy(), pa.string())
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    return values.cast(pa.string()) if values.nbytes < 1 << 31 else values.cast(pa.large_string())


class Numbering:
    """The ids of one column, read in pieces. codes: int32 positions of each piece among its own distinct ids."""

    def __init__(self, frames: ModuleType, xp: ModuleType):
        self.frames, self.xp = frames, xp
        self.codes: list = []
        self._distinct: list = []

    def add(self, column: Series) -> Array:
        """Positions (int32, -1 for null) of a piece; those without null go to `codes`."""
        codes, distinct = encode(column, self.xp)
        self._distinct.append(self.frames.Series(distinct))
        return codes

    def settle(self) -> tuple:
        """The codes of all pieces as positions (int32) in the sorted ids, and these. By bytes, as Arrow sorts."""
        sizes = [len(distinct) for distinct in self._distinct]
        place, every = None, self._distinct[0]
        if len(sizes) > 1:
            place, every = encode(self.frames.concat(self._distinct, ignore_index=True), self.xp)
            every = self.frames.Series(every)
        self._distinct.clear()
        every = every.reset_index(drop=True).sort_values()
        order = self.xp.asarray(every.index.values)
        rank = self.xp.empty(len(order), "int32")
        rank[order] = self.xp.arange(len(order), dtype="int32")
        place = rank if place is None else rank[place]
        starts = np.cumsum([0, *sizes]).tolist()
        codes = [place[start:][piece] for start, piece in zip(starts, self.codes)]
        self.codes.clear()
        return codes[0] if len(codes) == 1 else self.xp.concatenate(codes), to_arrow(every)
