"""Choice of the engine: defaults, overrides, what dask-cuda would be given, and failures as one line."""

import inspect
import sys
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest

from llmcfsr_merlin.config.cluster_settings import ClusterConfig
from llmcfsr_merlin.runtime import engine as cluster
from llmcfsr_merlin.runtime import free_memory
from llmcfsr_merlin.runtime.clusters import cuda_arguments
from llmcfsr_merlin.runtime.engine import Engine, engine
from llmcfsr_merlin.runtime.errors import InputError, MissingDependency

SINGLE = Engine("single", False, 1, 1 << 30, 1 << 30)
GB = 1 << 30


def test_defaults_come_from_the_machine_and_are_printed(capfd, monkeypatch):
    monkeypatch.setattr(cluster, "available_memory", lambda: 8 * GB)
    monkeypatch.setattr(cluster.os, "sched_getaffinity", lambda _: range(4), raising=False)
    with engine(ClusterConfig(kind="single")) as chosen:
        assert (chosen.kind, chosen.workers, chosen.client) == ("single", 4, None)
        assert chosen.memory == int(8 * GB * 0.7 / 4) and chosen.partition == chosen.memory // 3
    said = capfd.readouterr().err
    assert "single on CPU, 4 workers of 1.4 GiB, partitions of 477 MiB (about 3,131,7" in said
    with engine(ClusterConfig(partition_size="64MB", workers=3, memory_limit="1GB")) as chosen:
        assert (chosen.workers, chosen.memory, chosen.partition) == (3, 10**9, 64_000_000)
    assert "partitions of 61 MiB" in capfd.readouterr().err


def test_what_cannot_be(monkeypatch):
    monkeypatch.setattr(cluster, "usable_gpus", list)
    with pytest.raises(MissingDependency, match="needs a CUDA GPU"):
        engine(ClusterConfig(kind="cuda")).__enter__()
    for name, size in (("memory_limit", "much"), ("partition_size", "8 cats")):
        with pytest.raises(InputError, match=rf"cluster\.{name}: expected a size like"):
            engine(ClusterConfig(**{name: size})).__enter__()


@pytest.mark.parametrize(
    "settings, pool, most, limit",
    [
        ({}, 40 * GB, 72 * GB, 64 * GB),
        ({"rmm_pool_size": "10GiB", "device_memory_limit": "20GiB"}, 10 * GB, 72 * GB, 20 * GB),
        ({"rmm_pool_size": "78GiB"}, 78 * GB, 78 * GB, 64 * GB),
        ({"spill": False}, 40 * GB, 72 * GB, None),
    ],
)
def test_dask_cuda_is_given(settings, pool, most, limit):
    given = cuda_arguments(ClusterConfig(kind="cuda", **settings), workers=4, memory=16 * GB, free=80 * GB)
    assert given == {
        "n_workers": 4, "threads_per_worker": 1, "memory_limit": 16 * GB, "device_memory_limit": limit,
        "rmm_pool_size": pool, "rmm_maximum_pool_size": most,
    }  # fmt: skip
    parameters = inspect.signature(pytest.importorskip("dask_cuda").LocalCUDACluster).parameters
    assert set(given) <= set(parameters)


@pytest.fixture
def gpus(monkeypatch):
    """A machine with that many GPUs of 80 GiB free, with or without dask-cuda; clusters are named, not started."""

    def machine(number: int, dask: bool = True) -> None:
        missing = {"cudf": number == 0, "cupy": number == 0, "dask_cuda": not dask}
        for module in (cluster, free_memory):
            monkeypatch.setattr(module, "absent", lambda *names: [f"no {name}" for name in names if missing[name]])
            monkeypatch.setattr(module, "device_memory", lambda: [80 * GB] * number)
        monkeypatch.setattr(cluster, "available_memory", lambda: 64 * GB)
        monkeypatch.setattr(cluster.os, "sched_getaffinity", lambda _: range(16), raising=False)

    @contextmanager
    def client(kind, *_):
        yield None if kind == "single" else SimpleNamespace(dashboard_link=kind)

    monkeypatch.setattr(cluster, "cluster_client", client)
    return machine


