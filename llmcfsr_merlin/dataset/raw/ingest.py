"""The work of stage `ingest`: raw logs and metadata of any size -> part files of interactions and items.

One thread reads (and decompresses) the files in blocks of whole lines; all cores parse them; blocks are collected in
order, so the result does not depend on the number of workers. Memory holds a few blocks, and 8 bytes per user and item.
"""

import logging
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmcfsr_merlin.config.data_settings import DataConfig
from llmcfsr_merlin.dataset.names import INTERACTIONS, ITEMS, ROW
from llmcfsr_merlin.dataset.raw import formats
from llmcfsr_merlin.dataset.raw.duplicates import RowKeys, drop_rows
from llmcfsr_merlin.dataset.raw.fields.times import SETTING as TIME_FORMAT
from llmcfsr_merlin.dataset.raw.fields.times import TimeReader
from llmcfsr_merlin.dataset.raw.files.columnar import ParquetParser
from llmcfsr_merlin.dataset.raw.files.delimited import DelimitedParser
from llmcfsr_merlin.dataset.raw.files.dialect import Dialect
from llmcfsr_merlin.dataset.raw.files.lines import BLOCK, Block, LineReader
from llmcfsr_merlin.dataset.raw.files.source import Source, find_files, sniff
from llmcfsr_merlin.dataset.raw.interactions import (
    DROPPED,
    FILTERED,
    NOTED,
    Cleaned,
    Distinct,
    PartWriter,
    Rules,
    clean,
)
from llmcfsr_merlin.dataset.raw.metadata import ItemReader, ItemTable
from llmcfsr_merlin.dataset.raw.notices import warn
from llmcfsr_merlin.dataset.raw.records import JsonParser
from llmcfsr_merlin.dataset.raw.tally import Place, Tally, check_dropped
from llmcfsr_merlin.runtime.engine import print_counts
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.progress import Progress

_log = logging.getLogger(__name__)

_SMALL = 4 * BLOCK  # below this file size, starting processes costs more than it saves
_BATCH = 65_536  # Parquet rows per task
_SAMPLE = 1 << 16  # bytes of a text file from which the time format is detected


def ingest(settings: DataConfig, out: Path, *, workers: int | None = None, block: int = BLOCK) -> dict:
    """Read the logs named in `settings` and write INTERACTIONS and ITEMS (dataset/names.py) into `out`.

    workers: threads and processes that parse; None: all cores. Returns the counts for the manifest. Raises InputError
    for files that are missing, damaged or of another format, and if no row is left.
    """
    workers = workers or _cores()
    out = Path(out)
    reader = formats.of(settings)
    run = _Run(settings, out, workers, block, reader)
    run.interactions()
    run.items()
    _print(run.counts, settings)
    warn(run.counts, run.unmatched)
    return {name: value for name, value in run.counts.items() if value is not None}


