"""One GPU for this process: cudf and cupy share a pool of device memory that is released after the work."""

import gc
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

# Of numpy and pandas, or on a GPU of cupy and cudf, which have no types.
Array: TypeAlias = Any
Series: TypeAlias = Any
Frame: TypeAlias = Any
_ALIGN = 256  # bytes; rmm requires multiples of it


def libraries() -> tuple[ModuleType, ModuleType]:
    """(cudf, cupy)."""
    for old, new in (("row_stack", "vstack"), ("in1d", "isin"), ("trapz", "trapezoid")):
        if not hasattr(np, old):  # numba-cuda 0.30, which cudf imports, does not support numpy 2.5
            setattr(np, old, getattr(np, new))
    return importlib.import_module("cudf"), importlib.import_module("cupy")


def to_host(values: Array) -> np.ndarray:
    """A numpy or cupy array as numpy."""
    return values if isinstance(values, np.ndarray) else values.get()


@contextmanager
def open_device(free: int) -> Iterator[tuple[ModuleType, ModuleType]]:
    """(cudf, cupy), both on one rmm pool that starts at half of `free` bytes and is released at the end.

    Drop every array before that. If rmm has no such pool, each library allocates for itself: slower, but correct.
    """
    os.environ.setdefault("KVIKIO_NTHREADS", str(min(os.cpu_count() or 1, 16)))  # threads that read one file
    cudf, cupy = libraries()
    before = None
    with suppress(Exception):
        before = _start_pool(cupy, free // 2 // _ALIGN * _ALIGN)
    try:
        yield cudf, cupy
    finally:
        if before is not None:
            gc.collect()  # a reference cycle would keep the pool alive
            rmm = importlib.import_module("rmm")
            rmm.mr.set_current_device_resource(before[0])
            cupy.cuda.set_allocator(before[1])


def _start_pool(cupy: ModuleType, size: int) -> tuple:
    """Switch both libraries to a pool; returns the memory resource and the allocator that were there."""
    rmm = importlib.import_module("rmm")
    allocate = importlib.import_module("rmm.allocators.cupy").rmm_cupy_allocator
    before = rmm.mr.get_current_device_resource(), cupy.cuda.get_allocator()
    rmm.mr.set_current_device_resource(rmm.mr.PoolMemoryResource(rmm.mr.CudaMemoryResource(), size))
    cupy.cuda.set_allocator(allocate)
    return before
