"""The shortlist with bounds against the exact path and a faiss index alone: time, recall, share that is proven, memory.

    pip install faiss-cpu==1.15.1
    python benchmarks/serving_scale.py TRAINED TEST.parquet --items 12101 100000 --out benchmarks/results/serving.json

TRAINED: a sealed model. TEST.parquet: encoded sequences (prepare/test); their histories, without the last item, are
asked.
A size above the model's own is a grown catalogue (benchmarks/grown_catalogue.py). The rows of the measured sizes and
paths in the list `scale` of --out are replaced, the rest stays.

Times are of one thread. cpu_ms are processor times of the same calls: on a machine that does other things too, they
say what an idle one would need. faiss: IndexIVFFlat over [views, content weight * unit vector], one query a history
item, as in benchmarks/approximate.py, without popularity and transitions, which an inner product does not hold.
"""

import argparse
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from benchmarks.grown_catalogue import grow, grown_histories
from benchmarks.serving import keep_to, memory_mb, served, take_turns
from llmcfsr_merlin.config.serve_settings import ServeConfig
from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.dataset.vocabulary import Vocabulary
from llmcfsr_merlin.scoring.checkpoint import load_model
from llmcfsr_merlin.scoring.ensemble import Ensemble
from llmcfsr_merlin.scoring.ranker import Ranker, pad
from llmcfsr_merlin.scoring.scorers.content import unit_vectors
from llmcfsr_merlin.scoring.search.bound_tables import SEAL, take_tables, write_tables
from llmcfsr_merlin.serving import Server
from llmcfsr_merlin.serving.onnx_engine import compile_model
from llmcfsr_merlin.serving.repository import export

K = 10
Ask = Callable[[Tensor], tuple[Tensor, bool]]  # one history -> items [K] and whether they are proven


def timed(ask: Ask, histories: list[Tensor], warm: int = 10) -> tuple[dict, list[set[int]]]:
    for history in histories[:warm]:
        ask(history)
    wall, cpu, found, proven = [], [], [], 0
    for history in histories:
        start = time.perf_counter(), time.thread_time()
        items, exact = ask(history)
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.thread_time() - start[1])
        found.append(set(items.tolist()))
        proven += exact
    (p50, p99), (c50, c99) = (np.percentile(seconds, [50, 99]) * 1000 for seconds in (wall, cpu))
    times = {"bare_p50_ms": p50, "bare_p99_ms": p99, "bare_cpu_p50_ms": c50, "bare_cpu_p99_ms": c99}
    return {name: round(float(value), 2) for name, value in times.items()} | {
        "certified": round(proven / len(histories), 4), "histories": len(histories),
    }, found  # fmt: skip


def recall(found: list[set[int]], exact: list[set[int]]) -> float:
    return round(sum(len(one & wanted) for one, wanted in zip(found, exact)) / (K * len(exact)), 4)


def exact_tops(model: Ensemble, histories: list[Tensor], chunk: int = 1 << 15) -> list[set[int]]:
    """The top K of the full ranking, in parts of the items: all vectors at unit length would need 2 GB more."""
    content, network = model.scorers["content"], model.scorers["network"]
    network.prepare()
    totals = []
    for history in histories:
        others = [part for part in model.active if part not in (content, network)]
        totals.append(sum(part.weighted(history)[0] for part in others))
    states = torch.cat([network.weights * network.states(history) for history in histories])
    lengths = [history.shape[1] for history in histories]
    read = torch.cat(histories, 1)[0]
    units = content._units_of(read)
    for start in range(0, model.shape.n_items, chunk):
        own = slice(start, min(start + chunk, model.shape.n_items))
        some = torch.arange(own.start, own.stop)
        cosines = content._units_of(some) @ units.T
        cosines.masked_fill_(some[:, None] == read, -2.0)
        best = torch.stack([part.amax(1) for part in cosines.split(lengths, 1)])
        best = content._weights_of(some) * best.masked_fill(best == -2.0, 0.0)
        scores = (network.catalogue[own] @ states.T).T + best
        for total, score in zip(totals, scores):
            total[own] += score
    for total in totals:
        total[:FIRST_ITEM] = -torch.inf
    return [set(total.topk(K).indices.tolist()) for total in totals]


def faiss_alone(model: Ensemble, cells: int, probes: int) -> Ask:
    import faiss

    faiss.omp_set_num_threads(1)
    network, content = model.scorers["network"], model.scorers["content"]
    units, weights = unit_vectors(model.vectors, content.settings.lexical_share), content.item_weights()
    both = torch.cat([network.catalogue, weights[:, None] * units], 1)[FIRST_ITEM:].numpy()
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(both.shape[1]), both.shape[1], cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = 5
    index.train(both[np.random.default_rng(0).choice(len(both), min(len(both), 40 * cells), replace=False)])
    index.add(both)
    index.nprobe = probes

    def ask(history: Tensor) -> tuple[Tensor, bool]:
        read = units[history[0]]
        queries = torch.cat([network.states(history).expand(len(read), -1), read], 1).numpy()
        scores, found = index.search(queries, 4 * K)
        best: dict[int, float] = {}
        for item, score in zip(found.flatten().tolist(), scores.flatten().tolist()):
            if item >= 0:
                best[item] = max(score, best.get(item, -np.inf))
        top = sorted(best, key=lambda item: -best[item])[:K]
        return torch.tensor(top) + FIRST_ITEM, False

    return ask


