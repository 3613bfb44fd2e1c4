"""The input partitions of stage prepare: row groups of Parquet files, planned on their metadata, read one at a time."""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmcfsr_merlin.dataset.names import ITEM, ROW, SUBSECOND, TIME, USER
from llmcfsr_merlin.dataset.prepare.numbering import encode, to_arrow
from llmcfsr_merlin.runtime.device import Array, Frame, libraries
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.failures import machine_failure

# Smaller partitions are not worth their own task.
_SMALL = 200_000
_YEAR_1990 = 631_152_000
_NEEDED = {USER: "string", ITEM: "string", TIME: "int64", ROW: "int64"}
_OPTIONAL = {SUBSECOND: "double"}  # ingest writes it; other logs may lack it


@dataclass(frozen=True)
class Chunk:
    """Row groups of Parquet files that make one input partition."""

    index: int
    pieces: tuple[tuple[str, int], ...]
    """(file, row group)."""
    rows: int


def plan_chunks(folder: Path, rows: int, workers: int) -> tuple[list[Chunk], int]:
    """Row groups of folder/part-*.parquet in order, joined to partitions of about `rows` interactions.

    A log with fewer partitions than workers is cut finer. Returns the partitions and the target size.
    Raises InputError if there is no file or a column is missing or of another type.
    """
    files = sorted(Path(folder).glob("part-*.parquet"))
    if not files:
        raise InputError(f"expected interactions in {folder}/part-*.parquet, found none: run `llmcfsr ingest` first")
    groups = []
    for path in files:
        try:
            file = pq.ParquetFile(path)
        except (pa.ArrowInvalid, OSError) as error:
            if machine_failure(error):
                raise
            raise InputError(f"{path} cannot be read as Parquet ({error}): run `llmcfsr ingest --force`") from error
        _check(path, file.schema_arrow)
        groups += [(str(path), group, file.metadata.row_group(group).num_rows) for group in range(file.num_row_groups)]
    groups = [entry for entry in groups if entry[2]]
    total = sum(size for _, _, size in groups)
    if not total:
        raise InputError(f"{folder}: expected interactions, found no rows: check what `llmcfsr ingest` read")
    rows = min(rows, max(-(-total // workers), _SMALL))
    chunks: list[Chunk] = []
    pieces, held = [], 0
    for number, (name, group, size) in enumerate(groups):
        pieces.append((name, group))
        held += size
        if held >= rows or number == len(groups) - 1:
            chunks.append(Chunk(len(chunks), tuple(pieces), held))
            pieces, held = [], 0
    return chunks, rows


def _check(path: Path, schema: pa.Schema) -> None:
    for name, kind in (_NEEDED | _OPTIONAL).items():
        if name not in schema.names:
            if name in _OPTIONAL:
                continue
            raise InputError(f"{path}: expected column {name} ({kind}), found {', '.join(schema.names)}")
        found = schema.field(name).type
        if pa.types.is_dictionary(found):
            found = found.value_type
        strings = pa.types.is_string(found) or pa.types.is_large_string(found)
        if not (strings if kind == "string" else str(found) == kind):
            raise InputError(
                f"{path}: expected column {name} of type {kind}, found {found}: run `llmcfsr ingest --force`"
            )


def untimed(chunks: list[Chunk]) -> bool:
    """Whether the log has no times but positions in an order (names.TIME): no number is as late as 1990 in seconds."""
    groups: dict[str, list[int]] = {}
    for chunk in chunks:
        for path, group in chunk.pieces:
            groups.setdefault(path, []).append(group)
    for path, numbers in groups.items():
        file = pq.ParquetFile(path)
        column = file.schema_arrow.names.index(TIME)
        for number in numbers:
            known = file.metadata.row_group(number).column(column).statistics
            if known is None or not known.has_min_max or known.max >= _YEAR_1990:
                return False
    return True


@dataclass
class Columns:
    """One partition. Arrays are of the library `xp` (numpy or cupy); the distinct ids are in Arrow."""

    xp: ModuleType
    user: Array
    """int32 positions in user_ids, -1 for null."""
    item: Array
    """int32 positions in item_ids, -1 for null."""
    time: Array
    subsecond: Array | None
    """float64 in [0, 1), the part of a second after `time`; None if all are 0."""
    row: Array
    user_ids: pa.Array
    item_ids: pa.Array


def read_partition(chunk: Chunk, gpu: bool) -> Columns:
    """Read a partition with cudf or, if there is no GPU, Arrow. InputError for a timestamp or row that is null."""
    if gpu:
        return read_frame(chunk, *libraries())
    # Not pandas, which would create a Python object per id: Arrow reads dictionary pages directly, 4 times
    # as fast. tests/property/test_prepare.py runs read_frame on pandas and compares.
    there = [*_NEEDED, *_optional(chunk)]
    tables = [
        pq.ParquetFile(path, read_dictionary=[USER, ITEM]).read_row_group(group, columns=there)
        for path, group in chunk.pieces
    ]
    table = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    arrays, names = [], []
    for name in (USER, ITEM):
        column = table[name].chunk(0)
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        arrays.append(column.indices.fill_null(-1).to_numpy().astype(np.int32, copy=False))
        names.append(column.dictionary.cast(pa.string()))
    _no_nulls(chunk, {name: table[name].null_count for name in (TIME, ROW)})
    subsecond = table[SUBSECOND].fill_null(0.0).to_numpy() if SUBSECOND in there else None
    user, item = arrays
    return Columns(np, user, item, table[TIME].to_numpy(), _some(subsecond), table[ROW].to_numpy(), *names)


def read_frame(chunk: Chunk, frames: ModuleType, xp: ModuleType) -> Columns:
    """Read a partition with a dataframe library, `frames` (cudf or pandas), whose columns are arrays of `xp`.

    Uses only what cudf and pandas share, so that the same code runs without a GPU.
    """
    frame = load_frame(chunk, frames)
    coded = [encode(frame[name], xp) for name in (USER, ITEM)]
    (user, item), names = zip(*((codes, to_arrow(distinct)) for codes, distinct in coded))
    return Columns(xp, user, item, *times(frame, xp), *names)


def load_frame(chunk: Chunk, frames: ModuleType) -> Frame:
    """The needed columns of a partition as a frame of `frames`. InputError for a timestamp or row that is null."""
    groups: dict[str, list[int]] = {}
    for path, group in chunk.pieces:
        groups.setdefault(path, []).append(group)
    columns = [*_NEEDED, *_optional(chunk)]
    frame = frames.read_parquet(
        list(groups), columns=columns, row_groups=list(groups.values()), use_pandas_metadata=False
    )
    _no_nulls(chunk, {name: int(frame[name].isna().sum()) for name in (TIME, ROW)})
    return frame


def times(frame: Frame, xp: ModuleType) -> tuple[Array, Array | None, Array]:
    """time, subsecond (None if all are 0) and row of a frame, as arrays of `xp`."""
    subsecond = xp.asarray(frame[SUBSECOND].fillna(0.0).values) if SUBSECOND in frame.columns else None
    time, row = (xp.asarray(frame[name].values) for name in (TIME, ROW))
    return time, _some(subsecond), row


def _optional(chunk: Chunk) -> list[str]:
    """Those of _OPTIONAL that all files of a partition have."""
    schemas = [pq.read_schema(path).names for path in dict(chunk.pieces)]
    return [name for name in _OPTIONAL if all(name in names for names in schemas)]


def _some(subsecond: Array | None) -> Array | None:
    """None if no time has a fractional second: then it needs no memory and no sorting."""
    return None if subsecond is None or not bool(subsecond.any()) else subsecond


def _no_nulls(chunk: Chunk, nulls: dict[str, int]) -> None:
    for name, count in nulls.items():
        if count:
            raise InputError(
                f"{chunk.pieces[0][0]}: expected a {name} in every row, found {count:,} rows without: "
                "run `llmcfsr ingest --force`"
            )


def no_ids(rows: int) -> InputError:
    """The error if every row of a log is without a user or an item."""
    return InputError(f"expected user and item ids, found none in {rows:,} interactions: check data.columns")
