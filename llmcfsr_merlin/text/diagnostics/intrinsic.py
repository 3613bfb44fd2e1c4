"""Intrinsic evaluation of item embeddings, without training a recommender: plain functions on arrays."""

from collections.abc import Sequence
from typing import Any

import numpy as np

_CHUNK = 256  # queries scored per batch


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows (n, D) scaled to length 1; zero rows stay zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def neighbours(vectors: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """The k rows of highest cosine to each query row, itself left out, best first. queries: (q,) positions. (q, k)."""
    scaled = unit(vectors)
    found = []
    for start in range(0, len(queries), _CHUNK):
        chunk = queries[start : start + _CHUNK]
        scores = scaled[chunk] @ scaled.T
        scores[np.arange(len(chunk)), chunk] = -np.inf
        top = np.argpartition(-scores, min(k, scores.shape[1] - 1), axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, top, 1), axis=1, kind="stable")
        found.append(np.take_along_axis(top, order, 1))
    return np.concatenate(found) if found else np.empty((0, k), dtype=np.int64)


def brand_retrieval(vectors: np.ndarray, queries: np.ndarray, brands: Sequence[str], k: int = 10) -> dict:
    """Share of the k nearest items that are of the query's brand, over queries whose brand has another item.

    `chance` is the same for random neighbours. Hits are capped by the number of other items of the brand.
    """
    names, code, size = np.unique(np.array(brands, dtype=object).astype(str), return_inverse=True, return_counts=True)
    usable = np.array([q for q in queries if names[code[q]] and size[code[q]] > 1], dtype=np.int64)
    if not len(usable):
        return {"precision": None, "chance": None, "queries": 0}
    near = neighbours(vectors, usable, k)
    others = size[code[usable]] - 1
    hits = (code[near] == code[usable][:, None]).sum(1)
    possible = np.minimum(others, k)
    return {
        "precision": round(float((hits / possible).mean()), 4),
        "chance": round(float((others * k / (len(brands) - 1) / possible).mean()), 4),
        "queries": len(usable),
    }


def category_retrieval(vectors: np.ndarray, queries: np.ndarray, categories: Sequence[frozenset], k: int = 10) -> dict:
    """Mean Jaccard overlap of the categories of a query and its k nearest items; `chance` for random ones."""
    usable = np.array([q for q in queries if categories[q]], dtype=np.int64)
    if not len(usable):
        return {"overlap": None, "chance": None, "queries": 0}
    near = neighbours(vectors, usable, k)
    random = np.random.default_rng(0).integers(0, len(categories), size=near.shape)

    def overlap(rows: np.ndarray) -> float:
        pairs = [(categories[q], categories[n]) for q, row in zip(usable, rows) for n in row]
        return round(float(np.mean([len(a & b) / len(a | b) for a, b in pairs])), 4)

    return {"overlap": overlap(near), "chance": overlap(random), "queries": len(usable)}


def next_item_retrieval(
    vectors: np.ndarray, sources: np.ndarray, targets: np.ndarray, counts: np.ndarray, tail_below: int, k: int = 10
) -> dict:
    """Rank of the next item among all items by cosine to the last one: HR@k and MRR; all, head and tail targets.

    sources, targets: (p,) positions; pairs of an item with itself are left out. counts: (n,) training interactions; a
    target with fewer than `tail_below` is tail. Ties count half. `chance` is HR@k of a random order.
    """
    kept = sources != targets
    sources, targets = sources[kept], targets[kept]
    scaled = unit(vectors)
    ranks = np.empty(len(sources))
    for start in range(0, len(sources), _CHUNK):
        source, target = sources[start : start + _CHUNK], targets[start : start + _CHUNK]
        rows = np.arange(len(source))
        scores = scaled[source] @ scaled.T
        own = scores[rows, target][:, None]
        scores[rows, source] = -np.inf
        ranks[start : start + len(source)] = 1 + (scores > own).sum(1) + ((scores == own).sum(1) - 1) / 2
    tail = counts[targets] < tail_below
    result: dict[str, Any] = {"chance": round(k / max(1, len(vectors) - 1), 5)}
    for group, rows in (("all", np.ones(len(ranks), bool)), ("head", ~tail), ("tail", tail)):
        chosen = ranks[rows]
        result[group] = {
            f"hr@{k}": round(float((chosen <= k).mean()), 4) if len(chosen) else None,
            "mrr": round(float((1 / chosen).mean()), 4) if len(chosen) else None,
            "pairs": len(chosen),
        }
    return result


def isotropy(vectors: np.ndarray, sample: int = 5000) -> dict:
    """Isotropy: how evenly the space is used, on at most `sample` rows.

    mean_cosine: of random pairs, 0 for an isotropic cloud. first_direction: share of the variance along the largest
    principal direction. effective_dimension: (sum of eigenvalues)^2 / sum of squares, D for an isotropic cloud.
    """
    rows = np.random.default_rng(0).permutation(len(vectors))[:sample]
    chosen = unit(vectors[rows].astype(np.float64))
    total = chosen.sum(0)
    pairs = len(chosen) * (len(chosen) - 1)
    values = np.maximum(np.linalg.eigvalsh(np.cov(chosen.T)), 0)
    return {
        "mean_cosine": round(float((total @ total - (chosen * chosen).sum()) / max(1, pairs)), 4),
        "first_direction": round(float(values.max() / values.sum()), 4),
        "effective_dimension": round(float(values.sum() ** 2 / (values**2).sum()), 1),
    }
