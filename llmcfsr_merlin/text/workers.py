"""Runs a function in several processes of this machine: one per GPU, or sharing the CPU cores."""

import os
import socket
from collections.abc import Callable

import torch


def run_workers(function: Callable, workers: int, *arguments: object) -> None:
    """Call function(rank, workers, *arguments) in `workers` processes, as accelerate and torch.distributed expect them.

    With one worker it is called in this process. An error in any process stops them all and is raised here.
    """
    if workers == 1:
        function(0, 1, *arguments)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_start, (workers, port, function, arguments), nprocs=workers)


def worker_device(device: str, rank: int) -> str:
    """A worker's device: GPU `rank` if `device` is auto or cuda and there are GPUs."""
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{rank % torch.cuda.device_count()}"
    return "cpu" if device == "auto" else device


def _start(rank: int, workers: int, port: int, function: Callable, arguments: tuple) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(workers),
        "LOCAL_WORLD_SIZE": str(workers),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    try:
        function(rank, workers, *arguments)
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
