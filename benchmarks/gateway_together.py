"""What joining questions in the gateway saves: rate and processor time of many clients, one user a request.

    python benchmarks/gateway_together.py runs/beauty --out benchmarks/results/gateway.json

One tritonserver of one thread behind two gateways, `gateway.join_from` 0 (each question is a request of Triton's) and
the default, and asked directly by gRPC. They take turns, so that other load meets all; processor time, which waiting
for a core does not lengthen, stands beside the rate. The key `together` of the file is replaced.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

from gateway import over_grpc, over_http, throughput
from serving_engines import histories, processor_seconds
from tqdm import tqdm

from llmcfsr_merlin.config.gateway_settings import GatewayConfig
from llmcfsr_merlin.config.serve_settings import ServeConfig
from llmcfsr_merlin.serving import Server
from llmcfsr_merlin.serving.gateway_server import GatewayOptions, GatewayServer
from llmcfsr_merlin.serving.repository import export


def spent(pid: int | None) -> float:
    return 0.0 if pid is None else processor_seconds(pid)


def measure(run: Path, asked: list[list[str]], clients: int, seconds: float, turns: int) -> dict:
    """Medians of the turns by system: requests a second, milliseconds of processor a request."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "repository"
        export(run, repository, ServeConfig())
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(Server(repository, threads=1, timeout=600))
            systems: dict[str, tuple] = {"direct": (lambda: over_grpc(server.grpc_url), None)}
            for name, settings in (("alone", GatewayConfig(join_from=0)), ("together", GatewayConfig())):
                gateway = GatewayServer(repository, GatewayOptions(port=0, settings=settings))
                stack.enter_context(gateway).start([server.grpc_url.removeprefix("grpc://")])
                systems[f"gateway, {name}"] = (partial(over_http, gateway.port), gateway.pid)
            for _ in tqdm(range(turns), f"{clients} clients"):
                for name, (connect, pid) in systems.items():
                    before = spent(server.pid), spent(pid)
                    start = time.perf_counter()
                    rate = throughput(connect, asked, clients, seconds)
                    count = rate * (time.perf_counter() - start)
                    after = spent(server.pid), spent(pid)
                    each = (1000 * (now - was) / max(count, 1) for now, was in zip(after, before))
                    found.setdefault(name, []).append((rate, *each))
    names = ("requests_per_second", "server_cpu_ms", "gateway_cpu_ms")
    return {
        name: {of: round(statistics.median(column), 2) for of, column in zip(names, zip(*rows))}
        for name, rows in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--sequences", type=Path, help="of stage prepare, if they do not stand in the run")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    load = round(os.getloadavg()[0], 1)
    asked = histories(options.run, options.sequences, 640)
    result = {
        "date": time.strftime("%Y-%m-%d"), "clients": options.clients, "turns": options.turns,
        "systems": measure(options.run, asked, options.clients, options.seconds, options.turns),
        "load_average": [load, round(os.getloadavg()[0], 1)],
    }  # fmt: skip
    if options.out:
        whole = json.loads(options.out.read_text()) if options.out.is_file() else {}
        options.out.write_text(json.dumps(whole | {"together": result}, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
