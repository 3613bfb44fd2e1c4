"""Speed and memory of ingest beside a plain Python loop, on generated Amazon reviews.

    python benchmarks/ingest.py --rows 1000000 --out benchmarks/results/ingest.json

Every measurement is a process of its own, in turns; the figures are medians. A row is about 475 bytes of JSON.
"""

import argparse
import gzip
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from llmcfsr_merlin.config.data_settings import DataConfig
from llmcfsr_merlin.dataset.names import INTERACTIONS, ITEM, RATING, ROW, TIME, USER
from llmcfsr_merlin.dataset.raw.ingest import ingest


def generate(path: Path, rows: int) -> None:
    """Reviews with Zipf-like items and users and texts of 5 to 90 words, plain and gzipped."""
    draw = random.Random(0)
    words = [f"w{number}" for number in range(5000)]
    texts = [" ".join(draw.choices(words, k=draw.randint(5, 90))) for _ in range(3000)]
    with open(path, "w") as plain, gzip.open(f"{path}.gz", "wt", compresslevel=6) as packed:
        for number in range(rows):
            record = {
                "overall": float(draw.randint(1, 5)),
                "verified": True,
                "reviewTime": "09 1, 2016",
                "reviewerID": f"A{int(draw.paretovariate(0.9) * 50) % (rows // 3):013d}",
                "asin": f"B{int(draw.paretovariate(0.8) * 10) % (rows // 16):09d}",
                "reviewText": draw.choice(texts),
                "summary": "Five Stars",
                "unixReviewTime": 1_400_000_000 + number * 60,
            }
            line = json.dumps(record) + "\n"
            plain.write(line)
            packed.write(line)


def plain_loop(path: Path, out: Path) -> int:
    """What a script does: json.loads line by line into lists, one Parquet file at the end."""
    columns: dict[str, list] = {USER: [], ITEM: [], TIME: [], ROW: [], RATING: []}
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as stream:
        for number, line in enumerate(stream):
            record = json.loads(line)
            for name, field in ((USER, "reviewerID"), (ITEM, "asin"), (TIME, "unixReviewTime"), (RATING, "overall")):
                columns[name].append(record[field])
            columns[ROW].append(number)
    pq.write_table(pa.table(columns), out / "all.parquet")
    return len(columns[ROW])


def measure(path: Path, workers: int) -> None:
    """One run (workers 0: the plain loop) in this process; prints its figures as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        if workers:
            data = DataConfig(format="amazon", interactions=(str(path),))
            rows = ingest(data, Path(folder), workers=workers)["interactions"]
            assert sum(pq.read_metadata(part).num_rows for part in (Path(folder) / INTERACTIONS).iterdir()) == rows
        else:
            rows = plain_loop(path, Path(folder))
        seconds = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_SELF)
    figures = {"rows": rows, "seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime}
    print(json.dumps(figures | {"peak_mb": usage.ru_maxrss >> 10}))


def main() -> None:
    """Generate, measure in turns, print a line a case and write the medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000], help="sizes of the generated log")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", nargs=2, metavar=("FILE", "WORKERS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(Path(arguments.measure[0]), int(arguments.measure[1]))
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for rows in arguments.rows:
            plain = Path(folder) / f"{rows}.json"
            generate(plain, rows)
            cases = [(path, workers) for path in (plain, Path(f"{plain}.gz")) for workers in (0, *arguments.workers)]
            runs: dict = {case: [] for case in cases}
            for _ in range(arguments.repeat):
                for path, workers in cases:
                    command = [sys.executable, __file__, "--measure", str(path), str(workers)]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    runs[path, workers].append(json.loads(done.stdout.splitlines()[-1]))
            for (path, workers), found in runs.items():
                medians = {name: statistics.median(run[name] for run in found) for name in found[0]}
                case = {
                    "file": "gzip" if path.suffix == ".gz" else "plain",
                    "megabytes": plain.stat().st_size >> 20,
                    "reader": f"ingest, {workers} workers" if workers else "plain Python loop",
                    "rows_per_second": round(rows / medians["seconds"]),
                    **{name: round(value, 2) for name, value in medians.items()},
                }
                results.append(case)
                print(json.dumps(case))
    if arguments.out:
        record = {
            "command": " ".join(["python", *sys.argv]),
            "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()[0]},
            "results": results,
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
