"""Raw files -> partitioned Parquet of interactions and items, block by block, on all cores, with a report of quirks."""

import datetime
import multiprocessing
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from llmcfsr_merlin.config import DataConfig
from llmcfsr_merlin.contract import INTERACTIONS, ITEM, ITEMS, RATING, TIME, USER
from llmcfsr_merlin.data.lines import BLOCK, Block, find_files, read_blocks
from llmcfsr_merlin.data.logs import LOGS, SCHEMA, parse_log
from llmcfsr_merlin.data.metadata import METADATA, from_table, item_format, only_first, parse_items
from llmcfsr_merlin.data.tables import TextTable, is_parquet, parquet_pieces
from llmcfsr_merlin.errors import InputError

PART_ROWS = 5_000_000  # rows of a part file
_COUNT_DUPLICATES_UP_TO = 50_000_000  # rows: 8 bytes of hash each

Piece = tuple[pa.Table, Counter]


def ingest(data: DataConfig, out: Path, *, workers: int, block: int = BLOCK) -> dict:
    """Write out/interactions and out/items; returns the counts for the manifest.

    The result does not depend on `workers` (processes) or `block` (bytes of text handed to one). Raises InputError for
    what cannot be read, and where no interaction is left.
    """
    logs = find_files(data.interactions, "data.interactions")
    if not logs:
        raise InputError("data.interactions: expected files of interactions, found none: name them in the recipe")
    metadata = find_files(data.items, "data.items")
    counts: Counter = Counter()
    damaged: dict[str, int] = {}
    with _pool(workers) as pool:
        pieces = _interactions(data, logs, damaged, pool, block)
        writer = _Parts(out / INTERACTIONS, SCHEMA)
        hashes = []
        for table, dropped in _shown(pieces, "interactions"):
            counts.update({"rows_read": table.num_rows + sum(dropped.values())})
            counts.update({f"dropped, {reason}": count for reason, count in dropped.items()})
            table = _in_range(table, data, counts)
            if data.duplicates == "drop" or writer.rows < _COUNT_DUPLICATES_UP_TO:
                hashes.append(_row_hash(table))
            writer.write(table)
        writer.close()
        if not writer.rows:
            reasons = ", ".join(f"{name}: {count:,}" for name, count in counts.items() if name != "rows_read")
            raise InputError(
                f"expected {_expected(data)}, found none among {counts['rows_read']:,} rows of {logs[0]} "
                f"({reasons or 'the file is empty'}): check data.interactions and the other settings of data"
            )
        repeated = _repeated(hashes, writer.rows)
        if data.duplicates == "drop" and repeated is not None:
            _without(out / INTERACTIONS, repeated)
        kept = writer.rows - (int(repeated.sum()) if data.duplicates == "drop" else 0)
        if repeated is not None:
            counts["repeated (user, item, time) rows, " + ("dropped" if data.duplicates == "drop" else "kept")] = int(
                repeated.sum()
            )
        items = _write_items(data, metadata, damaged, pool, block, out / ITEMS, counts)
    report = dict(counts) | {"interactions": kept} | items
    report |= {f"damaged, whole lines kept: {Path(name).name}": lines for name, lines in damaged.items()}
    return report


def _expected(data: DataConfig) -> str:
    if data.format not in LOGS:
        return f"interactions with {data.columns.user}, {data.columns.item} and a time or order"
    form = LOGS[data.format]
    return f"{form.name} with " + ", ".join("/".join(group) for group in (form.user, form.item, form.time))


def _interactions(data: DataConfig, logs: list[Path], damaged: dict, pool, block: int) -> Iterator[Piece]:
    keep = data.damaged == "keep"
    if data.format in LOGS:
        blocks = read_blocks(logs, keep_damaged=keep, damaged=damaged, size=block)
        yield from _mapped(pool, partial(parse_log, form=LOGS[data.format]), blocks)
        return
    start = 0
    for path in logs:  # each file may have its own columns
        rows = 0
        if is_parquet(path):
            for piece in parquet_pieces(path, data.columns, start):
                rows += piece[0].num_rows + sum(piece[1].values())
                yield piece
        else:
            blocks = read_blocks([path], keep_damaged=keep, damaged=damaged, size=block)
            first = next(blocks, None)
            if first is not None:
                table = TextTable(first, data.columns)
                shifted = (Block(b.path, b.data, b.first + start) for b in _chain(first, blocks))
                for piece in _mapped(pool, table.parse, shifted):
                    rows += piece[0].num_rows + sum(piece[1].values())
                    yield piece
                rows += 1  # the header
        start += rows


def _write_items(data: DataConfig, files: list[Path], damaged: dict, pool, block: int, folder: Path, counts) -> dict:
    """The items of the metadata, each once; without metadata a table of ids."""
    interacted = set()
    for batch in pq.ParquetDataset(folder.parent / INTERACTIONS).fragments:
        interacted.update(pc.unique(batch.to_table(columns=[ITEM])[ITEM]).to_pylist())
    seen: set[str] = set()
    writer = None
    for table, dropped in _shown(_items(data, files, damaged, pool, block), "items"):
        counts.update({f"dropped, {reason}": count for reason, count in dropped.items()})
        once = only_first(table, seen)
        counts["item rows repeated, dropped"] += table.num_rows - once.num_rows
        writer = writer or _Parts(folder, once.schema)
        writer.write(once)
    without = sorted(interacted - seen)
    if writer is None:
        writer = _Parts(folder, pa.schema([(ITEM, pa.string())]))
        writer.write(pa.table({ITEM: pa.array(without, pa.string())}))
    writer.close()
    return {
        "items with interactions": len(interacted),
        "items with metadata": len(seen & interacted),
        "items without metadata": len(without),
        "metadata of items without interactions": len(seen - interacted),
    }


