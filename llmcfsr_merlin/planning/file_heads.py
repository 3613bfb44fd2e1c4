"""The first rows of a file of any format that ingest reads: the names of its columns and some values of each."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from llmcfsr_merlin.config.data_settings import DataConfig
from llmcfsr_merlin.dataset.raw.files.delimited import read_delimited
from llmcfsr_merlin.dataset.raw.files.dialect import Dialect, Text, detect
from llmcfsr_merlin.dataset.raw.files.source import Source, sniff
from llmcfsr_merlin.dataset.raw.tally import Tally
from llmcfsr_merlin.runtime.errors import InputError

_ROWS = 1000  # of Parquet; of text, what fits the first 64 KiB


@dataclass(frozen=True)
class Head:
    """columns: name -> its values in the first rows, None if there is none. headless: a delimited file whose first
    line is data; its columns then have generated names. partitions: columns that stand in the names of folders."""

    source: Source
    columns: dict[str, list]
    headless: bool = False

    @property
    def rows(self) -> int:
        return max((len(values) for values in self.columns.values()), default=0)


def read_head(path: Path, settings: DataConfig, *, items: bool = False) -> Head:
    """The head of a log, or of a table of items. settings: delimiter, encoding, quoting and header, if they are given.

    InputError for a file that ingest could not read either.
    """
    source = sniff(path, settings.item_encoding if items else settings.encoding)
    if source.kind == "parquet":
        try:
            file = pq.ParquetFile(path)
            batch = next(file.iter_batches(_ROWS), None)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{path} cannot be read as Parquet: {' '.join(str(error).split())}") from error
        columns: dict[str, list] = {name: [] for name in file.schema_arrow.names}
        if batch is not None:
            columns = {name: batch.column(number).to_pylist() for number, name in enumerate(batch.schema.names)}
        return Head(source, columns | {name: [value] for name, value in source.partitions.items()})
    if source.kind in ("json", "literal"):
        records = source.records()
        names = list(dict.fromkeys(name for record in records for name in record))
        return Head(source, {name: [record.get(name) for record in records] for name in names})
    if items:
        text = Text("data.item_", settings.item_delimiter, settings.item_quoting, settings.item_header)
    else:
        text = Text("data.", settings.delimiter, settings.quoting, settings.header)
    dialect = detect(source, text, ("user", "item", "time", "rating"))
    data = source.start.encode()
    if dialect.skip and not text.names:
        data = data.split(b"\n", dialect.skip)[-1]
    table, _ = read_delimited(data, data.count(b"\n"), dialect, list(range(dialect.width)), Tally())
    values = [table[str(number)].to_pylist() for number in range(dialect.width)]
    headless = not dialect.header or _are_data(dialect, values)
    if headless and dialect.header:
        values = [[name, *rest] for name, rest in zip(dialect.names, values)]
    names = [f"column_{n}" for n in range(dialect.width)] if headless else list(dialect.names)
    return Head(source, {name or f"column_{n}": value for n, (name, value) in enumerate(zip(names, values))}, headless)


def _are_data(dialect: Dialect, values: list[list]) -> bool:
    """Whether the line taken for a header is a row: it has a number above a column of numbers."""
    return any(
        is_number(name) and all(value is None or is_number(value) for value in column)
        for name, column in zip(dialect.names, values)
    )


def is_number(value: object) -> bool:
    """Whether a value is a number, or a text that is one."""
    if isinstance(value, bool) or value is None:
        return False
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True
