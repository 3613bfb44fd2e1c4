"""Speed, memory and disk of stage prepare on generated logs, side by side with polars and plain Python.

    python benchmarks/preprocess.py --rows 1000000 10000000 100000000 --out benchmarks/results/preprocess.json

All three do the same job, in a process of their own each: Parquet of (user, item, time, row) strings and integers ->
3-core to a fixed point, ids by frequency, sequences and leave-one-out splits. Their sequences are compared by hash.
polars is a hand-written in-memory pipeline (needs `pip install polars`); python is dictionaries and lists in the style
of research code. Where --out is there already, its other sizes stay. The last line printed is the JSON of the run.
"""

import argparse
import hashlib
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from functools import partial
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

LENGTH = 51  # max_length + 1
CORE = 3
PART = 4_000_000


def generate(folder: Path, rows: int, seed: int = 0) -> None:
    """Zipf items (exponent 1, rows / 100 of them), log-normal user activity (about 9 a user), a day's resolution."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    users, items = max(rows // 9, 100), max(rows // 100, 1000)
    user_ids = pa.array([f"A{x:012d}" for x in random.permutation(users)])
    item_ids = pa.array([f"B{x:09d}" for x in random.permutation(items)])
    by_user = np.cumsum(random.lognormal(0, 1, users))
    by_item = np.cumsum(1 / np.arange(1, items + 1))
    for part, start in enumerate(range(0, rows, PART)):
        count = min(PART, rows - start)
        user = np.searchsorted(by_user, random.random(count) * by_user[-1]).astype(np.int32)
        item = np.searchsorted(by_item, random.random(count) * by_item[-1]).astype(np.int32)
        table = pa.table({
            "user_id": user_ids.take(pa.array(user)), "item_id": item_ids.take(pa.array(item)),
            "timestamp": random.integers(11_000, 18_000, count) * 86_400, "row": np.arange(start, start + count),
            "rating": pa.nulls(count, pa.float32()),
        })  # fmt: skip
        pq.write_table(table, folder / f"part-{part:05d}.parquet", row_group_size=500_000)


def ours(source: Path, out: Path, workers: int, memory: str, kind: str) -> None:
    from llmcfsr_merlin.config.cluster_settings import ClusterConfig
    from llmcfsr_merlin.config.prepare_settings import PrepareConfig
    from llmcfsr_merlin.dataset.prepare.prepare import prepare
    from llmcfsr_merlin.runtime.engine import engine

    with engine(ClusterConfig(kind=kind, workers=workers, memory_limit=memory)) as chosen:
        prepare(source, out, PrepareConfig(min_user=CORE, min_item=CORE, max_length=LENGTH - 1), chosen)


def polars(source: Path, out: Path) -> None:
    import polars as pl

    log = pl.read_parquet(source / "*.parquet", columns=["user_id", "item_id", "timestamp", "row"]).drop_nulls()
    log = log.with_columns(pl.col("user_id", "item_id").rank("dense").cast(pl.UInt32).name.suffix("_n"))
    names = log.select("user_id", "user_id_n").unique("user_id_n")
    items = log.select("item_id", "item_id_n").unique("item_id_n")
    log = log.drop("user_id", "item_id")
    while True:
        left = log.filter(pl.len().over("item_id_n") >= CORE).filter(pl.len().over("user_id_n") >= CORE)
        if len(left) == len(log):
            break
        log = left
    vocabulary = log.group_by("item_id_n").len("count").join(items, on="item_id_n")
    vocabulary = vocabulary.sort(["count", "item_id"], descending=[True, False]).with_row_index("code", 3)
    log = log.join(vocabulary.select("item_id_n", pl.col("code").cast(pl.Int64)), on="item_id_n")
    log = log.sort("user_id_n", "timestamp", "row")
    rows = log.group_by("user_id_n", maintain_order=True).agg(pl.col("code").alias("item_id"))
    rows = rows.join(names, on="user_id_n", maintain_order="left").select("user_id", "item_id")
    train = rows.explode("item_id").with_columns(at=pl.int_range(pl.len()).over("user_id"), n=pl.len().over("user_id"))
    train = train.filter(pl.col("at") < pl.col("n") - 2).group_by("item_id").len("train_count")
    vocabulary = vocabulary.join(train.rename({"item_id": "code"}).cast({"code": pl.UInt32}), on="code", how="left")
    out.mkdir()
    vocabulary.sort("code").write_parquet(out / "vocabulary.parquet")
    tables = {"sequences": rows}
    for split, held_out in (("train", 2), ("valid", 1), ("test", 0)):
        column = pl.col("item_id")
        cut = rows.with_columns(column.list.head(column.list.len() - held_out).list.tail(LENGTH))
        tables[split] = cut.filter(pl.col("item_id").list.len() >= 2)
    for name, table in tables.items():
        (out / name).mkdir()
        table.write_parquet(out / name / "part-00000.parquet", compression="snappy")


def python(source: Path, out: Path) -> None:
    table = pq.read_table(source, columns=["user_id", "item_id", "timestamp", "row"])
    histories = defaultdict(list)
    for user, item, timestamp, row in zip(*(column.to_pylist() for column in table.columns)):
        histories[user].append((timestamp, row, item))
    while True:
        counts = Counter(item for history in histories.values() for _, _, item in history)
        left = {}
        for user, history in histories.items():
            kept = [entry for entry in history if counts[entry[2]] >= CORE]
            if len(kept) >= CORE:
                left[user] = kept
        same = sum(map(len, left.values())) == sum(map(len, histories.values()))
        histories = left
        if same:
            break
    counts = Counter(item for history in histories.values() for _, _, item in history)
    code = {item: 3 + at for at, item in enumerate(sorted(counts, key=lambda item: (-counts[item], item)))}
    rows = {user: [code[item] for _, _, item in sorted(histories[user])] for user in sorted(histories)}
    train = Counter(item for items in rows.values() for item in items[:-2])
    out.mkdir()
    vocabulary = {"item_id": list(code), "code": list(code.values()), "count": [counts[item] for item in code],
                  "train_count": [train[number] for number in code.values()]}  # fmt: skip
    pq.write_table(pa.table(vocabulary), out / "vocabulary.parquet")
    tables = {"sequences": rows}
    for split, held_out in (("train", 2), ("valid", 1), ("test", 0)):
        cut = {user: items[: len(items) - held_out][-LENGTH:] for user, items in rows.items()}
        tables[split] = {user: items for user, items in cut.items() if len(items) >= 2}
    for name, rows_of in tables.items():
        (out / name).mkdir()
        table = pa.table({"user_id": list(rows_of), "item_id": list(rows_of.values())})
        pq.write_table(table, out / name / "part-00000.parquet")


def digest(out: Path) -> str:
    """Hash of sequences and splits: users, lengths and codes in order, over any number of part files."""
    total = hashlib.sha256()
    for name in ("sequences", "train", "valid", "test"):
        parts = {"users": hashlib.sha256(), "lengths": hashlib.sha256(), "codes": hashlib.sha256()}
        for path in sorted((out / name).glob("*.parquet")):
            for batch in pq.ParquetFile(path).iter_batches(1 << 18):
                lists = batch["item_id"]
                parts["users"].update("\n".join(batch["user_id"].to_pylist()).encode() + b"\n")
                parts["lengths"].update(lists.value_lengths().to_numpy().astype(np.int64).tobytes())
                parts["codes"].update(lists.flatten().to_numpy().astype(np.int64).tobytes())
        total.update("".join(part.hexdigest() for part in parts.values()).encode())
    return total.hexdigest()


def measure(system: str, source: Path, out: Path, arguments) -> dict:
    """Run one system in a process of its own; seconds, peak resident and disk bytes (sampled every 0.2 s)."""
    options = [str(arguments.workers), arguments.memory, arguments.kind]
    command = [sys.executable, __file__, "--child", system, str(source), str(out), *options]
    limit = None
    if system == "ours" and arguments.limit:
        size = int(arguments.limit * 1e9)
        # The kernel refuses more than this, used or only reserved.
        limit = partial(resource.setrlimit, resource.RLIMIT_AS, (size, size))
    start = time.perf_counter()
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=limit)
    peak, disk = 0, 0
    while child.poll() is None:
        peak, disk = max(peak, _resident(child.pid)), max(disk, _size(out))
        time.sleep(0.2)
    error = child.communicate()[1]
    seconds = time.perf_counter() - start
    if child.returncode:
        return {"system": system, "failed": (error.strip().splitlines() or [f"exit code {child.returncode}"])[-1]}
    return {"system": system, "seconds": round(seconds, 2), "peak_memory_mb": peak >> 20, "peak_disk_mb": disk >> 20,
            "output_mb": _size(out) >> 20, "sequences": digest(out)}  # fmt: skip


def _resident(pid: int) -> int:
    """Resident bytes of a process and all below it."""
    total = 0
    try:
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            total += process.memory_info().rss
    except psutil.Error:  # it ended
        pass
    return total


def _size(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(path, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _median(runs: list[dict]) -> dict:
    """The run of median seconds, with the seconds of all."""
    if any("failed" in run for run in runs):
        return next(run for run in runs if "failed" in run)
    ordered = sorted(runs, key=lambda run: run["seconds"])
    return ordered[len(ordered) // 2] | {"all_seconds": [run["seconds"] for run in runs]}


def compare(results: list[dict]) -> dict:
    """Whether the sequences are equal, how many times as fast ours is, and the exponents of its growth."""
    hashes, ratios, exponents = {}, {}, {}
    mine = {entry["rows"]: entry for entry in results if entry["system"] == "ours" and "seconds" in entry}
    for entry in results:
        hashes.setdefault(entry["rows"], set()).add(entry.get("sequences"))
        if entry["system"] != "ours" and entry["rows"] in mine and "seconds" in entry:
            ratio = round(entry["seconds"] / mine[entry["rows"]]["seconds"], 2)
            ratios.setdefault(str(entry["rows"]), {})[entry["system"]] = ratio
    for low, high in pairwise(sorted(mine)):
        exponents[f"{low} to {high}"] = {
            name: round(math.log(mine[high][name] / mine[low][name]) / math.log(high / low), 3)
            for name in ("seconds", "peak_memory_mb", "peak_disk_mb")
        }
    return {
        "equal_results": all(len(found) == 1 for found in hashes.values()),
        "speed_up_of_ours": ratios, "growth_exponents": exponents,
    }  # fmt: skip


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _import_seconds() -> float:
    """What of a run of ours is the import of Merlin (and torch, which it brings), if it is installed."""
    start = time.perf_counter()
    code = "from llmcfsr_merlin.dataset.prepare.adapters import adapter; adapter()"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    return round(time.perf_counter() - start, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    systems = ["ours", "polars", "python"]
    parser.add_argument("--systems", nargs="+", choices=systems, default=systems)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kind", default="single", help="cluster.kind of ours: single, local or cuda")
    parser.add_argument("--memory", default="2GB", help="cluster.memory_limit of ours, a worker")
    parser.add_argument("--limit", type=float, default=8, help="GB of address space that ours may take (RLIMIT_AS)")
    parser.add_argument("--python-rows", type=int, default=10_000_000, help="largest log for the plain Python system")
    parser.add_argument("--polars-rows", type=int, default=20_000_000, help="largest log for the in-memory polars")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each system but python; the median counts")
    parser.add_argument("--repeat-rows", type=int, default=10_000_000, help="larger logs are run once")
    parser.add_argument("--scratch", type=Path, help="folder for the logs and outputs (default: the system's)")
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    arguments = parser.parse_args()
    if arguments.scratch and not arguments.scratch.is_dir():
        parser.exit(1, f"--scratch: expected a folder, found none at {arguments.scratch}: make it first\n")
    if arguments.out and not arguments.out.parent.is_dir():  # said now, not when all is measured
        parser.exit(1, f"--out: expected a file in a folder, found no {arguments.out.parent}: make it first\n")
    results = []
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
            source = Path(scratch) / "interactions"
            generate(source, rows)
            systems = [
                system for system in arguments.systems
                if rows <= {"python": arguments.python_rows, "polars": arguments.polars_rows}.get(system, rows)
            ]  # fmt: skip
            repeat = arguments.repeat if rows <= arguments.repeat_rows else 1
            runs = {system: [] for system in systems}
            for turn in range(repeat):  # in turns, so that a busy machine is busy for all
                for system in systems:
                    if turn and system == "python":
                        continue
                    run = measure(system, source, Path(scratch) / system, arguments)
                    runs[system].append(run | {"load_average": round(os.getloadavg()[0], 1)})
                    print(rows, runs[system][-1], file=sys.stderr, flush=True)
                    shutil.rmtree(Path(scratch) / system, ignore_errors=True)
            for system in systems:
                entry = {"rows": rows, "input_mb": _size(source) >> 20} | _median(runs[system])
                if "seconds" in entry:
                    entry["rows_per_second"] = round(rows / entry["seconds"])
                results.append(entry)
    report = {
        "command": " ".join(["python", *sys.argv]), "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(), "polars": _version("polars"), "cores": len(os.sched_getaffinity(0)),
        "limit_gb": arguments.limit, "merlin_import_seconds": _import_seconds(),
    }  # fmt: skip
    if arguments.out and arguments.out.is_file():  # a size more: the others stay
        known = {(entry["rows"], entry["system"]) for entry in results}
        before = json.loads(arguments.out.read_text())
        results += [entry for entry in before["results"] if (entry["rows"], entry["system"]) not in known]
        report["command"] = f"{before['command']}; {report['command']}"
    results.sort(key=lambda entry: entry["rows"])
    report |= compare(results) | {"results": results}
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        name, source, out, workers, memory, kind = sys.argv[2:]
        extra = (int(workers), memory, kind) if name == "ours" else ()
        {"ours": ours, "polars": polars, "python": python}[name](Path(source), Path(out), *extra)
    else:
        main()
