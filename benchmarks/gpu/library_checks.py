"""What stage prepare asks of cudf and cupy: each thing checked on its own, and other ways to do it timed."""

import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


class Pandas:
    """pandas with the one call of cudf that it has not: row groups of several files."""

    @staticmethod
    def read_parquet(paths, columns, row_groups, use_pandas_metadata):
        import pandas as pd

        files = zip(map(pq.ParquetFile, paths), row_groups)
        return pd.concat([file.read_row_groups(groups, columns).to_pandas() for file, groups in files])

    @staticmethod
    def Series(values):
        import pandas as pd

        return pd.Series(values)

    @staticmethod
    def concat(series, ignore_index):
        import pandas as pd

        return pd.concat(series, ignore_index=ignore_index)


def checks(small: bool) -> dict[str, str]:
    """Each thing that the program asks of the libraries, on its own: "ok" or what went wrong."""
    if small:
        import pandas as frames

        xp = np
    else:
        import cudf as frames
        import cupy as xp
    from llmcfsr_merlin.dataset.prepare.numbering import _by_hash, encode, to_arrow
    from llmcfsr_merlin.dataset.prepare.order import order_rows
    from llmcfsr_merlin.runtime.device import to_host

    texts = ["b", "", "\u00e9", "a", None, "\uffee", "\U0001f600", "Z", "a", "\u65e5\u672c", "b"]

    def order_of_texts():
        distinct = frames.Series(encode(frames.Series(texts), xp)[1]).reset_index(drop=True).sort_values()
        order = to_arrow(distinct).to_pylist()
        assert order == sorted({text for text in texts if text is not None}, key=str.encode), order
        assert to_host(xp.asarray(distinct.index.values)).dtype == np.int64

    def codes_of_texts():
        codes, distinct = encode(frames.Series(texts), xp)
        names = to_arrow(distinct).to_pylist()
        assert [None if code < 0 else names[code] for code in to_host(codes).tolist()] == texts

    def hashed_texts():
        found = _by_hash(frames.Series(texts), xp)
        assert found is not None, "not by hash"
        names = to_arrow(found[1]).to_pylist()
        assert [None if code < 0 else names[code] for code in to_host(found[0]).tolist()] == texts

    def joined_texts():
        both = frames.concat([frames.Series(["x", "y"]), frames.Series(["z", "x"])], ignore_index=True)
        assert to_host(encode(both, xp)[0]).tolist() == [0, 1, 2, 0] or len(encode(both, xp)[1]) == 3

    def order_of_rows():
        random = np.random.default_rng(0)
        user, time_, row = (random.integers(0, most, 20_000) for most in (50, 40, 1 << 40))
        subsecond = random.choice([0.0, 0.25, 0.5], 20_000)
        for part in (None, subsecond):
            for wide in (1, 1 << 55):
                given = [None if x is None else xp.asarray(x) for x in (user.astype(np.int32), time_ * wide, part, row)]
                keys = (row, time_, user) if part is None else (row, part, time_, user)
                assert np.array_equal(to_host(order_rows(xp, *given)), np.lexsort(keys)), (part is None, wide)

    def arithmetic():
        x = xp.asarray(np.array([3, 1, 3, 0], np.int32))
        assert to_host(xp.bincount(x, minlength=6)).tolist() == [1, 1, 0, 2, 0, 0]
        assert to_host(xp.cumsum(x)).tolist() == [3, 4, 7, 7]
        assert to_host(xp.cumsum(x == 3)).tolist() == [1, 1, 2, 2]
        assert to_host(xp.flatnonzero(x == 3)).tolist() == [0, 2]
        y = xp.zeros(4, "int32")
        y[1:] = x[1:] != x[:-1]
        y[xp.asarray([0])] = xp.arange(1, dtype="int32") + 7
        assert to_host(y).tolist() == [7, 1, 1, 1]
        assert to_host(xp.minimum(x - 1, 1)).tolist() == [1, 0, 1, -1] and xp.full(1, 4, "int64").tolist() == [4]

    def parquet():
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for number in range(2):
                table = pa.table({"user_id": ["a", None, "c"], "row": np.arange(3) + 3 * number})
                paths.append(f"{folder}/{number}.parquet")
                pq.write_table(table, paths[-1], row_group_size=1)
            read = Pandas.read_parquet if small else frames.read_parquet
            frame = read(paths, columns=["user_id", "row"], row_groups=[[0, 2], [1]], use_pandas_metadata=False)
            assert to_host(xp.asarray(frame["row"].values)).tolist() == [0, 2, 4]
            assert int(frame["user_id"].isna().sum()) == 1
            assert len(frame.pop("user_id")) == 3 and list(frame.columns) == ["row"]

    def pool():
        import rmm

        from llmcfsr_merlin.runtime.device import open_device

        free = xp.cuda.runtime.memGetInfo()[0]
        with open_device(free // 8) as (_, arrays):
            found = type(rmm.mr.get_current_device_resource()).__name__
            here = arrays.arange(1000)
            assert int(here.sum()) == 499_500 and found == "PoolMemoryResource", found
            del here
        assert type(rmm.mr.get_current_device_resource()).__name__ != "PoolMemoryResource"
        assert int(xp.arange(10).sum()) == 45

    asked: list[Callable] = [order_of_texts, codes_of_texts, joined_texts, order_of_rows, arithmetic, parquet]
    results = {}
    for check in [*asked, *(() if small else (hashed_texts, pool))]:
        start = time.perf_counter()
        try:
            check()
            results[check.__name__] = f"ok, {time.perf_counter() - start:.2f} s"
        except Exception:
            results[check.__name__] = traceback.format_exc(limit=-4)[-1500:]
    return results


def alternatives(source: Path, small: bool) -> dict:
    """Seconds of parts of the reading and of other ways to number ids, on a fifth of the log: where to look next."""
    if small:
        return {}
    import cudf
    import cupy

    from llmcfsr_merlin.dataset.prepare.numbering import _by_hash
    from llmcfsr_merlin.runtime.device import open_device

    files = sorted(map(str, source.glob("*.parquet")))
    files = files[: max(1, len(files) // 5)]
    found: dict = {"rows": sum(pq.read_metadata(path).num_rows for path in files)}

    def timed(name: str, work: Callable):
        start = time.perf_counter()
        try:
            result = work()
            cupy.cuda.get_current_stream().synchronize()
            found[name] = round(time.perf_counter() - start, 3)
            return result
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"[:200]
            return None

    with open_device(cupy.cuda.runtime.memGetInfo()[0]):
        columns = ["user_id", "item_id", "timestamp", "row"]
        for name in columns:
            timed(f"read {name}", partial(cudf.read_parquet, files, columns=[name]))
        frame = timed("read all", partial(cudf.read_parquet, files, columns=columns))
        if frame is None:
            return found
        for name in ("user_id", "item_id"):
            column = frame[name]
            timed(f"{name}: by hash", partial(_by_hash, column, cupy))
            timed(f"{name}: factorize", column.factorize)
            distinct = timed(f"{name}: unique", column.unique)
            timed(f"{name}: hash_values", partial(column.hash_values, "xxhash64"))
            timed(f"{name}: category", partial(column.astype, "category"))
            if distinct is not None:
                timed(f"{name}: sort distinct", distinct.sort_values)
                timed(f"{name}: distinct to Arrow", distinct.to_arrow)
        key = frame["row"].values
        timed("argsort int64", lambda: cupy.argsort(key[::-1].copy()))
        timed("to the host, int64", key.get)
        pinned = timed("pinned memory", lambda: cupy.cuda.alloc_pinned_memory(key.nbytes))
        if pinned is not None:
            target = np.frombuffer(pinned, key.dtype, key.size)
            timed("to the host, int64, pinned", lambda: key.get(out=target))
    return found
