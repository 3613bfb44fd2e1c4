"""Generated days of a log, as stage ingest writes them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from llmcfsr_merlin.dataset.names import ITEM, ROW, TIME, USER


def day(number: int, users: int, items: int, rows: int = 600) -> pd.DataFrame:
    """Later than all days of smaller numbers; many of its times are equal."""
    random = np.random.default_rng(number)
    return pd.DataFrame({
        USER: [f"u{x:03d}" for x in random.integers(0, users, rows)],
        ITEM: [f"i{x}" for x in random.integers(0, items, rows)],
        TIME: number * 100_000 + random.integers(0, 50, rows), ROW: np.arange(rows) + number * rows,
    })  # fmt: skip


def write(folder: Path, log: pd.DataFrame) -> Path:
    folder.mkdir()
    pq.write_table(pa.Table.from_pandas(log, preserve_index=False), folder / "part-00000.parquet", row_group_size=100)
    return folder
