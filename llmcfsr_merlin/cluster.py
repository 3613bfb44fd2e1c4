"""The engine under ingest and prepare: this process, a dask LocalCluster, dask-cuda, or a scheduler already there.

A stage is written once, as plain functions of files (read some, write some, return small counts), and `Engine.map` runs
them wherever the engine is. Nothing large travels between workers: they share the run directory.
"""

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from llmcfsr_merlin.config import ClusterConfig
from llmcfsr_merlin.errors import InputError, MissingDependency

# Resident bytes that one interaction costs a worker at the widest point (ids, keys and the permutation of a sort).
BYTES_PER_ROW = 160


@dataclass
class Engine:
    """Where the work runs. `client` is None in-process; `gpu` says that tasks read with cudf and compute with cupy."""

    kind: str
    gpu: bool
    workers: int
    memory: int
    """Bytes a worker may use."""
    partition: int
    """Target bytes of a partition in a worker's memory."""
    client: object = None

    @property
    def partition_rows(self) -> int:
        """Interactions in a partition."""
        return max(1, self.partition // BYTES_PER_ROW)

    def map(self, function: Callable, tasks: Sequence, stage: str, rows: int = 0) -> list:
        """[function(task) for task in tasks] in order, with a progress bar named `stage` (rows/s where rows is given).

        Raises InputError with a way out where a worker dies or the disk is full; other errors pass unchanged.
        """
        results = [None] * len(tasks)
        start = time.perf_counter()
        quiet = not sys.stderr.isatty()
        try:
            with tqdm(total=len(tasks), desc=stage, unit="part", disable=quiet, leave=False) as bar:
                for index, result in self._run(function, tasks):
                    results[index] = result
                    bar.update()
                    if rows:
                        done = rows * bar.n / len(tasks) if not quiet else 0
                        bar.set_postfix_str(f"{done / max(time.perf_counter() - start, 1e-9):,.0f} rows/s")
        except OSError as error:
            if error.errno in (28, 122):  # no space left, quota exceeded
                raise InputError(
                    f"{stage}: the disk is full ({error.filename or 'run directory'}): free space or move the run "
                    "directory, then run the same command again"
                ) from error
            raise
        except MemoryError as error:
            raise InputError(
                f"{stage}: out of memory with partitions of {_size(self.partition)}: set cluster.partition_size lower"
            ) from error
        return results

    def _run(self, function: Callable, tasks: Sequence) -> Iterator[tuple[int, object]]:
        if self.client is None:
            if self.workers == 1 or len(tasks) < 2:
                yield from ((index, function(task)) for index, task in enumerate(tasks))
                return
            with ThreadPoolExecutor(self.workers) as pool:
                yield from enumerate(pool.map(function, tasks))
            return
        from distributed import as_completed
        from distributed.scheduler import KilledWorker

        futures = {future: index for index, future in enumerate(self.client.map(function, tasks, pure=False))}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except KilledWorker as error:
            raise InputError(
                "a dask worker died repeatedly, most often from too little memory: set cluster.partition_size lower or "
                "cluster.memory_limit higher, then run the same command again"
            ) from error
        finally:
            self.client.cancel(list(futures))


@contextmanager
def engine(config: ClusterConfig) -> Iterator[Engine]:
    """Choose and start the engine, print what was chosen, and stop it at the end.

    Raises MissingDependency where cuda was asked for and cudf, dask-cuda or a GPU is missing, and InputError for a
    scheduler that does not answer or a size that cannot be read.
    """
    gpu_here = has_gpu()
    kind = config.kind if config.kind != "auto" else ("cuda" if gpu_here else "single")
    if config.scheduler:
        kind = "scheduler"
    if config.kind == "cuda" and not gpu_here:
        raise MissingDependency(
            "cluster.kind=cuda needs a CUDA GPU, cudf and dask-cuda, found "
            f"{_missing() or 'no usable GPU'}: use the Merlin container or `pip install cudf-cu12 dask-cuda`, "
            "or set cluster.kind=local"
        )
    gpu = gpu_here and kind in ("cuda", "scheduler") and config.kind != "local"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = config.workers or (_gpus() if kind == "cuda" else cores)
    memory = _bytes(config.memory_limit, "cluster.memory_limit") or int(available_memory() * 0.7 / workers)
    partition = _bytes(config.partition_size, "cluster.partition_size") or min(max(memory // 3, 32 << 20), 512 << 20)
    with _client(kind, config, workers, memory) as client:
        if kind == "scheduler":
            workers = max(1, len(client.scheduler_info()["workers"]))
        chosen = Engine(kind, gpu, workers, memory, partition, client)
        where = f", dashboard {client.dashboard_link}" if client is not None else ""
        Console(stderr=True).print(
            f"engine: {kind} on {'GPU' if gpu else 'CPU'}, {workers} worker{'s' if workers > 1 else ''} "
            f"of {_size(memory)}, partitions of {_size(partition)} (about {chosen.partition_rows:,} rows){where}",
            highlight=False,
            soft_wrap=True,
        )
        yield chosen


@contextmanager
def _client(kind: str, config: ClusterConfig, workers: int, memory: int):
    if kind == "single":
        yield None
        return
    from distributed import Client, LocalCluster

    if kind == "scheduler":
        try:
            client = Client(config.scheduler, timeout="20s")
        except (OSError, TimeoutError, ValueError) as error:
            raise InputError(
                f"cluster.scheduler: no dask scheduler answers at {config.scheduler} ({error}): start it or unset it"
            ) from error
        with client:
            yield client
        return
    if kind == "cuda":
        from dask_cuda import LocalCUDACluster

        # Spill to host at 80% of the device; the pool leaves a tenth of the device to the driver and to torch.
        make = partial(
            LocalCUDACluster, n_workers=workers, device_memory_limit=0.8, rmm_pool_size=0.5, rmm_maximum_pool_size=0.9
        )
    else:
        make = partial(LocalCluster, n_workers=workers, threads_per_worker=1, memory_limit=memory)
    with make(dashboard_address=":0") as cluster, Client(cluster) as client:
        yield client


def has_gpu() -> bool:
    """Whether cudf, dask-cuda and a CUDA device are here."""
    return not _missing() and _gpus() > 0


def available_memory() -> int:
    """Bytes that this process may still use: the machine's, or less in a container with a limit."""
    free = psutil.virtual_memory().available
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            free = min(free, int(Path(name).read_text()))
        except (OSError, ValueError):
            continue
    return free


def print_counts(title: str, lines: Sequence[tuple[str, object]]) -> None:
    """A two-column table on stderr: rows in, dropped (and why), out."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    for name, value in lines:
        table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    Console(stderr=True).print(table)


def _missing() -> str:
    return ", ".join(f"no {name}" for name in ("cudf", "cupy", "dask_cuda") if importlib.util.find_spec(name) is None)


def _gpus() -> int:
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetCount()
    except Exception:  # no driver, no library, no device: all mean none
        return 0


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
