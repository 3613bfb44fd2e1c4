"""Exact top 10 of a large catalogue against serve.shortlist and against a faiss index, with their recall.

    pip install faiss-cpu==1.15.1
    python benchmarks/approximate.py --items 1000000 --out benchmarks/results/approximate.json

score(u, i) = <u, e_i> + gamma * max_t <v_t, v_i> = max_t <[u, gamma v_t], [e_i, v_i]>: one inner-product index over
the concatenated vectors (128 + 384 dimensions) holds the whole score. Each history item is a query of its own; their
candidates are joined and scored exactly. A shortlist (Ranker) is the same without an index: all items by the leading 64
dimensions of v, the best of them exactly. Items are drawn around random centres, as embeddings of real items are: on
vectors without structure no index finds neighbours. The vectors are not of a trained model.
"""

import argparse
import json
import os
import time
from pathlib import Path

import faiss
import numpy as np
import torch
import torch.nn.functional as F

from llmcfsr_merlin.scoring.ranker import _reduce

USER, RAW, GAMMA, K = 128, 384, 2.0, 10


def clustered(count: int, width: int, place: torch.Tensor, noise: float) -> torch.Tensor:
    """Unit vectors around centres; place: int64 [count], the centre of each."""
    centres = F.normalize(torch.randn(int(place.max()) + 1, width), dim=-1)
    return F.normalize(centres[place] + noise * torch.randn(count, width) / width**0.5, dim=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--cells", type=int, default=1024)
    parser.add_argument("--histories", type=int, default=50)
    parser.add_argument("--noise", type=float, default=1.5, help="length of an item's distance from its centre")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    place = torch.randint(0, max(options.items // 200, 1), (options.items,))
    views = clustered(options.items, USER, place, options.noise)
    units = clustered(options.items, RAW, place, options.noise)
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(np.log(8), 0.8, options.histories).astype(int), 1, 50)
    histories = [torch.from_numpy(random.integers(0, options.items, length)) for length in lengths]
    means = [views[history].mean(0) for history in histories]
    states = [F.normalize(mean + 0.3 * torch.randn(USER) / USER**0.5, dim=-1) for mean in means]

    exact, seconds = [], []
    for state, history in zip(states, histories):
        start = time.perf_counter()
        scores = views @ state + GAMMA * (units @ units[history].T).amax(1)
        exact.append(set(scores.topk(K).indices.tolist()))
        seconds.append(time.perf_counter() - start)
    result = {
        "items": options.items, "noise": options.noise, "cells": options.cells, "threads": 1,
        "load_average": round(os.getloadavg()[0], 1),
        "exact": {"p50_ms": round(1000 * float(np.median(seconds)), 1), "vectors_mb": options.items * 512 * 4 // 10**6},
        "shortlist": [], "approximate": [],
    }  # fmt: skip
    reduced = _reduce(units)
    for listed in (100, 1000, 4000):
        hits, seconds = 0, []
        for state, history, wanted in zip(states, histories, exact):
            start = time.perf_counter()
            rough = views @ state + GAMMA * (reduced @ reduced[history].T).amax(1)
            found = rough.topk(listed).indices
            scores = views[found] @ state + GAMMA * (units[found] @ units[history].T).amax(1)
            best = found[scores.topk(K).indices]
            seconds.append(time.perf_counter() - start)
            hits += len(wanted & set(best.tolist()))
        p50, recall = round(1000 * float(np.median(seconds)), 1), hits / (K * len(histories))
        result["shortlist"].append({"listed": listed, "p50_ms": p50, "recall_at_10": round(recall, 4)})
        print(result["shortlist"][-1], flush=True)

    both = torch.cat([views, units], 1).numpy()
    start = time.perf_counter()
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(USER + RAW), USER + RAW, options.cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = 5
    index.train(both[random.choice(options.items, min(options.items, 40 * options.cells), replace=False)])
    index.add(both)
    result["build_seconds"] = round(time.perf_counter() - start, 1)
    index.search(both[:8], K)  # the first search also starts its threads
    for probes in (1, 4, 16, 64):
        index.nprobe, hits, seconds = probes, 0, []
        for state, history, wanted in zip(states, histories, exact):
            start = time.perf_counter()
            read = units[history]
            queries = torch.cat([state.expand(len(read), -1), GAMMA * read], 1).numpy()
            found = torch.from_numpy(np.unique(index.search(queries, 4 * K)[1]))
            found = found[found >= 0]
            scores = views[found] @ state + GAMMA * (units[found] @ read.T).amax(1)
            best = found[scores.topk(min(K, len(found))).indices]
            seconds.append(time.perf_counter() - start)
            hits += len(wanted & set(best.tolist()))
        recall = hits / (K * len(histories))
        p50 = round(1000 * float(np.median(seconds)), 1)
        result["approximate"].append({"probes": probes, "p50_ms": p50, "recall_at_10": round(recall, 4)})
    text = json.dumps(result, indent=1)
    if options.out:
        options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