@pytest.mark.parametrize(
    "number, dask, settings, kind, workers, alone",
    [
        (1, False, {}, "cuda", 16, True),  # one GPU needs no dask; its results are written by all cores
        (1, False, {"workers": 4}, "cuda", 4, True),
        (1, False, {"kind": "cuda"}, "cuda", 16, True),
        (1, True, {"kind": "cuda", "workers": 2}, "cuda", 2, False),
        (2, True, {}, "cuda", 2, False),
        (2, False, {}, "cuda", 16, True),  # the first of them
        (2, True, {"kind": "cuda", "workers": 1}, "cuda", 16, True),
        (1, True, {"kind": "single"}, "single", 16, False),
        (0, True, {}, "single", 16, False),
    ],
)
def test_where_gpus_are_used(gpus, number, dask, settings, kind, workers, alone):
    gpus(number, dask)
    with engine(ClusterConfig(**settings)) as on:
        assert (on.kind, on.gpu, on.workers) == (kind, kind == "cuda", workers)
        assert on.device_memory == (80 * GB if alone else 0) and (on.client is None) == (alone or kind == "single")
        if alone:  # the same partitions, and so the same files, as without the GPU
            with engine(ClusterConfig(**settings | {"kind": "single"})) as other:
                assert other.workers != workers or other.partition == on.partition


def test_what_a_gpu_needs(gpus):
    gpus(0)
    with pytest.raises(MissingDependency, match="found no cudf, no cupy"):
        engine(ClusterConfig(kind="cuda")).__enter__()
    gpus(2, dask=False)
    with pytest.raises(MissingDependency, match="found no dask_cuda"):
        engine(ClusterConfig(kind="cuda")).__enter__()


def test_more_than_the_gpu_has():
    for settings in ({"rmm_pool_size": "90GiB"}, {"device_memory_limit": "90GiB"}):
        with pytest.raises(InputError, match=r"at most the 80\.0 GiB free"):
            cuda_arguments(ClusterConfig(**settings), 1, GB, 80 * GB)


def test_free_device_memory_follows_the_visible_devices(monkeypatch):
    fake = SimpleNamespace(
        nvmlInit=lambda: None, nvmlDeviceGetCount=lambda: 3, nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetHandleByUUID=lambda name: 2,
        nvmlDeviceGetMemoryInfo=lambda at: SimpleNamespace(free=(at + 1) * GB),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    for visible, free in ((None, [1, 2, 3]), ("1", [2]), ("2,0", [3, 1]), ("GPU-abc", [3]), ("", [])):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert free_memory.device_memory() == [size * GB for size in free]
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed: the CUDA runtime is asked
    here = SimpleNamespace(getDeviceCount=lambda: 2, memGetInfo=lambda: (7 * GB, 80 * GB))
    cuda = SimpleNamespace(runtime=here, Device=lambda number: nullcontext())
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    assert free_memory.device_memory() == [7 * GB] * 2
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert free_memory.device_memory() == []
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert cluster._partition(64 * GB, gpu=True) == GB // 8 and cluster._partition(64 * GB, gpu=False) == GB // 2


@pytest.mark.parametrize("number", [28, 122])
def test_full_disk(number):
    def full(_):
        raise OSError(number, "No space left", "/run/x")

    with pytest.raises(InputError, match=r"shuffle: the disk is full .*/run/x.*run the same command again"):
        SINGLE.map(full, [1], "shuffle")


def test_out_of_memory_names_the_setting_and_other_errors_pass():
    def huge(_):
        raise MemoryError

    def refused(_):
        raise KeyError("no")

    with pytest.raises(InputError, match=r"sort: out of memory: set cluster\.partition_size lower"):
        SINGLE.map(huge, [1], "sort")
    with pytest.raises(KeyError):
        SINGLE.map(refused, [1], "sort")


def test_dashboards_and_workers_listen_on_loopback_only():
    import psutil

    with engine(ClusterConfig(kind="local", workers=2, memory_limit="1GB")) as on:
        assert on.map(abs, [-1, 2], "abs") == [1, 2]
        me = psutil.Process()
        open_ports = [c for process in (me, *me.children(recursive=True)) for c in _listening(process)]
    assert len(open_ports) >= 4
    assert {connection.laddr.ip for connection in open_ports} <= {"127.0.0.1", "::1"}


def _listening(process) -> list:
    ask = getattr(process, "net_connections", None) or process.connections  # renamed in psutil 6
    return [connection for connection in ask("tcp") if connection.status == "LISTEN"]


def test_results_come_in_order_of_the_tasks(capfd):
    for workers in (1, 4):
        on = Engine("single", False, workers, 1 << 30, 1 << 30)
        assert on.map(lambda task: task * 2, list(range(50)), "double", rows=1000) == list(range(0, 100, 2))
        assert "double: 50 parts in" in capfd.readouterr().err