def library(ranker: Ranker) -> Ask:
    def ask(history: Tensor) -> tuple[Tensor, bool]:
        found = ranker.find(history, K)
        return found.items[0], bool(found.exact[0])

    return ask


def memory() -> dict[str, float]:
    """Of this process, in MB: its own, and what is mapped from files and in memory, which other processes share."""
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, mapped = (int(told[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile"))
    return {"memory_mb": round(own), "mapped_mb": round(mapped)}


@torch.inference_mode()
def measure(folder: Path, histories: list[Tensor], options: argparse.Namespace, tables: Path) -> list[dict]:
    built: dict[str, float] = {}
    if not (tables / SEAL).is_file():
        tables.mkdir(parents=True, exist_ok=True)
        start, cpu = time.perf_counter(), time.process_time()
        write_tables(load_model(folder), tables)
        built = {
            "tables_s": round(time.perf_counter() - start, 1), "tables_cpu_s": round(time.process_time() - cpu, 1)
        }  # fmt: skip
        print(folder.name, built, flush=True)
    before = memory()
    start, cpu = time.perf_counter(), time.process_time()
    model = load_model(folder)
    take_tables(model, tables)
    ranker = Ranker(model, shortlist=options.shortlist)
    if options.engine == "onnxruntime":
        compile_model(model, products=False)
    load = {"load_s": round(time.perf_counter() - start, 1), "load_cpu_s": round(time.process_time() - cpu, 1)}
    items = model.shape.n_items - FIRST_ITEM
    about = {"items": items, "shortlist": options.shortlist, "engine": options.engine}
    found = {"shortlist": timed(library(ranker), histories)}
    load |= built | {name: value - before[name] for name, value in memory().items()}
    if items <= options.compare_exact:
        full = Ranker(model)
        if options.engine == "onnxruntime":
            compile_model(model)
        found["exact"] = timed(library(full), histories)
        tops = found["exact"][1]
        del full
        model.scorers["content"]._units = None
    else:
        tops = exact_tops(model, histories)
    if options.served:
        load |= through_grpc(folder, histories, options, tables.with_name(f"served-{items}"))
    if items <= options.compare_faiss:
        for probes in (4, 32):
            found[f"faiss alone, {probes} probes"] = timed(faiss_alone(model, options.cells, probes), histories)
    rows = []
    for path, (times, lists) in found.items():
        busy = {"load_average": round(os.getloadavg()[0], 1)}
        rows.append({"path": path, **about, **times, "recall_at_10": recall(lists, tops), **busy,
                     **(load if path == "shortlist" else {})})  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def through_grpc(folder: Path, histories: list[Tensor], options: argparse.Namespace, repository: Path) -> dict:
    """Raw ids in and out, from one client: the server on the last core, the client on the others."""
    if not repository.is_dir():
        serve = ServeConfig(layout="merged", engine=options.engine, shortlist=options.shortlist)
        export(folder, repository, serve)
    ids, cores = Vocabulary.load(folder / "vocabulary.parquet").ids, sorted(os.sched_getaffinity(0))
    asked = [[str(ids[code - FIRST_ITEM]) for code in history[0].tolist() if code] for history in histories]
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(repository, threads=1, timeout=600))
        about = {"server_load_s": round(time.perf_counter() - start, 1)}
        keep_to(server, cores[-1])
        os.sched_setaffinity(0, cores[:-1] or cores)
        stack.callback(os.sched_setaffinity, 0, cores)
        times = take_turns({"served": served(server.grpc_url, stack)}, asked, max(len(asked) // 10, 1), 10)["served"]
        return {"p50_ms": times["p50_ms"], "p99_ms": times["p99_ms"], **about, "server_mb": memory_mb(server.pid)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--items", type=int, nargs="+", default=[12_101, 100_000, 1_000_000])
    parser.add_argument("--histories", type=int, default=300)
    parser.add_argument("--shortlist", type=int, default=1000)
    parser.add_argument("--engine", choices=["torch", "onnxruntime"], default="onnxruntime", help="as serve.engine")
    parser.add_argument("--cells", type=int, default=256, help="of the faiss index")
    parser.add_argument("--compare-exact", type=int, default=200_000, help="most items of a timed exact path")
    parser.add_argument("--compare-faiss", type=int, default=200_000, help="most items of a faiss index")
    parser.add_argument("--served", action="store_true", help="the shortlist through gRPC, too (layout merged)")
    parser.add_argument("--folder", type=Path, help="keeps the catalogues and tables")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    real = load_model(options.trained).shape.n_items - FIRST_ITEM
    sequences = [one[:-1] for one in pq.read_table(options.test)["item_id"].to_pylist() if len(one) > 1]
    random = np.random.default_rng(0)
    chosen = [sequences[place] for place in random.choice(len(sequences), options.histories, replace=False)]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        for items in options.items:
            trained, lists = options.trained, chosen
            if items > real:
                trained, lists = folder / f"g{items}", grown_histories(chosen, real, items)
                if not (trained / "manifest.json").is_file():
                    grow(options.trained, items, trained)
            histories = [pad([history], 50) for history in lists]
            rows += measure(trained, histories, options, folder / f"tables-{items}")
    if options.out:
        result = json.loads(options.out.read_text()) if options.out.is_file() else {}
        measured = {(row["items"], row["path"]) for row in rows}
        kept = [row for row in result.get("scale", []) if (row["items"], row["path"]) not in measured]
        result["scale"] = sorted(kept + rows, key=lambda row: row["items"])
        result.pop("scale_load_average", None)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
