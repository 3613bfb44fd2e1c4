"""Latency, throughput, memory and catalogue size of serving, side by side with the bare forward and with NVTabular.

    python benchmarks/serving.py --out benchmarks/results/serving.json

A model with random weights (both views, hidden 64, vectors of 384 and 128 dimensions, 50 positions) is served by a real
tritonserver. The bare forward is Ranker.top_k on ready codes in this process: no ids, no server. The systems take turns
in short rounds, so that other load on the machine meets all of them. Histories have 1 to 50 items, median 8; k = 10.
merlin-systems is measured if it is importable. The last line printed is the JSON of the run.
"""

import argparse
import contextlib
import importlib
import importlib.util
import io
import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from llmcfsr_merlin.config.load import Config
from llmcfsr_merlin.config.serve_settings import ServeConfig
from llmcfsr_merlin.dataset.dataset import Shape
from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.recommender import Recommender
from llmcfsr_merlin.runtime.stage import seal
from llmcfsr_merlin.scoring.checkpoint import save_model
from llmcfsr_merlin.scoring.ensemble import Ensemble
from llmcfsr_merlin.scoring.ranker import select_top_k
from llmcfsr_merlin.serving import Client, Server
from llmcfsr_merlin.serving.access import GRPC_HEADER, HEADER
from llmcfsr_merlin.serving.repository import export

LENGTH, DIMENSION, LEXICAL, HIDDEN, K = 50, 384, 128, 64, 10
FIRST_ROUNDS = 20  # calls before timing
Ask = Callable[[list[str]], object]  # one history


def make_model(folder: Path, items: int) -> Path:
    """A sealed model of random weights with `items` items in `folder`."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    counts = np.maximum(items // np.arange(1, items + 1), 1)
    rows = items + FIRST_ITEM
    config = Config.load(None, [f"model.scorers.network.hidden={HIDDEN}"]).model
    model = Ensemble.empty(config, Shape(rows, LENGTH, DIMENSION, LEXICAL))
    vectors, scorers = model.vectors, model.scorers
    transitions, train_counts = scorers["transitions"], torch.tensor(np.r_[0, 0, 0, counts])
    for filled in (vectors.semantic.normal_(), vectors.lexical.normal_(), transitions.next_weights.uniform_(0, 0.1),
                   transitions.next_items.random_(FIRST_ITEM, rows)):  # fmt: skip
        filled[:FIRST_ITEM] = 0
    scorers["network"].network.initialise(train_counts)
    scorers["content"].coldness.copy_(1 / (1 + train_counts / 3))
    model.set_weights({"content": 2.0, "content_cold": 3.0, "transitions": 0.5})
    ids = [f"B{i:09d}" for i in range(items)]
    columns = {"item_id": ids, "code": np.arange(FIRST_ITEM, rows), "count": counts, "train_count": counts}
    pq.write_table(pa.table(columns), folder / "vocabulary.parquet")
    save_model(model, folder, Vocabulary.load(folder / "vocabulary.parquet").hash)
    seal(folder, "train", "benchmark", {})
    return folder


def histories(items: int, count: int = 500) -> list[list[str]]:
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(np.log(8), 0.8, count).astype(int), 1, LENGTH)
    return [[f"B{i:09d}" for i in random.integers(0, items, length)] for length in lengths]


def percentiles(seconds: list[float]) -> dict:
    p50, p99 = np.percentile(seconds, [50, 99]) * 1000
    return {"p50_ms": round(p50, 3), "p99_ms": round(p99, 3), "calls": len(seconds)}


def take_turns(systems: dict[str, Ask], asked: list[list[str]], rounds: int, each: int) -> dict:
    """Seconds of every call of every system; the same histories for all, in rounds of `each` calls."""
    for ask in systems.values():
        for history in asked[:FIRST_ROUNDS]:
            ask(history)
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for turn in tqdm(range(rounds), "latency"):
        for name, ask in systems.items():
            for i in range(each):
                history = asked[(turn * each + i) % len(asked)]
                start = time.perf_counter()
                ask(history)
                seconds[name].append(time.perf_counter() - start)
    return {name: percentiles(times) for name, times in seconds.items()}


def executions(client: Client, model: str, key: str) -> tuple[int, int]:
    """Rows answered and forward passes so far, by Triton's own statistics. key: of the server."""
    header = GRPC_HEADER if client.url.startswith("grpc") else HEADER
    found = client._connection.get_inference_statistics(model, headers={header: key})
    if isinstance(found, dict):  # HTTP
        stats = [(one["inference_count"], one["execution_count"]) for one in found["model_stats"]]
    else:
        stats = [(one.inference_count, one.execution_count) for one in found.model_stats]
    rows, passes = zip(*stats)  # of every loaded version
    return sum(rows), sum(passes)


