"""Parquet batches -> raw tables with one column per role."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmcfsr_merlin.dataset.raw.files.delimited import LINE
from llmcfsr_merlin.dataset.raw.files.source import Source
from llmcfsr_merlin.dataset.raw.records import grouped
from llmcfsr_merlin.runtime.errors import InputError


@dataclass(frozen=True)
class ParquetParser:
    """Batches of a Parquet file -> raw tables. fields: role -> position of its column, which may share its name with
    others; constants: roles that the folders of the file give (Hive partitions); encoding: of bytes that are text."""

    path: Path
    names: tuple[str, ...]
    fields: dict[str, int]
    constants: dict[str, str | None]
    encoding: str | None = None

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        """The needed columns, in batches of rows."""
        wanted = [self.names[position] for position in self.fields.values()]
        unique = all(self.names.count(name) == 1 for name in wanted)  # otherwise Arrow cannot distinguish them
        return pq.ParquetFile(self.path).iter_batches(
            batch_size=rows, columns=list(dict.fromkeys(wanted)) if unique else None
        )

    def __call__(self, batch: pa.RecordBatch) -> pa.Table:
        """Table of the roles and LINE."""
        table = pa.Table.from_batches([batch])
        whole = len(table.schema) == len(self.names)
        columns = {
            role: self._decoded(table.column(position if whole else self.names[position]))
            for role, position in self.fields.items()
        }
        for role, value in self.constants.items():
            columns[role] = pa.array([value] * len(table), pa.string())
        return pa.table({**columns, LINE: np.arange(len(table))})

    def _decoded(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        if not self.encoding or not pa.types.is_binary(column.type):
            return column
        values = [None if value is None else value.decode(self.encoding) for value in column.to_pylist()]
        return pa.chunked_array([pa.array(values, pa.string())])


def refuse_lists(source: Source, fields: dict[str, int]) -> None:
    """InputError if a column (fields: role -> position) holds lists: sessions that are grouped already."""
    schema = pq.read_schema(source.path)
    for role, position in fields.items():
        kind = schema.field(position).type
        if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            raise InputError(grouped(source, schema.field(position).name, role))
