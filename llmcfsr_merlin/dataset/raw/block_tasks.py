"""What ingest does with each block of a file, as functions of no arguments that threads or processes call."""

import time
from collections.abc import Callable, Container, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmcfsr_merlin.config.data_settings import DataConfig
from llmcfsr_merlin.dataset.raw.fields.times import TimeReader
from llmcfsr_merlin.dataset.raw.files.columnar import ParquetParser
from llmcfsr_merlin.dataset.raw.files.delimited import DelimitedParser
from llmcfsr_merlin.dataset.raw.files.dialect import Dialect
from llmcfsr_merlin.dataset.raw.files.lines import Block, LineReader
from llmcfsr_merlin.dataset.raw.files.source import Source, find_files, sniff
from llmcfsr_merlin.dataset.raw.formats import Format
from llmcfsr_merlin.dataset.raw.interactions import Cleaned, Rules, clean
from llmcfsr_merlin.dataset.raw.metadata import ItemReader
from llmcfsr_merlin.dataset.raw.records import JsonParser
from llmcfsr_merlin.dataset.raw.tally import Place, Tally
from llmcfsr_merlin.runtime.progress import Progress

_BATCH = 65_536  # Parquet rows per task
_SAMPLE = 1 << 16  # bytes of a text file from which the time format is detected


class Tasks:
    """Reads files in one thread and yields a task for each block. block: bytes of a text file."""

    def __init__(self, settings: DataConfig, format: Format, block: int):
        self.settings, self.format, self.block = settings, format, block

    def of_interactions(self, dropped: Tally, known: Container[str]) -> Iterator[Callable[[], Cleaned]]:
        """Tasks of all logs, in order. dropped: takes what damage costs; known: reasons that have an example."""
        rules = self.format.rules
        first_row = 0
        for path in find_files(self.settings.interactions, "data.interactions"):
            source = sniff(path, self.settings.encoding)
            parser = self.format.parser(source)
            place = Place(str(path), known=known)
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

    def of_items(self, source: Source, read: ItemReader, counts: Tally) -> Iterator[Callable]:
        """Tasks of one file of metadata. counts: takes what damage costs."""
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

    def _lines(self, source: Source, dialect: Dialect | None, block: int | None = None) -> LineReader:
        keep = self.settings.damaged == "keep"
        return LineReader(source, dialect, keep_damaged=keep, block=block or self.block)


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


def _progress(reader: LineReader) -> Iterator[Block]:
    """The blocks of a file with their progress in bytes, and rows per second."""
    path, start = reader.source.path, time.monotonic()
    with Progress(path.stat().st_size, path.name, "B") as progress:
        for block in reader:
            yield block
            progress.say(f"{reader.lines / max(time.monotonic() - start, 1e-9):,.0f} rows/s")
            progress.update(reader.position - progress.n)
