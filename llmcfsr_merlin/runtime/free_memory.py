"""Memory that is free here: of this process, and of each GPU."""

import importlib.util
import os
from pathlib import Path

import psutil

from llmcfsr_merlin.runtime.errors import InputError


def has_gpu() -> bool:
    """Whether cudf, cupy and a CUDA device are available."""
    return bool(usable_gpus())


def usable_gpus() -> list[int]:
    """Free bytes of each GPU that can be used."""
    return [] if absent("cudf", "cupy") else device_memory()


def available_memory() -> int:
    """Bytes that this process may still use: free memory, or less in a container with a limit."""
    free = psutil.virtual_memory().available
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            free = min(free, int(Path(name).read_text()))
        except (OSError, ValueError):
            continue
    return free


def absent(*names: str) -> list[str]:
    """`no <name>` for each library that is not installed."""
    return [f"no {name}" for name in names if importlib.util.find_spec(name) is None]


def device_memory() -> list[int]:
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


def bytes_of(text: str | None, key: str) -> int | None:
    """Bytes of a size such as "4GB" under the setting `key`; None for none, InputError if it cannot be read."""
    if text is None:
        return None
    from dask.utils import parse_bytes

    try:
        return int(parse_bytes(text))
    except ValueError as error:
        raise InputError(f'{key}: expected a size like "4GB", found {text!r}') from error


def said_size(count: int) -> str:
    """Bytes in words: 1.5 GiB, 512 MiB."""
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{max(count >> 20, 1)} MiB"
