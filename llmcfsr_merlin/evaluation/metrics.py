"""Ranking metrics of one relevant item a user, from its rank.

Ranks are 1-based: 1 is the best place. With one relevant item the ideal DCG is 1, so that for user u of rank r_u

    HR@K   = mean over u of [r_u <= K]                    (equals Recall@K)
    NDCG@K = mean over u of [r_u <= K] / log2(r_u + 1)
    MRR@K  = mean over u of [r_u <= K] / r_u              (equals MAP@K)
    MRR    = mean over u of 1 / r_u                       (not cut)

Definitions of RecTools (rectools.metrics) for one relevant item; tests hold them against it by hand.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llmcfsr_merlin.dataset.names import FIRST_ITEM


def rank_of_target(scores: Tensor, targets: Tensor, tie: Tensor) -> Tensor:
    """1-based rank of each row's target among the columns of `scores`.

    scores: float [B, C]. targets: int64 [B], the target's column. tie: float64 [B] in [0, 1), drawn once a user.
    Ties: a target that equals m other columns takes one of the m + 1 places of the tie, number floor(tie * (m + 1)).
    With uniform `tie` this is a random order of the tied items, so that a constant scorer scores at chance; the same
    numbers serve all models, and neither the batch nor the order of the columns changes a rank. Returns int64 [B].

    >>> scores = torch.tensor([[0.3, 0.9, 0.3, 0.1]])
    >>> [rank_of_target(scores, torch.tensor([0]), torch.tensor([tie])).item() for tie in (0.0, 0.6)]
    [2, 3]
    """
    if torch.isnan(scores).any():
        raise ValueError("expected scores that are numbers, found NaN: the model diverged or its input holds NaN")
    own = scores.gather(1, targets[:, None])
    above = (scores > own).sum(1)
    tied = (scores == own).sum(1)  # the target included
    return 1 + above + (tie.to(torch.float64) * tied).long().clamp(max=tied - 1)


def gains(ranks: np.ndarray, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """What each user adds to every metric: float64 arrays shaped like `ranks` (1-based), keyed hr@K, ndcg@K, mrr@K, mrr.

    >>> {name: values.round(3).tolist() for name, values in gains(np.array([1, 3]), [2]).items()}
    {'hr@2': [1.0, 0.0], 'ndcg@2': [1.0, 0.0], 'mrr@2': [1.0, 0.0], 'mrr': [1.0, 0.333]}
    """
    ranks = np.asarray(ranks, dtype=np.float64)
    if ranks.size and not ranks.min() >= 1:
        raise ValueError(f"expected 1-based ranks, found {ranks.min()}")
    discount = 1 / np.log2(ranks + 1)
    found: dict[str, np.ndarray] = {}
    for k in ks:
        hit = (ranks <= k).astype(np.float64)
        found[f"hr@{k}"] = hit
        found[f"ndcg@{k}"] = hit * discount
        found[f"mrr@{k}"] = hit / ranks
    found["mrr"] = 1 / ranks
    return found


class MetricSums:
    """Streaming means: float64 sums and a count, so that any cut into batches gives the same figure.

    >>> sums = MetricSums([10])
    >>> sums.add(np.array([1, 20])); sums.add(np.array([3]))
    >>> {name: round(value, 4) for name, value in sums.means().items()}
    {'hr@10': 0.6667, 'ndcg@10': 0.5, 'mrr@10': 0.4444, 'mrr': 0.4611}
    """

    def __init__(self, ks: Sequence[int]):
        self.ks = tuple(ks)
        self.count = 0
        self.sums = dict.fromkeys(gains(np.empty(0), self.ks), 0.0)

    def add(self, ranks: np.ndarray) -> None:
        """Add a batch of 1-based ranks, int or float [B]."""
        self.count += len(ranks)
        for name, values in gains(ranks, self.ks).items():
            self.sums[name] += float(values.sum())

    def means(self) -> dict[str, float]:
        """Metric -> mean over all users so far; NaN where there was none."""
        return {name: total / self.count if self.count else float("nan") for name, total in self.sums.items()}


class CatalogueSums:
    """How the recommendations spread over the catalogue, from the top-K lists of all users.

    For every K with c_i = times that item i was recommended, N items and n_i its interactions in training:

        coverage@K = share of items with c_i > 0
        gini@K     = sum_j (2 j - N - 1) c_(j) / (N sum c), c_(1) <= ... <= c_(N); 0 even, towards 1 concentrated
        arp@K      = mean n_i over all recommended places (average recommendation popularity)

    train_counts: int64 [V], reserved rows included.
    """

    def __init__(self, ks: Sequence[int], train_counts: np.ndarray):
        self.train_counts = np.asarray(train_counts, np.float64)
        self.times = {k: np.zeros(len(train_counts), np.int64) for k in ks}

    def add(self, top: np.ndarray) -> None:
        """Add recommended codes int64 [B, max K], best first; code 0 marks an empty place."""
        for k, times in self.times.items():
            times += np.bincount(np.asarray(top)[:, :k].ravel(), minlength=len(times))

    def values(self) -> dict[str, float]:
        """coverage@K, gini@K and arp@K as float."""
        found = {}
        for k, times in self.times.items():
            real = np.sort(times[FIRST_ITEM:])
            total = max(int(real.sum()), 1)
            place = 2 * np.arange(1, len(real) + 1, dtype=np.float64) - len(real) - 1
            found[f"coverage@{k}"] = float((real > 0).mean())
            found[f"gini@{k}"] = float((place * real).sum() / (len(real) * total))
            found[f"arp@{k}"] = float((times[FIRST_ITEM:] * self.train_counts[FIRST_ITEM:]).sum() / total)
        return found
