"""What the recommended lists are like beside accuracy: spread over the catalogue, novelty, diversity, serendipity,
calibration.

For lists of K items of U users, N items, n_i training interactions and u_i training users of item i; the definitions of
RecTools (`rectools.metrics`) if it has one, and of Steck (Calibrated Recommendations, RecSys 2018) for calibration:

    coverage@K    share of items that are in a list                                                  CatalogCoverage
    gini@K        inequality of how often items are in a list: 0 even, towards 1 concentrated
    arp@K         mean n_i over all places of all lists                                              AvgRecPopularity
    novelty@K     mean over users of -1/K sum log2(u_i / users), at least one user an item           MeanInvUserFreq
    ild@K         mean over users of the mean 1 - cosine of the texts of two items of the list       IntraListDiversity
    serendipity@K mean over users of 1/K sum over the target's place of max(p(i) - pop(i), 0)        Serendipity
    calibration@K mean over users of KL(p || q): categories of the history p and of the list q, 0 is as the user is;
                  q is smoothed by a hundredth of p
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from llmcfsr_merlin.dataset.names import FIRST_ITEM, PAD

_SMOOTH = 0.01  # of p in q, as in Steck's paper


@dataclass(frozen=True)
class ItemFacts:
    """What is known of items, by code.

    train_counts: int64 [V], training interactions. item_users: int64 [V], training users; users: their number.
    vectors: float32 [V, D] of the texts, of length 1 or 0, or None. categories: sparse float32 [V, G], rows of sum 1 or
    0 (an item's share in each of its categories), or None.
    """

    train_counts: np.ndarray
    item_users: np.ndarray | None = None
    users: int = 0
    vectors: np.ndarray | None = None
    categories: sparse.csr_matrix | None = None

    @property
    def popularity(self) -> np.ndarray:
        """float64 [V]: (N + 1 - place) / N, place 1 the most interactions, places dense; 0 if there are none."""
        counts = self.train_counts[FIRST_ITEM:]
        _, dense = np.unique(-counts[counts > 0], return_inverse=True)
        found = np.zeros(len(self.train_counts))
        found[FIRST_ITEM + np.flatnonzero(counts > 0)] = (len(counts) - dense) / max(len(counts), 1)
        return found


class ListSums:
    """Sums over the lists of all users, batch by batch: memory is that of a batch and of the catalogue."""

    def __init__(self, ks: Sequence[int], facts: ItemFacts):
        self.ks, self.facts = tuple(ks), facts
        self.count = 0
        self.times = {k: np.zeros(len(facts.train_counts), np.int64) for k in self.ks}
        self.sums: dict[str, float] = {}
        self.of: dict[str, int] = {}  # users that a sum is over
        self._popularity = facts.popularity
        if facts.item_users is not None:
            self._surprise = -np.log2(np.maximum(facts.item_users, 1) / max(facts.users, 1))

    def add(self, top: np.ndarray, targets: np.ndarray, histories: np.ndarray) -> None:
        """Add recommended codes int64 [B, max K], best first, 0 an empty place; targets int64 [B]; histories int64
        [B, L], padded with 0."""
        top = np.asarray(top)
        shown, filled = top != PAD, (top != PAD).sum(1)
        self.count += len(top)
        for k, times in self.times.items():
            times += np.bincount(top[:, :k].ravel(), minlength=len(times))
        total = len(self.facts.train_counts) - FIRST_ITEM
        place = np.arange(top.shape[1])
        surplus = np.maximum((total - place) / total - self._popularity[top], 0) * (top == targets[:, None]) * shown
        self._mean("serendipity", np.cumsum(surplus, 1), lambda k: np.full(len(top), k))
        if self.facts.item_users is not None:
            self._mean("novelty", np.cumsum(self._surprise[top] * shown, 1), lambda k: np.minimum(filled, k))
        if self.facts.vectors is not None:
            self._diversity(self.facts.vectors[top], shown)
        if self.facts.categories is not None:
            self._calibration(self.facts.categories, top, histories)

    def values(self) -> dict[str, float]:
        """Metric -> value; what nothing is known of is left out."""
        found = {}
        counts = self.facts.train_counts
        for k, times in self.times.items():
            real = np.sort(times[FIRST_ITEM:])
            total = max(int(real.sum()), 1)
            place = 2 * np.arange(1, len(real) + 1, dtype=np.float64) - len(real) - 1
            found[f"coverage@{k}"] = float((real > 0).mean())
            found[f"gini@{k}"] = float((place * real).sum() / (len(real) * total))
            found[f"arp@{k}"] = float((times[FIRST_ITEM:] * counts[FIRST_ITEM:].astype(np.float64)).sum() / total)
        return found | {name: total / self.of[name] for name, total in self.sums.items() if self.of[name]}

    def _mean(self, name: str, sums: np.ndarray, size: Callable[[int], np.ndarray]) -> None:
        """sums: [B, max K], of the first places of each list. size: K -> [B], what they are divided by, 0: no value."""
        for k in self.ks:
            divisor = size(k)
            valid = divisor > 0
            values = sums[:, min(k, sums.shape[1]) - 1][valid] / divisor[valid]
            self._add(f"{name}@{k}", float(values.sum()), int(valid.sum()))

    def _add(self, name: str, value: float, users: int) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value
        self.of[name] = self.of.get(name, 0) + users

    def _diversity(self, vectors: np.ndarray, shown: np.ndarray) -> None:
        """The mean cosine of pairs from the length of the sum of vectors [B, K, D]: no pair is formed."""
        known = shown & (np.einsum("bkd,bkd->bk", vectors, vectors) > 0.5)
        total = np.cumsum(vectors * known[:, :, None], 1)
        count = np.cumsum(known, 1)
        pairs = count * (count - 1)
        cosines = np.einsum("bkd,bkd->bk", total, total) - count
        self._mean("ild", pairs - cosines, lambda k: pairs[:, min(k, pairs.shape[1]) - 1])

    def _calibration(self, categories: sparse.csr_matrix, top: np.ndarray, histories: np.ndarray) -> None:
        """Categories of the history that the list lacks add p log(1 / smoothing): only what both have is looked at."""
        past = _shares(histories, categories)
        for k in self.ks:
            now = _shares(top[:, :k], categories)
            p, q = past.multiply(now.astype(bool)).tocsr(), now.multiply(past.astype(bool)).tocsr()
            owner = np.repeat(np.arange(len(top)), np.diff(p.indptr))
            shared = np.bincount(owner, p.data, len(top))
            ratio = p.data / ((1 - _SMOOTH) * q.data + _SMOOTH * p.data)
            divergence = np.bincount(owner, p.data * np.log(ratio), len(top)) - (1 - shared) * np.log(_SMOOTH)
            valid = (np.diff(past.indptr) > 0) & (np.diff(now.indptr) > 0)
            self._add(f"calibration@{k}", float(divergence[valid].sum()), int(valid.sum()))


def _shares(codes: np.ndarray, categories: sparse.csr_matrix) -> sparse.csr_matrix:
    """Share of each category in the items of each row, sparse [B, G]; empty if no item has any."""
    indptr = np.arange(0, codes.size + 1, codes.shape[1])
    weights = (codes != PAD).ravel().astype(np.float64)
    rows = sparse.csr_matrix((weights, codes.ravel(), indptr), (len(codes), categories.shape[0]))
    found = (rows @ categories).tocsr()
    found.eliminate_zeros()
    found.sort_indices()  # or products of two have their values in different orders
    total = np.asarray(found.sum(1)).ravel()
    found.data /= np.repeat(np.where(total > 0, total, 1), np.diff(found.indptr))
    return found
