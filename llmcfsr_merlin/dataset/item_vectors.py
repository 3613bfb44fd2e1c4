"""Joins vectors to the model's item table by raw id, never by position."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmcfsr_merlin.dataset.names import FIRST_ITEM, HAS_TEXT, ITEM, VECTOR
from llmcfsr_merlin.dataset.vector_checks import check_finite
from llmcfsr_merlin.runtime.errors import InputError


@dataclass(frozen=True)
class ItemTable:
    """vectors: (V, D) float32, row r belongs to encoded id r, rows 0..2 (pad, null, unknown) are zero;
    has_text: (V,) bool, false for the reserved rows and for items that carry the mean vector. V = items + 3.
    """

    vectors: np.ndarray
    has_text: np.ndarray


def vectors_column(vectors: np.ndarray) -> pa.FixedSizeListArray:
    """Rows (n, D) as an Arrow column of fixed-size float32 lists."""
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def vectors_array(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """An Arrow column of fixed-size lists as an array (n, D) float32."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # pyarrow returns no single array for an empty column
        return np.empty((0, column.type.list_size), dtype=np.float32)
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return flat.astype(np.float32, copy=False).reshape(-1, column.type.list_size)


def match_ids(ids: pa.Array | pa.ChunkedArray, wanted: pa.Array) -> np.ndarray:
    """Position of each id in `wanted`, -1 if it is not there; int64."""
    return pc.fill_null(pc.index_in(ids, value_set=wanted), -1).to_numpy().astype(np.int64)


def read_vectors(directory: Path) -> Iterator[tuple[pa.Array, np.ndarray, np.ndarray]]:
    """Iterate over part-*.parquet of a vectors directory: (ids, vectors (n, D) float32, has_text (n,) bool) per
    batch."""
    parts = sorted(Path(directory).glob("part-*.parquet"))
    if not parts:
        raise InputError(f"expected vectors in {directory}/part-*.parquet, found none: run `llmcfsr embed` first")
    for part in parts:
        try:
            file = pq.ParquetFile(part)
            kind = file.schema_arrow.field(VECTOR).type
        except (pa.ArrowInvalid, KeyError) as error:
            raise InputError(
                f"{part}: expected a table of {ITEM}, {VECTOR}, {HAS_TEXT} ({error}): run `llmcfsr embed --force`"
            ) from error
        if not pa.types.is_fixed_size_list(kind):
            raise InputError(
                f"{part}: expected {VECTOR} as fixed-size lists of float32, found {kind}: run `llmcfsr embed --force`"
            )
        for batch in file.iter_batches(columns=[ITEM, VECTOR, HAS_TEXT]):
            has_text = batch.column(2).to_numpy(zero_copy_only=False)
            yield batch.column(0).cast(pa.string()), vectors_array(batch.column(1)), has_text


def vector_dimension(vectors_dir: Path) -> int | None:
    """Length of the vectors in a directory of parts; None if there is no such directory."""
    if not Path(vectors_dir).is_dir():
        return None
    return next(read_vectors(vectors_dir))[1].shape[1]


def load_item_table(vocabulary_ids: Sequence[str], vectors_dir: Path) -> ItemTable:
    """Build the item table of a vocabulary.

    vocabulary_ids: raw item ids in order of their encoded ids (3 first). vectors_dir: Parquet parts written by the
    stage `embed`; ids that are not in the vocabulary are ignored. Raises InputError if an item has no vector or two, if
    a vector holds NaN or infinity, or if parts differ in dimension; each names items.
    """
    wanted = pa.array(vocabulary_ids, type=pa.string())
    # All ids are matched in one call, since each call hashes the whole vocabulary.
    codes = match_ids(pa.chunked_array([ids for ids, *_ in read_vectors(vectors_dir)], type=pa.string()), wanted)
    vectors: np.ndarray | None = None
    has_text = np.zeros(len(wanted) + FIRST_ITEM, dtype=bool)
    start = 0
    filled = np.bincount(codes[codes >= 0], minlength=len(wanted))
    if (filled > 1).any():
        twice = ", ".join(vocabulary_ids[row] for row in np.flatnonzero(filled > 1)[:5])
        raise InputError(
            f"{vectors_dir}: expected one vector per item, found several for {twice}: run `llmcfsr embed --force`"
        )
    for ids, batch, text in read_vectors(vectors_dir):
        if vectors is None:
            vectors = np.zeros((len(wanted) + FIRST_ITEM, batch.shape[1]), dtype=np.float32)
        if batch.shape[1] != vectors.shape[1]:
            raise InputError(
                f"{vectors_dir}: expected one dimension, found {vectors.shape[1]} and {batch.shape[1]}: "
                "run `llmcfsr embed --force`"
            )
        part = codes[start : start + len(batch)]
        start += len(batch)
        rows = np.flatnonzero(part >= 0)
        check_finite(batch[rows], ids.take(pa.array(rows)), str(vectors_dir))
        vectors[part[rows] + FIRST_ITEM] = batch[rows]
        has_text[part[rows] + FIRST_ITEM] = text[rows]
    if vectors is None or not filled.all():
        missing = np.flatnonzero(filled == 0)
        raise InputError(
            f"{vectors_dir}: expected a vector for each of {len(wanted)} items, found none for {len(missing)} "
            f"({', '.join(vocabulary_ids[row] for row in missing[:5])}): the vocabulary changed, "
            "run `llmcfsr embed --force`"
        )
    return ItemTable(vectors, has_text)
