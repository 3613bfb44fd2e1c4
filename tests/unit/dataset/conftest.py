"""Where the real data stand, and a small run to prepare."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmcfsr_merlin.runtime.stage import seal
from tests.unit.dataset.world import random_log

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    folder = Path(os.environ.get("LLMCFSR_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set LLMCFSR_DATA")
    return folder


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run directory with random interactions, ingested."""
    folder = tmp_path / "run" / "ingest" / "interactions"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pandas(random_log(), preserve_index=False), folder / "part-00000.parquet")
    seal(tmp_path / "run" / "ingest", "ingest", "key", {})
    return tmp_path / "run"
