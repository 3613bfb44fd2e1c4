"""cudf itself, with the libcudf that prune.py left: a sum, ids to codes, order, and the memory pool."""

import tempfile
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.gpu.record import Skip

NAMES = ["b", "é", "a", "Z", "\U0001f600", "zz", None, "\uffff", "a"]


def run(record, small: bool) -> None:
    try:
        frames, arrays = _rapids()
    except Skip:
        if not small:
            raise
        frames, arrays = pd, np  # a dry run of the same code
    record("frames", f"{frames.__name__} {frames.__version__}")
    record.part("sum", lambda: {"sum": int(frames.Series([1, 2]).sum())})
    if frames is not pd:
        record.part("pool", lambda: pool(small))
    record.part("names", lambda: names(frames))
    record.part("frame", lambda: frame(frames, arrays, 20_000 if small else 10_000_000))


def _rapids():
    for old, new in (("row_stack", "vstack"), ("in1d", "isin"), ("trapz", "trapezoid")):
        if not hasattr(np, old):  # numpy 2.5 removed them; numba-cuda up to 0.30.4 looks them up if there is a GPU
            setattr(np, old, getattr(np, new))
    try:
        import cudf
        import cupy
    except ImportError as missing:
        raise Skip(f"cudf cannot be imported: {missing}") from missing
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise Skip(f"cudf has no device: {error}") from error
    return cudf, cupy


def pool(small: bool) -> dict:
    """One pool for cudf and cupy, as stage `prepare` takes it."""
    import cupy
    import rmm
    from rmm.allocators.cupy import rmm_cupy_allocator

    rmm.reinitialize(pool_allocator=True, initial_pool_size=(1 if small else 20) << 30)
    cupy.cuda.set_allocator(rmm_cupy_allocator)
    return {"pool": True}


def names(frames) -> dict:
    """The order of ids is that of their bytes, as in Arrow, and a missing id has code -1."""
    column = frames.Series(NAMES)
    codes = column.factorize()[0]
    ordered = column.sort_values()
    ordered = ordered.to_arrow().to_pylist() if hasattr(ordered, "to_arrow") else ordered.tolist()
    wanted = sorted((name for name in NAMES if name is not None), key=lambda name: name.encode())
    return {
        "byte_order": [name for name in ordered if isinstance(name, str)] == wanted,
        "null_code": int(codes[NAMES.index(None)]),
    }


def frame(frames, arrays, rows: int) -> dict:
    """Seconds of what `prepare` is made of, first and second time (kernels are compiled at their first use)."""
    random = np.random.default_rng(0)
    columns = {
        "user_id": pa.array(random.integers(0, rows // 10, rows)).cast(pa.string()),
        "timestamp": random.integers(0, 1 << 30, rows),
    }
    found: dict = {"rows": rows}
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(pa.table(columns), f"{folder}/part.parquet", row_group_size=1 << 20)
        for turn in ("first", "second"):
            clock = _Clock(arrays)
            table = clock("read_parquet", lambda: frames.read_parquet(f"{folder}/part.parquet"))
            codes, ids = clock("factorize", lambda table=table: table["user_id"].factorize())
            clock("sort_ids", lambda ids=ids: ids.to_series().sort_values())
            codes = arrays.asarray(codes)
            key = codes.astype("int64") << 31 | arrays.asarray(table["timestamp"].values)
            clock("argsort", lambda key=key: arrays.argsort(key))
            clock("bincount", lambda codes=codes: arrays.bincount(codes))
            found[turn] = clock.seconds
    return found


class _Clock:
    """Runs work, waits for the device, and keeps the seconds."""

    def __init__(self, arrays):
        self.arrays, self.seconds = arrays, {}

    def __call__(self, name: str, work):
        start = time.perf_counter()
        value = work()
        if self.arrays is not np:
            self.arrays.cuda.Device().synchronize()
        self.seconds[name] = round(time.perf_counter() - start, 4)
        return value
