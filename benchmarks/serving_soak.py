"""Minutes of mixed load on a served trained model: refusals, memory over time, served = library.

    python benchmarks/serving_soak.py runs/beauty --out benchmarks/results/serving.json

Four clients, two by gRPC and two by HTTP, ask real histories of 1 to 8 users a request, cut at random, with and without
filters; a tenth of the requests asks for more than serve.max_top_k and must be refused. Memory is read every sixtieth
of the time, once as resident (pages that processes share counted in each) and once with shared pages counted once. The
key `soak` (with --layout merged `soak_merged`) of the file is replaced.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
from serving import serve
from serving_engines import histories, processor_seconds

from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.serving import Client
from llmcfsr_merlin.serving.parity import check_served

MOST = 50  # serve.max_top_k


def ask(url: str, asked: list[list[str]], seed: int, stop: threading.Event, found: dict) -> None:
    """Ask until `stop`; counts and unexpected refusals into `found`."""
    random = np.random.default_rng(seed)
    ids = sorted({item for history in asked for item in history})
    with Client(url) as client:
        while not stop.is_set():
            rows = [asked[place] for place in random.integers(0, len(asked), random.integers(1, 9))]
            rows = [row[: random.integers(0, len(row) + 1)] for row in rows]
            k = MOST + 1 if random.random() < 0.1 else int(random.integers(1, MOST + 1))
            filters: dict = {"allow": random.choice(ids, 9).tolist()} if random.random() < 0.2 else {}
            if random.random() < 0.2:
                filters["deny"] = random.choice(ids, 40).tolist()
            try:
                answer = client.answer(rows, k, exclude_seen=bool(random.integers(2)), **filters)
                found["answered"] += 1
                found["rows"] += len(rows)
                found["uncertain"] += int((~answer.exact).sum())
            except InputError as error:
                found["refused"] += 1
                if k <= MOST or "TOP_K" not in str(error):
                    found["failures"].append(str(error))


def memory(pid: int) -> tuple[float, float]:
    """MB of a server and its steps: resident, and with shared pages counted once."""
    parts = [one.memory_full_info() for one in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))]
    return sum(one.rss for one in parts) / 1e6, sum(one.pss for one in parts) / 1e6


def soak(run: Path, asked: list[list[str]], settings: dict, seconds: float) -> dict:
    """Counts, the curve of [seconds, resident MB, MB with shared pages once, answered so far], and the comparison."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        server, about = serve(run, Path(folder), settings.pop("layout"), stack, max_top_k=MOST, **settings)
        stop, curve = threading.Event(), []
        results: list[dict] = [
            {"answered": 0, "rows": 0, "uncertain": 0, "refused": 0, "failures": []} for _ in range(4)
        ]
        urls = [server.grpc_url, server.http_url]
        threads = [
            threading.Thread(target=ask, args=(urls[seed % 2], asked, seed, stop, found))
            for seed, found in enumerate(results)
        ]
        before, start = processor_seconds(server.pid), time.monotonic()
        for thread in threads:
            thread.start()
        loads = []
        while time.monotonic() - start < seconds:
            time.sleep(seconds / 60)
            resident, once = memory(server.pid)
            answered = sum(one["answered"] for one in results)
            curve.append([round(time.monotonic() - start, 1), round(resident, 1), round(once, 1), answered])
            loads.append(os.getloadavg()[0])
        stop.set()
        for thread in threads:
            thread.join()
        spent = processor_seconds(server.pid) - before
        parity = check_served(run, server.grpc_url, asked, shortlist=settings["shortlist"])
    counts = {name: sum(one[name] for one in results) for name in ("answered", "rows", "uncertain", "refused")}
    quarter = len(curve) // 4
    growth = [float(np.median([row[at] for row in curve[-quarter:]]) -
                    np.median([row[at] for row in curve[quarter : 2 * quarter]])) for at in (1, 2)]  # fmt: skip
    return {
        **about, "seconds": seconds, **counts, "failures": [text for one in results for text in one["failures"]][:5],
        "server_cpu_ms_per_request": round(1000 * spent / max(counts["answered"], 1), 2),
        "growth_second_to_last_quarter_mb": {"resident": round(growth[0], 1), "shared_once": round(growth[1], 1)},
        "load_average": {"median": round(float(np.median(loads)), 1), "max": round(max(loads), 1)},
        "served_as_library": parity.as_dict(), "curve": curve,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--sequences", type=Path, help="of stage prepare, if they do not stand in the run")
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--layout", default="ensemble")
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--shortlist", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    settings = {"layout": options.layout, "engine": options.engine, "shortlist": options.shortlist}
    result = {"date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count(), **settings}
    asked = histories(options.run, options.sequences, options.users)
    result |= soak(options.run, asked, settings, options.seconds)
    if options.out:
        whole = json.loads(options.out.read_text()) if options.out.is_file() else {}
        key = "soak_merged" if options.layout == "merged" else "soak"
        options.out.write_text(json.dumps(whole | {key: result}, indent=1) + "\n")
    print(json.dumps({name: value for name, value in result.items() if name != "curve"}, indent=1))


if __name__ == "__main__":
    main()
