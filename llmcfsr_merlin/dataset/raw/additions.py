"""Reads a file of new items as ingest reads metadata."""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from llmcfsr_merlin.config.data_settings import DataConfig
from llmcfsr_merlin.dataset.names import ITEM
from llmcfsr_merlin.dataset.raw import formats
from llmcfsr_merlin.dataset.raw.fields.values import Attribute
from llmcfsr_merlin.dataset.raw.files.lines import LineReader
from llmcfsr_merlin.dataset.raw.files.source import sniff
from llmcfsr_merlin.dataset.raw.tally import Place
from llmcfsr_merlin.runtime.errors import InputError

_KEPT = ("metadata_stray_quotes", "metadata_binary", "metadata_read", "bad_titles")


def read_items(path: Path, settings: DataConfig) -> list[dict[str, Attribute]]:
    """The rows of new items: ITEM and attributes, without missing values.

    The file may be what metadata may be (JSON lines, CSV, TSV, Parquet; .gz or plain, UTF-8) with a column item_id, or
    as the run's own metadata were (settings). Raises InputError that names the line where a row cannot be read or has
    no id: no new item is skipped.
    """
    rows = (table.to_pylist() for table in _tables(path, settings))
    return [{name: value for name, value in row.items() if value is not None} for row in chain.from_iterable(rows)]


def catalogue_ids(paths: Iterable[Path], settings: DataConfig) -> list[str]:
    """The raw ids, cleaned, that files of metadata name, each once; rows are read as `read_items` reads them."""
    ids = (table[ITEM].to_pylist() for path in paths for table in _tables(path, settings))
    return list(dict.fromkeys(chain.from_iterable(ids)))


def _tables(path: Path, settings: DataConfig) -> Iterator[pa.Table]:
    if not Path(path).is_file():
        raise InputError(f"expected a file of items, found no {path}")
    source = sniff(Path(path))
    data = settings.model_copy(update={"interactions": (str(path),)})  # not read
    columns = data.item_columns.model_copy(update={"item": ITEM})
    own = data.model_copy(update={"format": "table", "item_columns": columns})
    try:
        reader = formats.of(own).item_reader(source)
    except InputError:
        reader = formats.of(data).item_reader(source)
    if source.kind == "parquet":
        blocks = ((batch, 0) for batch in pq.ParquetFile(path).iter_batches())
    else:
        lines = LineReader(source, reader.dialect if source.kind == "delimited" else None)
        blocks = ((block, lines.above(block)) for block in lines)
    for block, above in blocks:
        table, found = reader(block, Place(str(path), above))
        lost = {name: count for name, count in found.items() if count and name not in _KEPT}
        if lost:
            reason = next(iter(lost)).removeprefix("metadata_").replace("_", " ")
            fix = "save the file as UTF-8" if reason == "not utf8" else "correct it"
            where = found.examples[next(iter(lost))]
            raise InputError(f"expected new items with an {ITEM} each, found {reason}: {where}: {fix}")
        yield table
