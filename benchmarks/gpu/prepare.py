"""Stage prepare on one GPU and on CPUs, on generated logs: seconds of each step, and whether all wrote the same.

    python benchmarks/gpu/prepare.py --rows 10000000 100000000 --out result.json
    python benchmarks/gpu/prepare.py --small --out result.json      # no GPU: its program on pandas and numpy

Every run is a process of its own with a time limit; what is known is in --out after each. Runs: `gpu` (a small log
first, which compiles the kernels, then the log twice), `cpu` (all cores, the same partitions: compared byte for byte)
and `cpu-2` (2 cores, sizes up to --two-core-rows: compared by rows). Seconds are those of prepare() after the imports,
which are reported beside them. Where Merlin cannot be imported, all runs do without it, as prepare() itself if it is
not installed, and the report says so.
"""

import argparse
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

TABLES = ("sequences", "train", "valid", "test")
# The part files of stage ingest.
PART, ROW_GROUP = 1 << 20, 1 << 18
ITEMS = 200_000


def generate(folder: Path, rows: int, seed: int = 0) -> None:
    """Zipf items (exponent 1), log-normal activity of rows / 10 users, times of a day's resolution, so with ties."""
    folder.mkdir(parents=True)
    users, items = max(rows // 10, 10), min(ITEMS, max(rows // 20, 10))
    random = np.random.default_rng(seed)
    user_ids, item_ids = _ids("A", random.permutation(users), 12), _ids("B", random.permutation(items), 9)
    by_user = np.cumsum(random.lognormal(0, 1, users))
    by_item = np.cumsum(1 / np.arange(1, items + 1))

    def write(part: int) -> None:
        own = np.random.default_rng([seed, part])
        first = part * PART
        size = min(PART, rows - first)
        user = np.searchsorted(by_user, own.random(size) * by_user[-1])
        item = np.searchsorted(by_item, own.random(size) * by_item[-1])
        table = pa.table({
            "user_id": user_ids.take(pa.array(user)), "item_id": item_ids.take(pa.array(item)),
            "timestamp": own.integers(11_000, 18_000, size) * 86_400, "subsecond": np.zeros(size),
            "row": np.arange(first, first + size), "rating": pa.nulls(size, pa.float32()),
        })  # fmt: skip
        pq.write_table(table, folder / f"part-{part:05d}.parquet", row_group_size=ROW_GROUP)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(write, range(-(-rows // PART))))


def _ids(letter: str, numbers: np.ndarray, digits: int) -> pa.Array:
    """letter and `digits` digits of each number, without a Python object for any."""
    text = np.empty((len(numbers), digits + 1), np.uint8)
    text[:, 0] = ord(letter)
    for place in range(digits):
        text[:, digits - place] = numbers // 10**place % 10 + ord("0")
    offsets = np.arange(len(numbers) + 1, dtype=np.int32) * (digits + 1)
    return pa.StringArray.from_buffers(len(numbers), pa.py_buffer(offsets), pa.py_buffer(text.tobytes()))


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


def run(kind: str, source: Path, out: Path, small: bool, merlin: bool, warm: Path) -> dict:
    """What one process does: imports, for the GPU a run on the log `warm`, then prepare() on `source`."""
    if kind == "cpu-2":
        os.sched_setaffinity(0, _two_cores())
        pa.set_cpu_count(2)
    report: dict = {"run": kind, "cores": len(os.sched_getaffinity(0))}
    start = time.perf_counter()
    if merlin:
        _merlin(report)
    else:
        _without_merlin()
        report["merlin"] = "left out"
    report["import_merlin_seconds"] = round(time.perf_counter() - start, 2)
    if kind == "gpu":
        start = time.perf_counter()
        if not small:
            from llmcfsr_merlin.runtime.device import libraries

            cudf, cupy = libraries()
            report |= {"cudf": cudf.__version__, "cupy": cupy.__version__, "pandas": _version("pandas")}
            report["device"] = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
        report["import_device_seconds"] = round(time.perf_counter() - start, 2)
        _emit(report)
        report["checks"] = checks(small)
        _emit(report)
        report["first"] = _prepare(kind, warm, out / "warm", small)
        _emit(report)
    report |= _prepare(kind, source, out / "once", small)
    _emit(report)
    if kind == "gpu":
        report["second"] = _prepare(kind, source, out / "twice", small)
        _emit(report)
        report["alternatives"] = alternatives(source, small)
    report["peak_host_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return report


def _two_cores() -> list[int]:
    """Two that are not two threads of one core, as far as the machine says."""
    first, *others = sorted(os.sched_getaffinity(0))
    try:
        path = Path(f"/sys/devices/system/cpu/cpu{first}/topology/thread_siblings_list")
        ends = [list(map(int, part.split("-"))) for part in path.read_text().strip().split(",")]
        same = {core for span in ends for core in range(span[0], span[-1] + 1)}
    except (OSError, ValueError):
        same = set()
    return [first, *([core for core in others if core not in same] or others)[:1]]


def _merlin(report: dict) -> None:
    """Import the adapter; if Merlin's fails, the one without, and the reason in the report."""
    from llmcfsr_merlin.dataset.prepare.adapters import adapter

    try:
        report["merlin"] = adapter().__name__.rpartition(".")[2]
    except BaseException as error:
        report["merlin"] = f"left out: {type(error).__name__}: {error}"[:300]
        _without_merlin()


def _without_merlin() -> None:
    """prepare() as it runs if Merlin is not installed."""
    from llmcfsr_merlin.dataset.prepare import merlin_free, prepare

    prepare.adapter = lambda: merlin_free


def _prepare(kind: str, source: Path, out: Path, small: bool) -> dict:
    from llmcfsr_merlin.config.cluster_settings import ClusterConfig
    from llmcfsr_merlin.config.prepare_settings import PrepareConfig
    from llmcfsr_merlin.dataset.prepare import prepare as stage
    from llmcfsr_merlin.runtime.engine import engine

    dry = small and kind == "gpu"
    config = ClusterConfig(kind="cuda" if kind == "gpu" and not small else "single")
    with _on_pandas(stage) if dry else nullcontext(), engine(config) as chosen:
        if dry:
            chosen.device_memory = 1 << 40
        start = time.perf_counter()
        counts = stage.prepare(source, out, PrepareConfig(), chosen)
        seconds = time.perf_counter() - start
    names = ("rows_in", "users", "items", "interactions", "partitions", "buckets", "shuffle_mb", "output_mb")
    steps = {name: round(took, 3) for name, took in chosen.seconds.items()}
    return {
        "seconds": round(seconds, 2), "rows_per_second": round(counts["rows_in"] / seconds),
        "steps": steps, "steps_rows_per_second": {n: round(counts["rows_in"] / max(s, 1e-3)) for n, s in steps.items()},
        "beside_the_steps": round(seconds - sum(steps.values()), 2),
        **{name: counts[name] for name in names},
    }  # fmt: skip


@contextmanager
def _on_pandas(stage):
    real = stage.open_device
    stage.open_device = lambda free: nullcontext((Pandas, np))
    try:
        yield
    finally:
        stage.open_device = real


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


def files(out: Path) -> dict[str, str]:
    """sha256 of each written file but the workflow, whose bytes name a folder."""
    paths = sorted(path for path in out.rglob("*") if path.is_file() and "workflow" not in path.parts)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        digests = pool.map(lambda path: hashlib.sha256(path.read_bytes()).hexdigest(), paths)
        return {str(path.relative_to(out)): digest for path, digest in zip(paths, digests)}


def rows(out: Path) -> dict[str, str]:
    """Hash of each table's users, lengths and codes in order, over any number of part files."""
    found = {"vocabulary": hashlib.sha256((out / "vocabulary.parquet").read_bytes()).hexdigest()}

    def of(name: str) -> str:
        parts = [hashlib.sha256() for _ in range(4)]
        for path in sorted((out / name).glob("*.parquet")):
            table = pq.read_table(path)
            users = pa.concat_arrays(table["user_id"].chunks)
            lists = pa.concat_arrays(table["item_id"].chunks)
            parts[0].update("".join(users.to_pylist()).encode())
            parts[1].update(pc.binary_length(users).to_numpy().tobytes())
            parts[2].update(lists.value_lengths().to_numpy().tobytes())
            parts[3].update(lists.flatten().to_numpy().tobytes())
        return "".join(part.hexdigest() for part in parts)

    with ThreadPoolExecutor(len(TABLES)) as pool:
        return found | dict(zip(TABLES, pool.map(of, TABLES)))


def _version(name: str) -> str:
    from importlib import metadata

    return metadata.version(name)


def _emit(report: dict) -> None:
    """One line that the parent reads; the last one counts, so that a run that is stopped still says something."""
    print("@" + json.dumps(report), flush=True)


def child(command: list[str], limit: float) -> dict:
    """Run a process of this file; its last report, with what it wrote to stderr at the end if it failed."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", __file__, "--child", *command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
    )  # fmt: skip
    try:
        said, error = process.communicate(timeout=limit)
        failed = f"exit code {process.returncode}" if process.returncode else ""
    except subprocess.TimeoutExpired:
        process.kill()
        said, error = process.communicate()
        failed = f"stopped after {limit:.0f} s"
    lines = [line[1:] for line in said.splitlines() if line.startswith("@")]
    report = json.loads(lines[-1]) if lines else {"run": command[0]}
    if failed:
        report |= {"failed": failed, "said": error[-3000:]}
    return report | {"process_seconds": round(time.perf_counter() - began, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000_000, 100_000_000])
    parser.add_argument("--runs", nargs="+", choices=["gpu", "cpu", "cpu-2"], default=["gpu", "cpu", "cpu-2"])
    parser.add_argument("--two-core-rows", type=int, default=10_000_000, help="largest log for the run cpu-2")
    parser.add_argument("--limit", type=float, default=200, help="seconds that one run may take")
    parser.add_argument("--without-merlin", action="store_true", help="no import of Merlin in any run")
    parser.add_argument("--small", action="store_true", help="no GPU: its program on pandas and numpy")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for logs and results")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.small and arguments.rows == parser.get_default("rows"):
        arguments.rows = [200_000]
    report: dict = {
        "command": " ".join(["python", *sys.argv]), "date": time.strftime("%Y-%m-%d"), "small": arguments.small,
        "python": platform.python_version(), "pyarrow": pa.__version__, "numpy": np.__version__,
        "cores": len(os.sched_getaffinity(0)), "results": [],
    }  # fmt: skip

    def save() -> None:
        if arguments.out:
            arguments.out.write_text(json.dumps(report, indent=1) + "\n")

    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        warm = Path(scratch) / "warm"
        generate(warm, 20_000 if arguments.small else 1_000_000)
        for count in arguments.rows:
            start = time.perf_counter()
            source, entry = Path(scratch) / f"log-{count}", {"rows": count}
            report["results"].append(entry)
            generate(source, count)
            size = sum(path.stat().st_size for path in source.iterdir())
            entry |= {"generate_seconds": round(time.perf_counter() - start, 1), "input_mb": size >> 20}
            save()
            written = {}
            for kind in arguments.runs:
                if kind == "cpu-2" and count > arguments.two_core_rows:
                    continue
                out = Path(scratch) / f"{kind}-{count}"
                flags = [str(int(arguments.small)), str(int(not arguments.without_merlin))]
                entry[kind] = child([kind, str(source), str(out), *flags, str(warm)], arguments.limit)
                print(count, kind, json.dumps(entry[kind]), file=sys.stderr, flush=True)
                shutil.rmtree(out / "warm", ignore_errors=True)
                shutil.rmtree(out / "twice", ignore_errors=True)
                if (out / "once" / "vocabulary.parquet").is_file():
                    written[kind] = out / "once"
                _compare(entry, written)
                save()
            for path in (source, *(Path(scratch) / f"{kind}-{count}" for kind in arguments.runs)):
                shutil.rmtree(path, ignore_errors=True)
    save()
    print(json.dumps(report))


def _compare(entry: dict, written: dict[str, Path]) -> None:
    if "gpu" not in written:
        return
    gpu = entry["gpu"].get("second") or entry["gpu"]
    for kind in [kind for kind in written if kind != "gpu" and f"equal_{kind}" not in entry]:
        same = files(written["gpu"]) == files(written[kind])
        entry[f"equal_{kind}"] = "bytes" if same else "rows" if rows(written["gpu"]) == rows(written[kind]) else False
        if "seconds" in gpu and "seconds" in entry[kind]:
            entry[f"times_{kind}"] = round(entry[kind]["seconds"] / gpu["seconds"], 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        kind_, source_, out_, small_, merlin_, warm_ = sys.argv[2:]
        _emit(run(kind_, Path(source_), Path(out_), small_ == "1", merlin_ == "1", Path(warm_)))
    else:
        main()