@dataclass
class _Run:
    settings: DataConfig
    out: Path
    workers: int
    block: int
    format: formats.Format
    counts: dict = field(default_factory=dict)
    catalogue: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    known: set = field(default_factory=set)
    """Drop reasons that have an example."""
    unmatched: tuple = ()
    """Example ids of metadata that are not in the log, and of log items without metadata."""

    def interactions(self) -> None:
        """Write the interactions, count what was dropped and remember the log's items."""
        rules = self.format.rules
        writer = PartWriter(self.out / INTERACTIONS)
        users, items, dropped = Distinct(), Distinct(), Tally()
        example = ""
        with RowKeys(self.out / ".keys") as keys:
            with ThreadPoolExecutor(self.workers) as pool:
                tasks = self._interaction_tasks(rules, dropped)
                for cleaned in _ordered(pool if self.workers > 1 else None, tasks, self.workers):
                    writer.write(cleaned.table)
                    keys.add(cleaned.keys, cleaned.table[ROW].to_numpy())
                    users.add(cleaned.users)
                    items.add(cleaned.items)
                    self._take(dropped, cleaned.dropped, self.settings.encoding, "data.encoding")
                    example = example or cleaned.example
            writer.close()
            total = writer.total
            if not total:
                raise InputError(self._nothing(dropped, example))
            unread = tuple(name for name in DROPPED if name not in FILTERED)
            self._report(dropped, unread, ("stray_quotes",), dropped["rows_read"], "interactions")
            repeated = keys.repeated()
        if self.settings.duplicates == "drop" and len(repeated):
            drop_rows(self.out / INTERACTIONS, repeated)
            total -= len(repeated)
        self.catalogue = items.values
        self.counts |= {"rows_read": dropped["rows_read"]}
        self.counts |= {
            name: dropped[name] for name in (*DROPPED, *NOTED, "stray_quotes", "cut_by_damage", "damaged_files")
        }
        self.counts |= {
            "duplicates_dropped" if self.settings.duplicates == "drop" else "duplicates_kept": len(repeated),
            "interactions": total,
            "users": len(users.values),
            "items": len(self.catalogue),
        }

    def items(self) -> None:
        """Write the items of the log with their metadata."""
        table = ItemTable(self.out / ITEMS, self.catalogue, self.format.columns)
        counts = Tally()
        for path in find_files(self.settings.items, "data.items"):
            source = sniff(path, self.settings.item_encoding)
            read = self.format.item_reader(source)
            small = source.path.stat().st_size < (_SMALL // 4 if source.gzip else _SMALL)
            with _processes(1 if small else self.workers) as pool:
                for rows, found in _ordered(pool, self._item_tasks(source, read, counts), self.workers):
                    table.add(rows)
                    self._take(counts, found, self.settings.item_encoding, "data.item_encoding")
        lost = (
            "metadata_bad_lines", "metadata_not_utf8", "metadata_repeated_header", "metadata_no_item",
            "metadata_nested_item",
        )  # fmt: skip
        read_rows = counts["metadata_read"] + sum(counts[name] for name in lost[:3])
        self._report(counts, lost, ("metadata_stray_quotes", "metadata_binary"), read_rows, "items")
        table.add_missing(self.out / INTERACTIONS)
        table.close()
        self.unmatched = table.unmatched
        self.counts |= {name: int(value) for name, value in sorted({**counts, **table.counts}.items())}

    def _interaction_tasks(self, rules: Rules, dropped: Tally) -> Iterator[Callable[[], Cleaned]]:
        first_row = 0
        for path in find_files(self.settings.interactions, "data.interactions"):
            source = sniff(path, self.settings.encoding)
            parser = self.format.parser(source)
            place = Place(str(path), known=self.known)
            times = self._times(source, parser)
            if isinstance(parser, ParquetParser):
                rows = 0
                for batch in parser.batches(_BATCH):
                    at = replace(place, before=rows)
                    yield partial(_clean_batch, parser, batch, first_row + rows, rules, at, times)
                    rows += batch.num_rows
                first_row += rows
                continue
            reader = self._lines(source, _dialect(parser))
            for block in _progress(reader):
                at = replace(place, before=reader.above(block))
                yield partial(_clean_block, parser, block, first_row, rules, at, times)
            first_row += reader.lines
            _damage(reader, dropped, "")

    def _times(self, source: Source, parser: JsonParser | DelimitedParser | ParquetParser) -> TimeReader:
        """The time format of this file, detected from its first rows, independent of the block size."""
        if isinstance(parser, ParquetParser):
            tables = [parser(batch) for batch in islice(parser.batches(_BATCH), 1)]
        else:
            blocks = islice(self._lines(source, _dialect(parser), _SAMPLE), 1)
            tables = [table for block in blocks for table in parser(block.data, block.lines, Tally())]
        columns = [table["time"] for table in tables if "time" in table.column_names]
        if not columns:
            return TimeReader()
        kinds = {column.type for column in columns}
        kind = kinds.pop() if len(kinds) == 1 else pa.string()  # JSON that Arrow refuses is read as text
        sample = pa.chunked_array([chunk for column in columns for chunk in column.cast(kind).chunks], kind)
        rules, settings = self.format.rules, self.settings
        if pa.types.is_string(kind):
            sample = pc.if_else(pc.is_in(sample, value_set=pa.array(rules.nulls, pa.string())), None, sample)
        filtered = rules.start is not None or rules.end is not None
        return TimeReader.of(sample, str(source.path), settings.time_unit or "", settings.time_format or "", filtered)

    def _item_tasks(self, source: Source, read: ItemReader, counts: Tally) -> Iterator[Callable]:
        place = Place(str(source.path))
        if source.kind == "parquet":
            rows = 0
            for batch in pq.ParquetFile(source.path).iter_batches(batch_size=_BATCH // 8):
                yield partial(read, batch, replace(place, before=rows))
                rows += batch.num_rows
            return
        reader = self._lines(source, read.dialect)
        for block in _progress(reader):
            yield partial(read, block, replace(place, before=reader.above(block)))
        _damage(reader, counts, "metadata_")

    def _take(self, counts: Tally, found: Tally, encoding: str | None, setting: str) -> None:
        """Add a block's drop counts; InputError for bytes that are not UTF-8, unless the settings allow them."""
        counts.take(found)
        self.known.update(found.examples)
        damaged = next((name for name in found if name.endswith("not_utf8") and found[name]), None)
        if damaged and encoding is None:
            raise InputError(
                f"expected UTF-8 text, found other bytes in {counts.examples[damaged]}: set {setting}=latin-1 (or "
                f"cp1252, ...), or {setting}=utf-8 to drop such rows"
            )

    def _report(self, counts: Tally, lost: tuple[str, ...], noted: tuple[str, ...], read: int, what: str) -> None:
        for level, line in check_dropped(counts, lost, noted, read, self.settings.max_dropped, what):
            _log.log(level, line)

    def _lines(self, source: Source, dialect: Dialect | None, block: int | None = None) -> LineReader:
        return LineReader(
            source,
            dialect,
            keep_damaged=self.settings.damaged == "keep",
            block=block or self.block,
        )

    def _nothing(self, dropped: Tally, example: str) -> str:
        reasons = ", ".join(f"{dropped[name]:,} {name}" for name in DROPPED if dropped[name])
        what = f"; the first unreadable time is {example}" if example else ""
        if not example and dropped.examples:
            what = f"; the first is in {next(iter(dropped.examples.values()))}"
        check = "check data.columns and the filters"
        if dropped["unreadable_time"] * 2 > dropped["rows_read"]:
            check = f"set {TIME_FORMAT}, or check data.columns.time"
        elif dropped["nested_item"] * 2 > dropped["rows_read"]:
            check = "write a row for each entry of a list (pandas.DataFrame.explode), or check data.columns.item"
        return (
            f"{', '.join(self.settings.interactions)}: expected interactions, found none left of "
            f"{dropped['rows_read']:,} rows ({reasons or 'no rows'}){what}: {check}"
        )


def _dialect(parser: JsonParser | DelimitedParser) -> Dialect | None:
    return parser.dialect if isinstance(parser, DelimitedParser) else None


def _clean_block(
    parser: JsonParser | DelimitedParser,
    block: Block,
    first_row: int,
    rules: Rules,
    place: Place,
    times: TimeReader,
) -> Cleaned:
    dropped = Tally()
    tables = parser(block.data, block.lines, dropped)
    cleaned = clean(tables, first_row + block.first, rules, dropped, times)
    place.exemplify(dropped, block.data)
    return cleaned


def _clean_batch(
    parser: ParquetParser, batch: pa.RecordBatch, first_row: int, rules: Rules, place: Place, times: TimeReader
) -> Cleaned:
    dropped = Tally()
    cleaned = clean([parser(batch)], first_row, rules, dropped, times)
    place.exemplify(dropped, batch)
    return cleaned


def _damage(reader: LineReader, counts: Tally, prefix: str) -> None:
    if reader.damage:
        counts[f"{prefix}damaged_files"] += 1
        counts[f"{prefix}cut_by_damage"] += reader.cut


def _ordered(pool: Executor | None, tasks: Iterable[Callable], workers: int) -> Iterator:
    """Results of the tasks in order; at most workers + 2 of them are in flight, so that memory is bounded."""
    if pool is None:
        yield from (task() for task in tasks)
        return
    flying: deque = deque()
    try:
        for task in tasks:
            flying.append(pool.submit(task))
            if len(flying) > workers + 1:
                yield flying.popleft().result()
        while flying:
            yield flying.popleft().result()
    except BrokenProcessPool as error:
        raise InputError(
            "a parser process died: set cluster.workers=1, or give it more memory; a script that calls ingest needs "
            '`if __name__ == "__main__":`'
        ) from error
    finally:
        for future in flying:
            future.cancel()


class _processes:
    """Processes for parsing in Python, or None in-process if there is one worker."""

    def __init__(self, workers: int):
        # spawn: forking a process with threads (Arrow's, a progress bar's) can leave locks held forever.
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(workers, mp_context=spawn) if workers > 1 else None

    def __enter__(self) -> ProcessPoolExecutor | None:
        return self._pool

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)


def _progress(reader: LineReader) -> Iterator[Block]:
    """The blocks of a file, with the progress in bytes, and rows per second."""
    path = reader.source.path
    start = time.monotonic()
    with Progress(path.stat().st_size, path.name, "B") as progress:
        for block in reader:
            yield block
            progress.say(f"{reader.lines / max(time.monotonic() - start, 1e-9):,.0f} rows/s")
            progress.update(reader.position - progress.n)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _print(counts: dict, settings: DataConfig) -> None:
    shown = [(name.replace("_", " "), value) for name, value in counts.items() if value or name in _ALWAYS]
    print_counts(f"ingest ({settings.format})", shown)


_ALWAYS = ("rows_read", "interactions", "users", "items", "items_without_metadata")
