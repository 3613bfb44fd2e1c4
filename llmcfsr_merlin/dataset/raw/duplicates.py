"""Finds repeated (user, item, time) rows in logs of any length, by row hashes on disk."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmcfsr_merlin.dataset.names import ROW
from llmcfsr_merlin.dataset.raw.interactions import PartWriter

_BUCKETS = 64  # a billion rows make buckets of 250 MB
_PAIR = np.dtype([("key", np.uint64), ("row", np.int64)])


class RowKeys:
    """Spills (key, row) into buckets by key, so that equal keys meet in one bucket. Use as a context manager."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def __enter__(self) -> "RowKeys":
        self.folder.mkdir(parents=True)
        self._files = [open(self.folder / f"{number:02d}", "wb") for number in range(_BUCKETS)]  # noqa: SIM115
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, keys: np.ndarray, rows: np.ndarray) -> None:
        """Record the rows of a block: keys uint64, rows int64, ascending."""
        pairs = np.empty(len(keys), _PAIR)
        pairs["key"], pairs["row"] = keys, rows
        bucket = (keys & np.uint64(_BUCKETS - 1)).astype(np.int8)
        order = np.argsort(bucket, kind="stable")
        ends = np.cumsum(np.bincount(bucket, minlength=_BUCKETS))
        pairs = pairs[order]
        start = 0
        for file, end in zip(self._files, ends):
            file.write(pairs[start:end].data)
            start = end

    def repeated(self) -> np.ndarray:
        """Rows whose key an earlier row has, ascending int64."""
        found = []
        for file in self._files:
            file.flush()
            pairs = np.fromfile(file.name, _PAIR)
            order = np.argsort(pairs["key"], kind="stable")
            key = pairs["key"][order]
            found.append(pairs["row"][order[1:][key[1:] == key[:-1]]])
        return np.sort(np.concatenate(found))


def drop_rows(folder: Path, rows: np.ndarray) -> None:
    """Rewrite folder/part-*.parquet without the given rows (ascending)."""
    old = Path(folder).with_name(f".{Path(folder).name}.all")
    Path(folder).rename(old)
    writer = PartWriter(folder)
    for part in sorted(old.glob("part-*.parquet")):
        for batch in pq.ParquetFile(part).iter_batches():
            here = batch.column(batch.schema.get_field_index(ROW)).to_numpy()
            at = np.searchsorted(rows, here)
            gone = rows[np.minimum(at, len(rows) - 1)] == here if len(rows) else np.zeros(len(here), bool)
            writer.write(pa.Table.from_batches([batch]).filter(pc.invert(pa.array(gone))))
    writer.close()
    shutil.rmtree(old)
