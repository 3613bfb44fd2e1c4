"""benchmarks/gpu/prepare.py without a GPU: the program of a GPU, on pandas and numpy, writes what the CPU does."""

import importlib.util

import pytest

from llmcfsr_merlin.runtime.layout import resource

SCRIPT = resource("pipelines").parent / "benchmarks" / "gpu" / "prepare.py"


@pytest.fixture(scope="module")
def benchmark():
    if not SCRIPT.is_file():
        pytest.skip("benchmarks/ stands beside the package in a checkout only")
    spec = importlib.util.spec_from_file_location("benchmark_gpu_prepare", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_write_the_same_and_say_how_long_each_step_took(benchmark, tmp_path, monkeypatch):
    from benchmarks.gpu import generated_log, same_output

    monkeypatch.setattr(generated_log, "PART", 7000)
    monkeypatch.setattr(generated_log, "ROW_GROUP", 1000)
    monkeypatch.setattr("llmcfsr_merlin.dataset.prepare.partitions._SMALL", 1)
    benchmark.generate(tmp_path / "in", 20_000)
    gpu, cpu = (benchmark._prepare(kind, tmp_path / "in", tmp_path / kind, True) for kind in ("gpu", "cpu"))
    assert {"read", "number ids", "sort ids", "sort", "cut", "write"} <= set(gpu["steps"])
    assert "shuffle" in cpu["steps"] and gpu["interactions"] == cpu["interactions"] > 10_000
    entry = {"gpu": gpu, "cpu": cpu}
    same_output.compare(entry, {kind: tmp_path / kind for kind in entry})
    assert entry["equal_cpu"] == "bytes" and entry["times_cpu"] > 0
    assert same_output.rows(tmp_path / "gpu") == same_output.rows(tmp_path / "cpu")
    found = benchmark.checks(small=True)
    assert len(found) == 6 and all(result.startswith("ok") for result in found.values()), found