def throughput(url: str, model: str, key: str, asked: list[list[str]], concurrency: int, seconds: float) -> dict:
    """Requests of one row each from `concurrency` clients for `seconds`. key: of the server."""
    times: list[float] = []
    ready, end = threading.Barrier(concurrency + 1), [0.0]

    def work(seed: int) -> None:
        with Client(url) as client:
            client.answer([asked[seed]], K)
            ready.wait()
            i = seed
            while time.perf_counter() < end[0]:
                start = time.perf_counter()
                client.answer([asked[i % len(asked)]], K)
                times.append(time.perf_counter() - start)
                i += concurrency

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(concurrency)]
    for thread in threads:
        thread.start()
    with Client(url) as client:
        client.answer([asked[0]], K)
        end[0] = time.perf_counter() + seconds + 1
        ready.wait()
        rows, passes = executions(client, model, key)
        start = time.perf_counter()
        for thread in threads:
            thread.join()
        wall = time.perf_counter() - start
        rows_after, passes_after = executions(client, model, key)
    return {
        "concurrency": concurrency,
        "requests_per_second": round(len(times) / wall, 1),
        "rows_per_forward": round((rows_after - rows) / max(passes_after - passes, 1), 2),
        **percentiles(times),
    }


def memory_mb(pid: int) -> int:
    """Proportional memory of a process and its children, in MB: shared pages count once."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return round(sum(process.memory_full_info().pss for process in family) / 1e6)


def keep_to(server: Server, core: int) -> None:
    """Let a server and its steps use one core."""
    for process in [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]:
        process.cpu_affinity([core])
        for thread in process.threads():  # started before: they keep their own
            os.sched_setaffinity(thread.id, [core])


def serve(trained: Path, folder: Path, layout: str, stack: contextlib.ExitStack, **settings) -> tuple[Server, dict]:
    repository = folder / f"repository-{layout}-{len(list(folder.iterdir()))}"
    export(trained, repository, ServeConfig(layout=layout, **settings))
    start = time.perf_counter()
    server = stack.enter_context(Server(repository, threads=1, timeout=600))
    return server, {"load_seconds": round(time.perf_counter() - start, 1), "memory_mb": memory_mb(server.pid)}


def bare(recommender: Recommender) -> Ask:
    """Ranker.top_k on codes that are made outside the timing."""
    codes = {}

    def ask(history: list[str]):
        key = id(history)
        if key not in codes:
            codes[key] = recommender.encode([history]).item_ids
        return recommender.ranker.top_k(codes[key], K)

    return ask


def served(url: str, stack: contextlib.ExitStack) -> Ask:
    client = stack.enter_context(Client(url))
    return lambda history: client.answer([history], K)


def nvtabular(folder: Path, items: int) -> Ask:
    """Categorify of one row by a fitted workflow, as a merlin-systems ensemble does before the model."""
    importlib.import_module("llmcfsr_merlin.runtime.merlin_compat")
    import nvtabular as nvt
    import pandas as pd

    logs = pd.DataFrame({"item_id": [[f"B{i:09d}"] for i in range(items)]})
    workflow = nvt.Workflow(["item_id"] >> nvt.ops.Categorify(out_path=str(folder / "categories")))
    workflow.fit(nvt.Dataset(logs, cpu=True))
    return lambda history: workflow.transform(nvt.Dataset(pd.DataFrame({"item_id": [history]}), cpu=True)).compute()


class MerlinSystems(Server):
    """The same server on a repository that merlin-systems exported."""

    def __init__(self, repository: Path, models: list[str]):
        super().__init__(repository, threads=1)
        self.models = models

    def _command(self) -> list[str]:
        command = super()._command()
        place = command.index("--load-model")
        named = [word for model in self.models for word in ("--load-model", model)]
        return [*command[:place], *named, *command[place + 2 :]]

    def trouble(self, timeout: float) -> str | None:
        """Nothing: its models take no histories, and Triton opens its ports when they are loaded."""


def merlin_systems(folder: Path, items: int, stack: contextlib.ExitStack) -> Ask:
    """The workflow as an exported and served merlin-systems ensemble, asked by gRPC; codes out, no model behind it."""
    importlib.import_module("llmcfsr_merlin.runtime.merlin_compat")
    import nvtabular as nvt
    import pandas as pd
    import tritonclient.grpc as triton
    from merlin.systems.dag.ensemble import Ensemble
    from merlin.systems.dag.ops.workflow import TransformWorkflow

    logs = pd.DataFrame({"item_id": [[f"B{i:09d}"] for i in range(items)]})
    workflow = nvt.Workflow(["item_id"] >> nvt.ops.Categorify(out_path=str(folder / "merlin-categories")))
    workflow.fit(nvt.Dataset(logs, cpu=True))
    ensemble = Ensemble(workflow.input_schema.column_names >> TransformWorkflow(workflow), workflow.input_schema)
    with contextlib.redirect_stdout(io.StringIO()):
        ensemble.export(str(folder / "merlin"))
    models = sorted(path.name for path in (folder / "merlin").iterdir())
    # Our Server looks for a repository of ours, which has a model of this name.
    (folder / "merlin" / "recommend").mkdir()
    (folder / "merlin" / "recommend" / "config.pbtxt").write_text('name: "recommend"')
    server = stack.enter_context(MerlinSystems(folder / "merlin", models))
    client = triton.InferenceServerClient(server.grpc_url.partition("://")[2])

    def ask(history: list[str]):
        values = triton.InferInput("item_id__values", [len(history)], "BYTES")
        values.set_data_from_numpy(np.array(history, dtype=object))
        offsets = triton.InferInput("item_id__offsets", [2], "INT32")
        offsets.set_data_from_numpy(np.array([0, len(history)], np.int32))
        return client.infer("executor_model", [values, offsets]).as_numpy("item_id__values")

    return ask


def compare(trained: Path, folder: Path, items: int, rounds: int, seconds: float) -> dict:
    """Every system on one catalogue."""
    asked = histories(items)
    recommender = Recommender.load(trained)
    systems: dict[str, Ask] = {"bare forward": bare(recommender)}
    systems["library, raw ids in and out"] = lambda history: recommender.answer([history], K)
    result: dict = {"servers": {}, "throughput": []}
    with contextlib.ExitStack() as stack:
        servers = {}
        for layout in ("merged", "ensemble"):
            servers[layout], result["servers"][layout] = serve(trained, folder, layout, stack)
            for protocol in ("grpc", "http"):
                url = servers[layout].grpc_url if protocol == "grpc" else servers[layout].http_url
                systems[f"{layout}, {protocol}"] = served(url, stack)
        systems["NVTabular transform of one row (no model)"] = nvtabular(folder, items)
        if importlib.util.find_spec("merlin.systems"):
            systems["merlin-systems ensemble, grpc (no model)"] = merlin_systems(folder, items, stack)
        result["latency_batch_1"] = take_turns(systems, asked, rounds, 25)
        first = result["latency_batch_1"]["bare forward"]
        for times in result["latency_batch_1"].values():
            times["p50_ratio"] = round(times["p50_ms"] / first["p50_ms"], 2)
            times["p99_ratio"] = round(times["p99_ms"] / first["p99_ms"], 2)
        for layout, server in servers.items():
            key = server.key_file.read_text().partition(": ")[2].strip()
            for protocol, url in (("grpc", server.grpc_url), ("http", server.http_url)):
                for concurrency in (1, 8, 32):
                    model = "rank" if layout == "ensemble" else "recommend"
                    found = throughput(url, model, key, asked, concurrency, seconds)
                    result["throughput"].append({"layout": layout, "protocol": protocol, **found})
    return result


def scale(trained: Path, folder: Path, items: int, rounds: int) -> dict:
    """Load time, memory and latency of one catalogue size (layout merged, gRPC), and where the time goes."""
    asked = histories(items)
    with contextlib.ExitStack() as stack:
        server, about = serve(trained, folder, "merged", stack)
        recommender = Recommender.load(trained)
        states = torch.randn(1, recommender.ranker.n_items)
        systems = {
            "bare forward": bare(recommender),
            "top-10 of ready scores": lambda _: select_top_k(states, K),
            "merged, grpc": served(server.grpc_url, stack),
        }
        latency = take_turns(systems, asked, rounds, 10 if items > 200_000 else 25)
        about["memory_after_mb"] = memory_mb(server.pid)
    weights = (trained / "model.safetensors").stat().st_size
    return {"items": items, "weights_mb": round(weights / 1e6), **about, "latency": latency}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[12_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=40, help="of 25 calls a system")
    parser.add_argument("--seconds", type=float, default=5, help="of each throughput measurement")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)  # as the server's
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "threads": 1,
        "load_average_before": round(os.getloadavg()[0], 1),
    }
    with tempfile.TemporaryDirectory() as scratch:
        for place, items in enumerate(options.items):
            folder = Path(scratch) / str(items)
            trained = make_model(folder / "train", items)
            if place == 0:
                compared = compare(trained, folder, items, options.rounds, options.seconds)
                result["compared"] = {"items": items, **compared}
            rounds = max(options.rounds * 12_000 // items, 10)
            result.setdefault("catalogues", []).append(scale(trained, folder, items, min(rounds, options.rounds)))
    result["load_average_after"] = round(os.getloadavg()[0], 1)
    text = json.dumps(result, indent=1)
    if options.out:
        options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
