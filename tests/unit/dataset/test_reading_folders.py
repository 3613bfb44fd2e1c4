"""Columns of Parquet, folders of partitions and patterns of file names."""

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmcfsr_merlin.dataset.names import ITEM
from llmcfsr_merlin.dataset.raw.files.source import find_files
from llmcfsr_merlin.runtime.errors import InputError
from tests.unit.dataset.texts import HEAD, ORDER, ROWS
from tests.unit.dataset.world import run


def test_parquet_columns(tmp_path):
    base = pd.DataFrame(ROWS, columns=HEAD.split(","))
    names = ["user_id", "item_id", "timestamp", "item_id"]
    twice = pa.table([*pa.Table.from_pandas(base).columns, pa.array(["z"] * 6)], names=names)
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(InputError, match=r"one column item_id, found 2 .*columns 2, 4.*data.columns.item=1"):
        run(tmp_path / "a", interactions=str(tmp_path / "twice.parquet"))
    _, log, _ = run(tmp_path / "b", interactions=str(tmp_path / "twice.parquet"), columns={"item": 1})
    assert log[ITEM].tolist() == ORDER
    grouped = base.groupby("user_id", as_index=False).agg({"item_id": list, "timestamp": "min"})
    grouped.to_parquet(tmp_path / "grouped.parquet")
    with pytest.raises(InputError, match=r"lists in column item_id \(already grouped sessions\)"):
        run(tmp_path / "c", interactions=str(tmp_path / "grouped.parquet"))


@pytest.mark.parametrize("pattern", ["log", "log/**/*.parquet", "log/**/*", "log/dt=*/*/part*"])
def test_partition_columns_and_folders(pattern, tmp_path):
    for day in ("2020-01-02", "2020-01-01"):
        folder = tmp_path / "log" / f"dt={day}" / "shop=a%3Ab"
        folder.mkdir(parents=True)
        pd.DataFrame({"user_id": ["u"], "item_id": [day]}).to_parquet(folder / "part-0.parquet")
        (folder / "_SUCCESS").write_bytes(b"")
    _, log, _ = run(tmp_path / "out", interactions=str(tmp_path / pattern), columns={"time": "dt", "user": "shop"})
    assert log.sort_values("timestamp")[ITEM].tolist() == ["2020-01-01", "2020-01-02"]
    assert log["user_id"].unique().tolist() == ["a:b"]


def test_partition_columns_of_text(tmp_path):
    for name, line in (("log.csv", "user_id,item_id\nu,a\n"), ("log.json", '{"user_id": "u", "item_id": "a"}\n')):
        folder = tmp_path / "dt=2020-01-01"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(line)
        _, log, _ = run(tmp_path / name, interactions=str(folder / name), columns={"time": "dt"})
        assert log["timestamp"].tolist() == [1_577_836_800]


def test_patterns(tmp_path):
    (tmp_path / "data[1]").mkdir()
    (tmp_path / "data1").mkdir()
    for name in ("data[1]/a.csv", "data[1]/b[2].csv", "data1/c.csv", "x.csv", "x.csv.gz"):
        (tmp_path / name).write_text("x")
    names = lambda pattern: [path.name for path in find_files([str(tmp_path / pattern)], "data.interactions")]  # noqa: E731
    assert names("data[1]/*.csv") == ["a.csv", "b[2].csv"], "a folder that is there wins"
    assert names("data[1]/b[2].csv") == ["b[2].csv"]
    assert names("data[123]/*.csv") == ["c.csv"]
    with pytest.raises(InputError, match=r"expected each file once, found .*x.csv.gz beside .*x.csv"):
        names("x.*")
    (tmp_path / "delta" / "_delta_log").mkdir(parents=True)
    with pytest.raises(InputError, match=r"the Delta table .*export it"):
        names("delta")
    with pytest.raises(InputError, match=r"use a pattern like .*data1/\*\.csv$"):
        names("data1")
