"""The gateway's cost: latency at batch 1 and throughput at 32 clients, side by side with Triton's own gRPC.

    python benchmarks/gateway.py runs/beauty --out benchmarks/results/gateway.json

The run's repository is served by one tritonserver (one torch thread) with the gateway in front. Both are asked the same
histories of the run's users, k = 10: Triton by the package's gRPC client, the gateway by HTTP connections that stay
open. The two take turns in short rounds, so that other load on the machine meets both; the overhead is the median of
the differences of one round's medians. Processor time a request, of the gateway and of the clients, is told as well: it
says what the gateway costs if the machine is busy. The answers of the first requests are compared. The last line
printed is the JSON of the run.
"""

import argparse
import http.client
import json
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
from tqdm import tqdm

from llmcfsr_merlin.config.gateway_settings import GatewayConfig
from llmcfsr_merlin.dataset import examples
from llmcfsr_merlin.serving import Client, Server
from llmcfsr_merlin.serving.gateway_server import GatewayOptions, GatewayServer
from llmcfsr_merlin.serving.repository import repository_of

K = 10
Ask = Callable[[list[str]], list[str]]  # a history to the ids that are recommended


def over_grpc(url: str) -> Ask:
    client = Client(url)
    return lambda history: client.answer([history], K).items[0].tolist()


def over_http(port: int) -> Ask:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(history: list[str]) -> list[str]:
        body = json.dumps({"history": history, "k": K})
        connection.request("POST", "/recommend", body, {"content-type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        assert not answer["degraded"], answer
        return [item["id"] for item in answer["items"]]

    return ask


def latency(
    systems: dict[str, Callable[[], Ask]], asked: list[list[str]], rounds: int, each: int, gateway: psutil.Process
) -> dict:
    """Milliseconds of single requests, one at a time, in rounds of `each`; and of processor, whatever else runs."""
    own = psutil.Process()
    processor = dict.fromkeys([*(f"{name}_client" for name in systems), "gateway"], 0.0)
    asks = {name: connect() for name, connect in systems.items()}
    for history in asked[:50]:
        first = {name: ask(history) for name, ask in asks.items()}
        assert first["gateway"] == first["direct"], first
    medians: dict[str, list[float]] = {name: [] for name in systems}
    all_of: dict[str, list[float]] = {name: [] for name in systems}
    for turn in tqdm(range(rounds), "latency"):
        for name, ask in asks.items():
            seconds = []
            before = _processor(own), _processor(gateway)
            for i in range(each):
                history = asked[(turn * each + i) % len(asked)]
                start = time.perf_counter()
                ask(history)
                seconds.append(1000 * (time.perf_counter() - start))
            processor[f"{name}_client"] += _processor(own) - before[0]
            processor["gateway"] += _processor(gateway) - before[1] if name == "gateway" else 0.0
            medians[name].append(statistics.median(seconds))
            all_of[name] += seconds
    overheads = [ours - theirs for ours, theirs in zip(medians["gateway"], medians["direct"])]
    told = {
        name: {"p50_ms": round(float(np.percentile(ms, 50)), 3), "p99_ms": round(float(np.percentile(ms, 99)), 3)}
        for name, ms in all_of.items()
    }
    quartiles = [round(float(value), 3) for value in np.percentile(overheads, [25, 75])]
    told["processor_ms_a_request"] = {name: round(1000 * s / rounds / each, 3) for name, s in processor.items()}
    return {**told, "overhead_p50_ms": round(statistics.median(overheads), 3), "overhead_quartiles_ms": quartiles}


def _processor(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def throughput(connect: Callable[[], Ask], asked: list[list[str]], clients: int, seconds: float) -> float:
    """Requests a second of `clients` threads, each with a connection of its own."""
    counts, end, ready = [0] * clients, [0.0], threading.Barrier(clients + 1)

    def work(seed: int) -> None:
        ask = connect()
        ask(asked[seed])
        ready.wait()
        place = seed
        while time.perf_counter() < end[0]:
            ask(asked[place % len(asked)])
            counts[seed] += 1
            place += clients

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    end[0] = time.perf_counter() + 600
    ready.wait()
    start = time.perf_counter()
    end[0] = start + seconds
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--each", type=int, default=50)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    sequences = list(examples.sequences(arguments.run).values())
    asked = [sequences[place][:-1][-50:] for place in random.integers(0, len(sequences), 1000)]
    repository = repository_of(arguments.run)
    options = GatewayOptions(port=0, settings=GatewayConfig())
    with Server(repository, threads=1) as server, GatewayServer(repository, options) as gateway:
        gateway.start([server.grpc_url.removeprefix("grpc://")])
        process = psutil.Process(gateway.pid)
        systems = {"direct": lambda: over_grpc(server.grpc_url), "gateway": lambda: over_http(gateway.port)}
        result: dict = {"latency": latency(systems, asked, arguments.rounds, arguments.each, process), "throughput": []}
        for clients in arguments.clients:
            rates: dict[str, list[float]] = {name: [] for name in systems}
            for _ in tqdm(range(arguments.turns), f"{clients} clients"):
                for name, connect in systems.items():
                    rates[name].append(throughput(connect, asked, clients, arguments.seconds))
            shares = [ours / theirs for ours, theirs in zip(rates["gateway"], rates["direct"])]
            told = {name: round(statistics.median(found), 1) for name, found in rates.items()}
            result["throughput"].append({"clients": clients, **told, "share": round(statistics.median(shares), 3)})
        result["gateway_memory_mb"] = round(process.memory_info().rss / 1e6)
        load = round(os.getloadavg()[0], 1)
        result["machine"] = {"cores": os.cpu_count(), "python": platform.python_version(), "load_at_end": load}
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
