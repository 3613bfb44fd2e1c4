"""The systems that benchmarks/preprocess.py compares do the same job: their sequences and splits have one hash."""

import importlib.util
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from llmcfsr_merlin.runtime.layout import resource

SCRIPT = resource("pipelines").parent / "benchmarks" / "preprocess.py"


@pytest.fixture(scope="module")
def benchmark():
    if not SCRIPT.is_file():
        pytest.skip("benchmarks/ stands beside the package in a checkout only")
    spec = importlib.util.spec_from_file_location("benchmark_preprocess", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_systems_agree(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr("llmcfsr_merlin.dataset.prepare.partitions._SMALL", 1)
    monkeypatch.setattr(benchmark, "PART", 7000)
    benchmark.generate(tmp_path / "in", 20_000)
    benchmark.ours(tmp_path / "in", tmp_path / "ours", 2, "1GB", "single")
    benchmark.python(tmp_path / "in", tmp_path / "python")
    systems = ["ours", "python"]
    if importlib.util.find_spec("polars"):
        benchmark.polars(tmp_path / "in", tmp_path / "polars")
        systems.append("polars")
    assert len({benchmark.digest(tmp_path / system) for system in systems}) == 1
    assert len(list(Path(tmp_path / "in").iterdir())) == 3 and pq.read_table(tmp_path / "ours" / "test").num_rows > 500


def test_compare(benchmark):
    def entry(rows, system, seconds, **more):
        sizes = {"peak_memory_mb": 100, "peak_disk_mb": rows}
        return {"rows": rows, "system": system, "seconds": seconds, "sequences": "x"} | sizes | more

    found = benchmark.compare([entry(10, "ours", 1), entry(10, "python", 12), entry(100, "ours", 10)])
    assert found["equal_results"] and found["speed_up_of_ours"] == {"10": {"python": 12.0}}
    assert found["growth_exponents"] == {"10 to 100": {"seconds": 1.0, "peak_memory_mb": 0.0, "peak_disk_mb": 1.0}}
    assert not benchmark.compare([entry(10, "ours", 1), entry(10, "polars", 2, sequences="y")])["equal_results"]


@pytest.mark.parametrize(("option", "place"), [("--scratch", "nowhere"), ("--out", "nowhere/results.json")])
def test_a_folder_that_is_not_there_is_one_line(benchmark, option, place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["preprocess.py", option, str(tmp_path / place)])
    with pytest.raises(SystemExit) as stopped:
        benchmark.main()
    shown = capsys.readouterr().err
    assert stopped.value.code == 1 and shown.startswith(f"{option}: expected") and shown.count("\n") == 1
