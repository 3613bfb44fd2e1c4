"""Exact top 10 of a large catalogue against a faiss index, with its recall (the shortlist: serving_scale.py).

    pip install faiss-cpu==1.15.1
    python benchmarks/approximate.py --items 1000000 --out benchmarks/results/approximate.json

score(u, i) = <u, e_i> + w * max_t <v_t, v_i> = max_t <[u, w v_t], [e_i, v_i]>: one inner-product index over
the concatenated vectors (128 + 384 dimensions) holds the whole score. Each history item is a query of its own; their
candidates are joined and scored exactly. Items are drawn around random centres, as embeddings of real items are: on
vectors without structure no index finds neighbours. The vectors are not of a trained model; u is the mean of the
history's e, moved by the same noise for all.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llmcfsr_merlin.config.model_settings import ModelConfig
from llmcfsr_merlin.config.scorer_settings import ContentSettings
from llmcfsr_merlin.config.section import Section
from llmcfsr_merlin.dataset.dataset import Shape
from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.scoring.ensemble import Ensemble
from llmcfsr_merlin.scoring.ranker import Ranker
from llmcfsr_merlin.scoring.scorer import Feature, ItemVectors, Scorer
from llmcfsr_merlin.scoring.scorers.content import ContentScorer

USER, RAW, CONTENT_WEIGHT, K = 128, 384, 2.0, 10


def clustered(count: int, width: int, place: torch.Tensor, noise: float) -> torch.Tensor:
    """Unit vectors around centres; place: int64 [count], the centre of each."""
    centres = F.normalize(torch.randn(int(place.max()) + 1, width), dim=-1)
    return F.normalize(centres[place] + noise * torch.randn(count, width) / width**0.5, dim=-1)


class Views(Scorer):
    """<u, e_i>: what the trained network computes, without the network."""

    FEATURES = (Feature("views"),)

    def __init__(self, shape: Shape, vectors: ItemVectors, views: Tensor):
        super().__init__(Section(), shape, vectors)
        self.register_buffer("views", views)
        self.register_buffer("noise", 0.3 * torch.randn(views.shape[1]) / views.shape[1] ** 0.5)

    def states(self, histories: Tensor) -> Tensor:
        return F.normalize(self.views[histories].mean(1) + self.noise, dim=-1)

    def forward(self, histories: Tensor, items: Tensor | None = None) -> Tensor:
        states = self.states(histories)
        if items is None:
            return (states @ self.views.T).unsqueeze(0)
        return (self.views[items] @ states.unsqueeze(-1)).squeeze(-1).unsqueeze(0)


def make_model(views: Tensor, units: Tensor) -> Ensemble:
    """views: [V, 128], units: [V, 384], reserved rows included."""
    shape = Shape(len(views), 50, units.shape[1])
    vectors = ItemVectors(shape)
    vectors.semantic = units
    settings = ContentSettings(lexical_share=0)
    scorers = {"views": Views(shape, vectors, views), "content": ContentScorer(settings, shape, vectors)}
    model = Ensemble(ModelConfig(scorers={"content": settings}), scorers, shape, vectors)
    model.set_weights({"content": CONTENT_WEIGHT})
    return model


def timed(find: Callable[[Tensor], Tensor], histories: list[Tensor]) -> tuple[float, list[set[int]]]:
    """Median milliseconds and what was found. find: history int64 [1, L] -> items."""
    seconds, found = [], []
    for history in histories:
        start = time.perf_counter()
        items = find(history)
        seconds.append(time.perf_counter() - start)
        found.append(set(items.flatten().tolist()))
    return round(1000 * float(np.median(seconds)), 1), found


def recall(found: list[set[int]], exact: list[set[int]]) -> float:
    return round(sum(len(one & wanted) for one, wanted in zip(found, exact)) / (K * len(exact)), 4)


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
    views, units = (
        F.pad(clustered(options.items, width, place, options.noise), (0, 0, FIRST_ITEM, 0)) for width in (USER, RAW)
    )
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(np.log(8), 0.8, options.histories).astype(int), 1, 50)
    histories = [torch.from_numpy(random.integers(FIRST_ITEM, len(views), (1, length))) for length in lengths]
    model = make_model(views, units)

    ranker = Ranker(model)
    p50, exact = timed(lambda history: ranker.top_k(history, K)[0], histories)
    result = {
        "items": options.items, "noise": options.noise, "cells": options.cells, "threads": 1,
        "load_average": round(os.getloadavg()[0], 1),
        "exact": {"p50_ms": p50, "vectors_mb": options.items * (USER + RAW) * 4 // 10**6},
        "approximate": [],
    }  # fmt: skip

    both = torch.cat([views, units], 1)[FIRST_ITEM:].numpy()
    start = time.perf_counter()
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(USER + RAW), USER + RAW, options.cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = 5
    index.train(both[random.choice(options.items, min(options.items, 40 * options.cells), replace=False)])
    index.add(both)
    result["build_seconds"] = round(time.perf_counter() - start, 1)
    index.search(both[:8], K)  # the first search also starts its threads

    def search(history: Tensor) -> Tensor:
        read, state = units[history[0]], model.scorers["views"].states(history)
        queries = torch.cat([state.expand(len(read), -1), CONTENT_WEIGHT * read], 1).numpy()
        found = torch.from_numpy(np.unique(index.search(queries, 4 * K)[1]))
        found = found[found >= 0] + FIRST_ITEM
        with torch.inference_mode():
            scores = model.scores(history, found[None])[0]
        return found[scores.topk(min(K, len(found))).indices]

    for probes in (1, 4, 16, 64):
        index.nprobe = probes
        p50, found = timed(search, histories)
        result["approximate"].append({"probes": probes, "p50_ms": p50, "recall_at_10": recall(found, exact)})
    text = json.dumps(result, indent=1)
    if options.out:
        options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
