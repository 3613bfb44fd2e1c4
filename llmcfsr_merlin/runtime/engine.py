"""The execution engine of ingest and prepare: this process, a dask LocalCluster, dask-cuda, or an existing scheduler.

A stage is written once, as plain functions of files (read some, write some, return small counts), and `Engine.map` runs
them on the engine. Nothing large travels between workers: they share the run directory.
"""

import importlib.util
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from rich.table import Table
from tqdm import tqdm

from llmcfsr_merlin.runtime.console import rendered
from llmcfsr_merlin.runtime.errors import InputError, MissingDependency
from llmcfsr_merlin.runtime.failures import clear_failures

if TYPE_CHECKING:
    from llmcfsr_merlin.config.cluster_settings import ClusterConfig

_log = logging.getLogger(__name__)

# Peak resident bytes per interaction in a worker (ids, keys and the permutation of a sort).
BYTES_PER_ROW = 160
# Seconds to wait for a scheduler, and then for its first worker.
_PATIENCE = 20


@dataclass
class Engine:
    """Where the work runs. `client` is None in-process; `gpu`: tasks read with cudf and compute with cupy."""

    kind: str
    gpu: bool
    workers: int
    memory: int
    """Bytes a worker may use."""
    partition: int
    """Target bytes of a partition in a worker's memory."""
    client: Any = None
    device_memory: int = 0
    """Bytes free on the one GPU of this process; 0 if there is none or workers have theirs."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds per step so far."""

    @property
    def partition_rows(self) -> int:
        """Interactions in a partition."""
        return max(1, self.partition // BYTES_PER_ROW)

    def map(self, function: Callable, tasks: Sequence, stage: str, rows: int = 0) -> list:
        """[function(task) for task in tasks] in order, with a progress bar named `stage` (rows/s if rows is given).

        Raises InputError with advice if a worker keeps dying, memory or disk runs out, or the
        scheduler disappears; other errors pass unchanged.
        """
        results: list = [None] * len(tasks)
        start = time.perf_counter()
        quiet = not sys.stderr.isatty()
        with clear_failures(stage), tqdm(total=len(tasks), desc=stage, unit="part", disable=quiet, leave=False) as bar:
            for index, result in self._run(function, tasks):
                results[index] = result
                bar.update()
                if rows and not quiet:
                    done = rows * bar.n / len(tasks)
                    bar.set_postfix_str(f"{done / max(time.perf_counter() - start, 1e-9):,.0f} rows/s")
        self._done(stage, f"{len(tasks)} part{'s' * (len(tasks) != 1)}", start, rows)
        return results

    @contextmanager
    def step(self, stage: str, rows: int) -> Iterator[None]:
        """Time work that this process does in one go, and report it as `map` does."""
        start = time.perf_counter()
        yield
        self._done(stage, "in memory", start, rows)

    def say(self, line: str) -> None:
        """One line on stderr."""
        _say(line)

    def _done(self, stage: str, what: str, start: float, rows: int) -> None:
        seconds = max(time.perf_counter() - start, 1e-9)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        speed = f", {rows:,} rows, {rows / seconds:,.0f} rows/s" if rows else ""
        _say(f"{stage}: {what} in {seconds:.1f} s{speed}")

    def _run(self, function: Callable, tasks: Sequence) -> Iterator[tuple[int, object]]:
        if self.client is None:
            if self.workers == 1 or len(tasks) < 2:
                yield from ((index, function(task)) for index, task in enumerate(tasks))
                return
            with ThreadPoolExecutor(self.workers) as pool:
                yield from enumerate(pool.map(function, tasks))
            return
        from distributed import as_completed

        futures = {future: index for index, future in enumerate(self.client.map(function, tasks, pure=False))}
        try:
            for future in as_completed(futures, loop=self.client.loop):
                yield futures[future], future.result()
        except FileNotFoundError as error:
            if self.kind != "scheduler":
                raise
            raise InputError(
                f"a worker of cluster.scheduler does not see this process's files ({error}): its workers need the "
                "run directory under the same path"
            ) from error
        finally:
            if self.client.status == "running":
                self.client.cancel(list(futures))


@contextmanager
def engine(config: "ClusterConfig") -> Iterator[Engine]:
    """Choose and start the engine, log the choice, and stop it at the end.

    Raises MissingDependency if cuda was asked for and cudf, dask-cuda or a GPU is missing, and InputError for a
    scheduler that does not answer or a size that cannot be read.
    """
    gpus = _gpus() if config.kind in ("auto", "cuda") else []
    kind: str = config.kind if config.kind != "auto" else ("cuda" if gpus else "single")
    alone = _one_process(config, len(gpus))
    if config.scheduler:
        kind, alone = "scheduler", False
    if kind == "cuda" and (not gpus or (not alone and _absent("dask_cuda"))):
        missing = ", ".join(_absent("cudf", "cupy", *(() if alone else ("dask_cuda",))))
        raise MissingDependency(
            "cluster.kind=cuda needs a CUDA GPU, cudf and cupy, for several GPUs dask-cuda too, found "
            f"{missing or 'no usable GPU'}: use the Merlin container or `pip install cudf-cu13 dask-cuda`, "
            "or set cluster.kind=local"
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = config.workers or (len(gpus) if kind == "cuda" else cores)
    if alone:  # threads: they write the results of one GPU
        workers = config.workers if config.kind == "auto" and config.workers else cores
    memory = _bytes(config.memory_limit, "cluster.memory_limit") or int(available_memory() * 0.7 / workers)
    wanted = _bytes(config.partition_size, "cluster.partition_size")
    with _client("single" if alone else kind, config, workers, memory) as client:
        gpu = kind == "cuda"
        if kind == "scheduler":
            workers, memory, gpu = _joined(client, config, memory)
        # All threads may be on the one device at once, if the log does not fit it in one go.
        size = min(_partition(memory, False), gpus[0] // (2 * workers)) if alone else _partition(memory, gpu)
        chosen = Engine(kind, gpu, workers, memory, wanted or size, client, gpus[0] if alone else 0)
        where = f", dashboard {client.dashboard_link}" if client is not None else ""
        if alone:
            where = f", {_size(gpus[0])} of GPU memory free"
        _say(
            f"engine: {kind} on {'GPU' if gpu else 'CPU'}, {workers} worker{'s' if workers > 1 else ''} "
            f"of {_size(memory)}, partitions of {_size(chosen.partition)} (about {chosen.partition_rows:,} rows){where}"
        )
        yield chosen


def _one_process(config: "ClusterConfig", gpus: int) -> bool:
    """Whether one GPU is used by this process: there is one, one is asked for, or dask-cuda is not there for more."""
    if config.kind == "cuda":
        return gpus > 0 and (config.workers or gpus) == 1
    return gpus == 1 or (gpus > 1 and bool(_absent("dask_cuda")))


def _partition(memory: int, gpu: bool) -> int:
    """A third of a worker's memory, within limits: a GPU needs larger partitions to be busy."""
    if gpu and (free := _device_memory()):
        return min(memory // 3, max(min(free) // 8, 32 << 20), 4 << 30)
    return min(max(memory // 3, 32 << 20), 512 << 20)


@contextmanager
def _client(kind: str, config: "ClusterConfig", workers: int, memory: int):
    if kind == "single":
        yield None
        return
    from distributed import Client, LocalCluster
    from distributed import TimeoutError as NoAnswer  # before Python 3.11 not the builtin one

    if kind == "scheduler":
        try:
            client = Client(config.scheduler, timeout=_PATIENCE, set_as_default=False)
        except (OSError, NoAnswer, ValueError) as error:
            raise InputError(
                f"cluster.scheduler: no dask scheduler answers at {config.scheduler} ({error}): start it or unset it"
            ) from error
        with client:
            yield client
        return
    if kind == "cuda":
        from dask_cuda import LocalCUDACluster

        if config.spill:
            os.environ.setdefault("CUDF_SPILL", "on")  # cudf reads it in the workers, which inherit it
        make = partial(LocalCUDACluster, **cuda_arguments(config, workers, memory, min(_device_memory())))
    else:
        make = partial(LocalCluster, n_workers=workers, threads_per_worker=1, memory_limit=memory)
    # Not the default client: NVTabular would send its vocabulary to it, and every worker would import torch.
    # The defaults of both, the scheduler's and the workers', listen on every interface.
    cluster = make(dashboard_address="127.0.0.1:0", worker_dashboard_address="127.0.0.1:0")
    try:
        with Client(cluster, set_as_default=False) as client:
            yield client
    finally:
        with suppress(NoAnswer):  # a worker that is being restarted; the processes end with this one
            cluster.close(timeout=_PATIENCE)


def cuda_arguments(config: "ClusterConfig", workers: int, memory: int, free: int) -> dict:
    """Arguments of LocalCUDACluster. free: bytes free on the fullest GPU; unset sizes are shares of it.

    The pool starts at half and may grow to nine tenths, which leaves the driver and its context their room; tasks are
    asked to spill to the host from 80% on. In bytes, because older dask-cuda takes no shares.
    """
    pool = _bytes(config.rmm_pool_size, "cluster.rmm_pool_size") or free // 2
    limit = _bytes(config.device_memory_limit, "cluster.device_memory_limit") or free // 10 * 8
    most = max(pool, free // 10 * 9)
    if pool > free or limit > free:
        raise InputError(
            f"cluster.rmm_pool_size and cluster.device_memory_limit: expected at most the {_size(free)} that are free "
            f"on the GPU, found {_size(pool)} and {_size(limit)}: set them lower or stop what else uses the GPU"
        )
    align = 256  # rmm requires multiples of it
    return {
        "n_workers": workers, "threads_per_worker": 1, "memory_limit": memory,
        "device_memory_limit": limit if config.spill else None,
        "rmm_pool_size": pool // align * align, "rmm_maximum_pool_size": most // align * align,
    }  # fmt: skip


def _joined(client, config: "ClusterConfig", memory: int) -> tuple[int, int, bool]:
    """Tasks that an existing cluster runs at once, the bytes each may use, and whether all its workers have GPUs."""
    from distributed import TimeoutError as NoAnswer

    try:
        client.wait_for_workers(1, timeout=_PATIENCE)
    except NoAnswer as error:
        raise InputError(
            f"cluster.scheduler: the scheduler at {config.scheduler} has no worker: start `dask worker "
            f"{config.scheduler}`, or unset it"
        ) from error
    found = client.scheduler_info()["workers"].values()
    shares = [worker["memory_limit"] // worker["nthreads"] for worker in found if worker.get("memory_limit")]
    if config.memory_limit is None and shares:
        memory = min(shares)
    answers = client.run(has_gpu, on_error="return").values()
    for answer in answers:
        if "ModuleNotFoundError" in repr(answer):  # as a plain Exception with that text
            raise InputError(
                f"cluster.scheduler: a worker of {config.scheduler} cannot import this package ({answer}): install "
                "llmcfsr-merlin in the environment of the workers"
            )
    has = [answer for answer in answers if not isinstance(answer, Exception)]  # a worker that has just left raises one
    gpu = config.kind in ("auto", "cuda") and bool(has) and all(has)
    return max(1, sum(worker["nthreads"] for worker in found)), memory, gpu


def has_gpu() -> bool:
    """Whether cudf, cupy and a CUDA device are available."""
    return bool(_gpus())


def _gpus() -> list[int]:
    """Free bytes of each GPU that can be used."""
    return [] if _absent("cudf", "cupy") else _device_memory()


def available_memory() -> int:
    """Bytes that this process may still use: free memory, or less in a container with a limit."""
    free = psutil.virtual_memory().available
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            free = min(free, int(Path(name).read_text()))
        except (OSError, ValueError):
            continue
    return free


def print_counts(title: str, lines: Sequence[tuple[str, object]]) -> None:
    """Log a two-column table: rows in, dropped (and why), out."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    for name, value in lines:
        table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    _say(rendered(table))


def _absent(*names: str) -> list[str]:
    """`no <name>` for each library that is not installed."""
    return [f"no {name}" for name in names if importlib.util.find_spec(name) is None]


def _device_memory() -> list[int]:
    """Free bytes per GPU from the driver's library: creates no CUDA context, which is left to the workers."""
    try:
        import pynvml
    except ImportError:
        return _by_runtime()
    try:
        pynvml.nvmlInit()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(pynvml.nvmlDeviceGetCount()))))
        names = [name.strip() for name in visible.split(",") if name.strip()]
        by_index, by_name = pynvml.nvmlDeviceGetHandleByIndex, pynvml.nvmlDeviceGetHandleByUUID
        devices = [by_index(int(name)) if name.isdigit() else by_name(name.encode()) for name in names]
        return [int(pynvml.nvmlDeviceGetMemoryInfo(device).free) for device in devices]
    except Exception:  # no driver, no library, no device, a MIG slice: ask the runtime
        return _by_runtime()


def _by_runtime() -> list[int]:
    """Free bytes per GPU from the CUDA runtime, which creates a context on each."""
    try:
        import cupy

        free = []
        for number in range(cupy.cuda.runtime.getDeviceCount()):
            with cupy.cuda.Device(number):
                free.append(int(cupy.cuda.runtime.memGetInfo()[0]))
        return free
    except Exception:  # no driver, no library, no device: all mean none
        return []


def _say(line: str) -> None:
    _log.info("%s", line)


def _bytes(text: str | None, key: str) -> int | None:
    if text is None:
        return None
    from dask.utils import parse_bytes

    try:
        return int(parse_bytes(text))
    except ValueError as error:
        raise InputError(f'{key}: expected a size like "4GB", found {text!r}') from error


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{max(count >> 20, 1)} MiB"