def _items(data: DataConfig, files: list[Path], damaged: dict, pool, block: int) -> Iterator[Piece]:
    keep = data.damaged == "keep"
    if data.format in METADATA:
        blocks = read_blocks(files, keep_damaged=keep, damaged=damaged, size=block)
        yield from _mapped(pool, partial(parse_items, form=METADATA[data.format]), blocks)
        return
    name = data.columns.item
    for path in files:
        if is_parquet(path):
            yield from (
                (_items_table(pa.Table.from_batches([b]), name, path), Counter())
                for b in pq.ParquetFile(path).iter_batches()
            )
            continue
        blocks = read_blocks([path], keep_damaged=keep, damaged=damaged, size=block)
        first = next(blocks, None)
        if first is None:
            continue
        if first.data.lstrip().startswith(b"{"):
            yield from _mapped(pool, partial(parse_items, form=item_format(first, name)), _chain(first, blocks))
        else:
            frame = pd.read_csv(path, dtype=str, sep=None, engine="python")
            yield _items_table(pa.Table.from_pandas(frame, preserve_index=False), name, path), Counter()


def _items_table(table: pa.Table, name: str, path: Path) -> pa.Table:
    if name not in table.column_names:
        raise InputError(
            f"{path}: expected a column {name!r}, found {', '.join(table.column_names)}: name it by data.columns.item"
        )
    return from_table(table, name)


def _in_range(table: pa.Table, data: DataConfig, counts: Counter) -> pa.Table:
    """Rows inside start..end (whole days, UTC) and rated min_rating or better; a row without a rating is kept."""
    if data.start is not None:
        table = _filtered(table, pc.greater_equal(table[TIME], _day(data.start)), "before data.start", counts)
    if data.end is not None:
        table = _filtered(table, pc.less(table[TIME], _day(data.end) + 86400), "after data.end", counts)
    if data.min_rating is not None:
        good = pc.fill_null(pc.greater_equal(table[RATING], data.min_rating), True)
        table = _filtered(table, good, "below data.min_rating", counts)
    return table


def _filtered(table: pa.Table, keep, reason: str, counts: Counter) -> pa.Table:
    left = table.filter(keep)
    counts[f"dropped, {reason}"] += table.num_rows - left.num_rows
    return left


def _day(text: str) -> int:
    try:
        return int(datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.timezone.utc).timestamp())
    except ValueError as error:
        raise InputError(f"data.start, data.end: expected a day as YYYY-MM-DD, found {text!r}") from error


def _row_hash(table: pa.Table) -> np.ndarray:
    """uint64 of (user, item, time): equal rows are equal, different ones collide once in 10^19 pairs."""
    frame = table.select([USER, ITEM, TIME]).to_pandas()
    return pd.util.hash_pandas_object(frame, index=False, categorize=True).to_numpy()


def _repeated(hashes: list[np.ndarray], rows: int) -> np.ndarray | None:
    """Bool [rows]: an earlier row is the same; None for logs too long to compare in memory."""
    if sum(map(len, hashes)) < rows:
        return None
    values = np.concatenate(hashes)
    first = np.zeros(len(values), bool)
    first[np.unique(values, return_index=True)[1]] = True
    return ~first


def _without(folder: Path, drop: np.ndarray) -> None:
    start = 0
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path)
        pq.write_table(table.filter(pa.array(~drop[start : start + table.num_rows])), path)
        start += table.num_rows


def _mapped(pool, parse: Callable[[Block], Piece], blocks: Iterable[Block]) -> Iterator[Piece]:
    """parse(block) in order, in the pool's processes; at most two blocks a process wait in memory."""
    if pool is None:
        yield from map(parse, blocks)
        return
    waiting: deque = deque()
    for block in blocks:
        waiting.append(pool.submit(parse, block))
        if len(waiting) >= 2 * pool._max_workers:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class _NoPool:
    """One process: no pool."""

    def __enter__(self):
        return None

    def __exit__(self, *_):
        pass


def _pool(workers: int):
    # spawn: forking a process with threads (Arrow's, dask's) can hang.
    return _NoPool() if workers == 1 else ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))


def _chain(first: Block, rest: Iterable[Block]) -> Iterator[Block]:
    yield first
    yield from rest


def _shown(pieces: Iterable[Piece], what: str) -> Iterator[Piece]:
    with tqdm(desc=f"ingest {what}", unit=" rows", unit_scale=True, disable=None) as progress:
        for table, dropped in pieces:
            yield table, dropped
            progress.update(table.num_rows + sum(dropped.values()))


class _Parts:
    """part-*.parquet of at most PART_ROWS rows, in order."""

    def __init__(self, folder: Path, schema: pa.Schema):
        folder.mkdir(parents=True)
        self.folder, self.schema, self.rows, self._writer, self._part = folder, schema, 0, None, 0

    def write(self, table: pa.Table) -> None:
        table = _aligned(table, self.schema)
        start = 0
        while start < table.num_rows:
            if self._writer is None:
                self._writer = pq.ParquetWriter(self.folder / f"part-{self._part:05d}.parquet", self.schema)
                self._left = PART_ROWS
            piece = table.slice(start, self._left)
            self._writer.write_table(piece)
            start += piece.num_rows
            self.rows += piece.num_rows
            self._left -= piece.num_rows
            if not self._left:
                self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer, self._part = None, self._part + 1


def _aligned(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of the first file: what a later one lacks is null, what it has more is left out."""
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
