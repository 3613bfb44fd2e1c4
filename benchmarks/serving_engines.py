"""serve.engine: torch against onnxruntime on a trained model, one core for the server, in one run.

    python benchmarks/serving_engines.py runs/beauty --out benchmarks/results/serving.json

Histories are those of the model's own users. The engines take turns in short rounds, so that other load on the machine
meets both; processor time, which waiting for a core does not lengthen, stands beside wall time. The key `engines` of
the file is replaced, with --shortlist `engines_shortlist`.
"""

import argparse
import contextlib
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import torch
from serving import K, keep_to, serve, served, take_turns, throughput

from llmcfsr_merlin.dataset.names import FIRST_ITEM, ITEM
from llmcfsr_merlin.recommender import Recommender
from llmcfsr_merlin.serving.onnx_engine import compile_model
from llmcfsr_merlin.serving.parity import check_served

ENGINES = ("torch", "onnxruntime")


def histories(run: Path, sequences: Path | None, count: int) -> list[list[str]]:
    """Of `count` users: all their items but the last, as raw ids."""
    recommender = Recommender.load(run)
    table = pq.read_table(sequences or run / "prepare" / "sequences", columns=[ITEM])[ITEM].to_pylist()
    ids = recommender.vocabulary.ids
    chosen = np.random.default_rng(0).permutation(len(table))[:count]
    return [[str(ids[code - FIRST_ITEM]) for code in table[row][:-1] if code >= FIRST_ITEM] for row in chosen]


def in_process(run: Path, asked: list[list[str]], rounds: int) -> dict:
    """Milliseconds of processor time of Recommender.rank on encoded histories, batches of 1 and 32, by engine."""
    found: dict = {engine: {"load_s": 0.0} for engine in ENGINES}
    recommenders = {engine: Recommender.load(run) for engine in ENGINES}
    start = time.process_time()
    compile_model(recommenders["onnxruntime"].ranker.model)
    found["onnxruntime"]["load_s"] = round(time.process_time() - start, 2)
    one = [recommenders["torch"].encode([history]) for history in asked]
    batches = [recommenders["torch"].encode(asked[row : row + 32]) for row in range(0, len(asked) - 31, 32)]
    for rows, encoded, each in ((1, one, 10), (32, batches, 1)):
        taken: dict[str, list[float]] = {engine: [] for engine in ENGINES}
        for turn in range(rounds + 1):
            for engine, recommender in recommenders.items():
                for place in range(each):
                    start = time.thread_time()
                    recommender.rank(encoded[(turn * each + place) % len(encoded)], K)
                    if turn:
                        taken[engine].append(time.thread_time() - start)
        for engine, seconds in taken.items():
            p50, p99 = np.percentile(seconds, [50, 99]) * 1000
            found[engine][f"batch_{rows}_cpu_ms"] = {"p50": round(p50, 2), "p99": round(p99, 2)}
    answers = {engine: [one.rank(batch, K) for batch in batches] for engine, one in recommenders.items()}
    same = [(a[0] == b[0]).mean() for a, b in zip(*answers.values())]
    found["onnxruntime"]["same_items"] = round(float(np.mean(same)), 6)
    return found


def processor_seconds(pid: int) -> float:
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in family)


def through_grpc(run: Path, asked: list[list[str]], layout: str, rounds: int, seconds: float, shortlist: int) -> dict:
    """Latency of one client and throughput of 32, by engine; servers on the last core, the clients on the others."""
    cores = sorted(os.sched_getaffinity(0))
    found: dict = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        servers = {}
        for engine in ENGINES:
            server, about = serve(run, Path(folder), layout, stack, engine=engine, shortlist=shortlist)
            servers[engine], found[engine] = server, about
            keep_to(server, cores[-1])
        if len(cores) > 1:
            os.sched_setaffinity(0, cores[:-1])
        latency = take_turns({name: served(s.grpc_url, stack) for name, s in servers.items()}, asked, rounds, 10)
        for engine, server in servers.items():
            found[engine]["latency"] = latency[engine]
            key = server.key_file.read_text().partition(": ")[2].strip()
            before = processor_seconds(server.pid)
            rate = throughput(server.grpc_url, "rank" if layout == "ensemble" else "recommend", key, asked, 32, seconds)
            spent = processor_seconds(server.pid) - before
            rate["server_cpu_ms_per_request"] = round(1000 * spent / max(rate["calls"], 1), 2)
            found[engine]["throughput"] = rate
            parity = check_served(run, server.grpc_url, asked, shortlist=shortlist)
            found[engine]["served_as_library"] = parity.as_dict()
        os.sched_setaffinity(0, cores)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--sequences", type=Path, help="of stage prepare, if they do not stand in the run")
    parser.add_argument("--users", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--layouts", nargs="+", default=["ensemble", "merged"])
    parser.add_argument("--shortlist", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    asked = histories(options.run, options.sequences, options.users)
    result = {
        "date": time.strftime("%Y-%m-%d"), "users": len(asked), "shortlist": options.shortlist,
        "load_average_before": round(os.getloadavg()[0], 1),
        "in_process": in_process(options.run, asked, options.rounds),
    }  # fmt: skip
    for layout in options.layouts:
        settings = options.rounds, options.seconds, options.shortlist
        result[layout] = through_grpc(options.run, asked, layout, *settings)
    result["load_average_after"] = round(os.getloadavg()[0], 1)
    if options.out:
        whole = json.loads(options.out.read_text()) if options.out.is_file() else {}
        whole["engines_shortlist" if options.shortlist else "engines"] = result
        options.out.write_text(json.dumps(whole, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
