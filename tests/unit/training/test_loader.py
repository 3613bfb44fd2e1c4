"""The batches of the Merlin dataloader, with lists flattened by numpy, are those of the stock one."""

import tests.needs_merlin  # noqa: F401

# isort: split
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from merlin.schema import ColumnSchema, Schema, Tags

from llmcfsr_merlin.dataset.names import ITEM, ROW
from llmcfsr_merlin.training import t4rec_trainer as trainer


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    random, paths = np.random.default_rng(0), []
    for part in range(2):
        lists = [random.integers(3, 50, size=random.integers(1, 9)).tolist() for _ in range(37)]
        path = tmp_path / f"part-{part}.parquet"
        numbers = np.arange(part * 37, part * 37 + 37)
        pq.write_table(pa.table({ITEM: pa.array(lists, pa.list_(pa.int64())), ROW: numbers}), path)
        paths.append(str(path))
    return paths


def batches(files: list[str]) -> list[dict[str, torch.Tensor]]:
    schema = Schema(
        [
            ColumnSchema(ITEM, dtype="int64", is_list=True, is_ragged=True, tags=[Tags.CATEGORICAL, Tags.ITEM_ID]),
            ColumnSchema(ROW, dtype="int64", tags=[Tags.CATEGORICAL]),
        ]
    )
    loader = trainer.data_loader(files, schema, 16, False, torch.device("cpu"))
    try:
        return [dict(batch) for batch, _ in loader]
    finally:
        loader.dataset.stop()


def test_lists_flattened_by_numpy_are_those_of_merlin(files, monkeypatch):
    found = batches(files)
    monkeypatch.setattr(trainer, "_flatten_by_numpy", lambda loader: None)
    expected = batches(files)
    assert len(found) == len(expected) == 5
    for ours, stock in zip(found, expected, strict=True):
        assert ours.keys() == stock.keys()
        for name, value in stock.items():
            assert ours[name].dtype == value.dtype
            assert torch.equal(ours[name], value)
    rows = torch.cat([batch[ROW].flatten() for batch in found])
    assert rows.tolist() == list(range(74))
