"""A large catalogue's shortlist through gRPC in less memory than its files take: time, and reads from the disk.

    python benchmarks/serving_limited.py MODEL TEST.parquet --limit-mb 2500 1500 --out benchmarks/results/serving.json

For root on Linux: the server runs in a memory cgroup, whose limit also holds for the pages of files that are kept in
memory, as in a container with --memory. Those of other processes are dropped before, or they would be used for nothing.
MODEL is a folder of serving_scale.py --folder (g1000000, say), TEST the sequences that its histories are made of.
"""

import argparse
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq

from benchmarks.grown_catalogue import grown_histories
from benchmarks.serving import keep_to, served, take_turns
from llmcfsr_merlin.config.serve_settings import ServeConfig
from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.serving.repository import export
from llmcfsr_merlin.serving.server import Server

_GROUPS = Path("/sys/fs/cgroup")
_MOST = 50  # items of a history


@contextlib.contextmanager
def limited(megabytes: int) -> Iterator[Path]:
    """A memory cgroup of that size, in its folder's cgroup.procs what it holds; empty of pages at first."""
    first = (_GROUPS / "memory").is_dir()  # version 1
    group = (_GROUPS / "memory" if first else _GROUPS) / f"llmcfsr-{os.getpid()}-{megabytes}"
    if not first:
        (_GROUPS / "cgroup.subtree_control").write_text("+memory")
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(megabytes * 1_000_000))
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
        yield group
    finally:
        group.rmdir()


@contextlib.contextmanager
def inside(group: Path) -> Iterator[None]:
    """Processes that are started here belong to a group; this one goes back."""
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield
    finally:
        (group.parent / "cgroup.procs").write_text(str(os.getpid()))


def faults(pid: int) -> int:
    """Reads from the disk that a process and its children have waited for."""
    family = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return sum(int(Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[9]) for one in family)


def measure(repository: Path, asked: list[list[str]], megabytes: int) -> dict[str, float]:
    cores = sorted(os.sched_getaffinity(0))
    with limited(megabytes) as group, contextlib.ExitStack() as stack:
        start = time.perf_counter()
        with inside(group):
            server = stack.enter_context(Server(repository, threads=1, timeout=900))
        load = time.perf_counter() - start
        keep_to(server, cores[-1])
        os.sched_setaffinity(0, cores[:-1] or cores)
        stack.callback(os.sched_setaffinity, 0, cores)
        before = faults(server.pid)
        times = take_turns({"served": served(server.grpc_url, stack)}, asked, len(asked) // 10, 10)["served"]
        reads = (faults(server.pid) - before) / times["calls"]
        return {"limit_mb": megabytes, "server_load_s": round(load, 1), **times, "disk_reads_per_call": round(reads)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--limit-mb", type=int, nargs="+", default=[2500, 1500])
    parser.add_argument("--histories", type=int, default=200)
    parser.add_argument("--shortlist", type=int, default=1000)
    parser.add_argument("--grown-from", type=int, default=12_101, help="items of the model that it was grown from")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    ids = Vocabulary.load(options.trained / "vocabulary.parquet").ids
    sequences = [one[:-1] for one in pq.read_table(options.test)["item_id"].to_pylist() if len(one) > 1]
    chosen = np.random.default_rng(0).choice(len(sequences), options.histories, replace=False)
    histories = grown_histories([sequences[place] for place in chosen], options.grown_from, len(ids))
    asked = [[str(ids[code - FIRST_ITEM]) for code in history[-_MOST:]] for history in histories]
    with tempfile.TemporaryDirectory(dir=options.trained.parent) as scratch:
        repository = Path(scratch) / "served"
        export(options.trained, repository, ServeConfig(layout="merged", shortlist=options.shortlist))
        rows = []
        for megabytes in options.limit_mb:
            rows.append({"items": len(ids), "shortlist": options.shortlist} | measure(repository, asked, megabytes))
            print(rows[-1], flush=True)
    if options.out:
        result = json.loads(options.out.read_text()) if options.out.is_file() else {}
        kept = [row for row in result.get("limited", []) if row["items"] != len(ids)]
        options.out.write_text(json.dumps(result | {"limited": kept + rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
