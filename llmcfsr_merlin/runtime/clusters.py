"""The dask clusters that an engine starts or joins."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.free_memory import bytes_of, device_memory, has_gpu, said_size

if TYPE_CHECKING:
    from distributed import Client

    from llmcfsr_merlin.config.cluster_settings import ClusterConfig

# Seconds in which a scheduler, and then its first worker, must answer.
_PATIENCE = 20


@contextmanager
def cluster_client(kind: str, config: "ClusterConfig", workers: int, memory: int) -> Iterator[Any]:
    """The dask client of a kind of cluster, None in this process; a cluster started here ends with the block."""
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
        make = partial(LocalCUDACluster, **cuda_arguments(config, workers, memory, min(device_memory())))
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
    pool = bytes_of(config.rmm_pool_size, "cluster.rmm_pool_size") or free // 2
    limit = bytes_of(config.device_memory_limit, "cluster.device_memory_limit") or free // 10 * 8
    most = max(pool, free // 10 * 9)
    if pool > free or limit > free:
        raise InputError(
            f"cluster.rmm_pool_size and cluster.device_memory_limit: expected at most the {said_size(free)} free "
            f"on the GPU, found {said_size(pool)} and {said_size(limit)}: set them lower or stop what else uses the GPU"
        )
    align = 256  # rmm requires multiples of it
    return {
        "n_workers": workers, "threads_per_worker": 1, "memory_limit": memory,
        "device_memory_limit": limit if config.spill else None,
        "rmm_pool_size": pool // align * align, "rmm_maximum_pool_size": most // align * align,
    }  # fmt: skip


def joined(client: "Client", config: "ClusterConfig", memory: int) -> tuple[int, int, bool]:
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
