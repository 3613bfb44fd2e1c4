"""The execution engine of ingest and prepare: this process, a dask LocalCluster, dask-cuda, or an existing scheduler.

A stage is written once, as plain functions of files (read some, write some, return small counts), and `Engine.map` runs
them on the engine. Nothing large travels between workers: they share the run directory.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.table import Table

from llmcfsr_merlin.runtime.clusters import cluster_client, joined
from llmcfsr_merlin.runtime.console import rendered
from llmcfsr_merlin.runtime.errors import InputError, MissingDependency
from llmcfsr_merlin.runtime.failures import clear_failures
from llmcfsr_merlin.runtime.free_memory import (
    absent,
    available_memory,
    bytes_of,
    device_memory,
    said_size,
    usable_gpus,
)
from llmcfsr_merlin.runtime.progress import Progress, announced

if TYPE_CHECKING:
    from llmcfsr_merlin.config.cluster_settings import ClusterConfig

_log = logging.getLogger(__name__)

# Peak resident bytes per interaction in a worker (ids, keys and the permutation of a sort).
BYTES_PER_ROW = 160


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
        with clear_failures(stage), Progress(len(tasks), stage, "parts") as progress:
            for index, result in self._run(function, tasks):
                results[index] = result
                if rows:
                    done = rows * (progress.n + 1) / len(tasks)
                    progress.say(f"{done / max(time.perf_counter() - start, 1e-9):,.0f} rows/s")
                progress.update()
        self._done(stage, f"{len(tasks)} part{'s' * (len(tasks) != 1)}", start, rows)
        return results

    @contextmanager
    def step(self, stage: str, rows: int) -> Iterator[None]:
        """Time work that this process does in one go, and report it as `map` does."""
        start = time.perf_counter()
        with announced(stage):
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
    gpus = usable_gpus() if config.kind in ("auto", "cuda") else []
    kind: str = config.kind if config.kind != "auto" else ("cuda" if gpus else "single")
    alone = _one_process(config, len(gpus))
    if config.scheduler:
        kind, alone = "scheduler", False
    if kind == "cuda" and (not gpus or (not alone and absent("dask_cuda"))):
        missing = ", ".join(absent("cudf", "cupy", *(() if alone else ("dask_cuda",))))
        raise MissingDependency(
            "cluster.kind=cuda needs a CUDA GPU, cudf and cupy, for several GPUs dask-cuda too, found "
            f"{missing or 'no usable GPU'}: use the Merlin container or `pip install cudf-cu13 dask-cuda`, "
            "or set cluster.kind=local"
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = config.workers or (len(gpus) if kind == "cuda" else cores)
    if alone:  # threads: they write the results of one GPU
        workers = config.workers if config.kind == "auto" and config.workers else cores
    memory = bytes_of(config.memory_limit, "cluster.memory_limit") or int(available_memory() * 0.7 / workers)
    wanted = bytes_of(config.partition_size, "cluster.partition_size")
    with cluster_client("single" if alone else kind, config, workers, memory) as client:
        gpu = kind == "cuda"
        if kind == "scheduler":
            workers, memory, gpu = joined(client, config, memory)
        # All threads may be on the one device at once, if the log does not fit it in one go.
        size = min(_partition(memory, False), gpus[0] // (2 * workers)) if alone else _partition(memory, gpu)
        chosen = Engine(kind, gpu, workers, memory, wanted or size, client, gpus[0] if alone else 0)
        where = f", dashboard {client.dashboard_link}" if client is not None else ""
        if alone:
            where = f", {said_size(gpus[0])} of GPU memory free"
        _say(
            f"engine: {kind} on {'GPU' if gpu else 'CPU'}, {workers} worker{'s' if workers > 1 else ''} "
            f"of {said_size(memory)}, partitions of {said_size(chosen.partition)} "
            f"(about {chosen.partition_rows:,} rows){where}"
        )
        yield chosen


def _one_process(config: "ClusterConfig", gpus: int) -> bool:
    """Whether one GPU is used by this process: there is one, one is asked for, or dask-cuda is not there for more."""
    if config.kind == "cuda":
        return gpus > 0 and (config.workers or gpus) == 1
    return gpus == 1 or (gpus > 1 and bool(absent("dask_cuda")))


def _partition(memory: int, gpu: bool) -> int:
    """A third of a worker's memory, within limits: a GPU needs larger partitions to be busy."""
    if gpu and (free := device_memory()):
        return min(memory // 3, max(min(free) // 8, 32 << 20), 4 << 30)
    return min(max(memory // 3, 32 << 20), 512 << 20)


def print_counts(title: str, lines: Sequence[tuple[str, object]]) -> None:
    """Log a two-column table: rows in, dropped (and why), out."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    for name, value in lines:
        table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    _say(rendered(table))


def _say(line: str) -> None:
    _log.info("%s", line)
