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
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.gpu.generated_log import generate
from benchmarks.gpu.library_checks import Pandas, alternatives, checks
from benchmarks.gpu.same_output import compare


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
    if arguments.scratch and not arguments.scratch.is_dir():
        parser.exit(1, f"--scratch: expected a folder, found none at {arguments.scratch}: make it first\n")
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
                compare(entry, written)
                save()
            for path in (source, *(Path(scratch) / f"{kind}-{count}" for kind in arguments.runs)):
                shutil.rmtree(path, ignore_errors=True)
    save()
    print(json.dumps(report))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        kind_, source_, out_, small_, merlin_, warm_ = sys.argv[2:]
        _emit(run(kind_, Path(source_), Path(out_), small_ == "1", merlin_ == "1", Path(warm_)))
    else:
        main()
