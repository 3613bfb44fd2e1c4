"""Ranking metrics for one relevant item per user, from its rank.

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

from llmcfsr_merlin.scoring.ndcg import ndcg_gains

_COLUMNS = 1 << 16  # compared at a time


def check_scores(scores: Tensor) -> None:
    """ValueError if any is NaN."""
    if torch.isnan(scores).any():
        raise ValueError("expected scores that are numbers, found NaN: the model diverged or its input holds NaN")


def rank_of_target(scores: Tensor, targets: Tensor, tie: Tensor, checked: bool = False) -> Tensor:
    """1-based rank of each row's target among the columns of `scores`.

    scores: float [B, C]. targets: int64 [B], the target's column. tie: float64 [B] in [0, 1), drawn once per user.
    Ties: a target that equals m other columns takes one of the m + 1 places of the tie, number floor(tie * (m + 1)).
    With uniform `tie` this is a random order of the tied items, so that a constant scorer scores at chance; the same
    numbers serve all models, and neither the batch nor the order of the columns changes a rank. Returns int64 [B].
    checked: whether it is known that no score is NaN, which is an error.

    >>> scores = torch.tensor([[0.3, 0.9, 0.3, 0.1]])
    >>> [rank_of_target(scores, torch.tensor([0]), torch.tensor([tie])).item() for tie in (0.0, 0.6)]
    [2, 3]
    """
    if not checked:
        check_scores(scores)
    return place(*counts(scores, scores.gather(1, targets[:, None])), tie)


def counts(scores: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """How many columns of each row score above `own` [B, 1], and how many the same: int64 [B] each."""
    # As numbers, in pieces of columns: torch adds up bools on the CPU by a way that is seven times as slow.
    above = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
    tied = torch.zeros_like(above)
    for piece in scores.split(_COLUMNS, dim=1):
        flags = torch.empty_like(piece, dtype=torch.float32)
        above += torch.gt(piece, own, out=flags).sum(1).long()
        tied += torch.eq(piece, own, out=flags).sum(1).long()
    return above, tied


def place(above: Tensor, tied: Tensor, tie: Tensor) -> Tensor:
    """The rank, from 1, of a target with `above` columns above it and `tied` at its score, itself included."""
    return 1 + above + (tie.to(torch.float64) * tied).long().clamp(max=tied - 1)


def gains(ranks: np.ndarray, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """What each user adds to every metric: float64 arrays shaped like `ranks` (from 1), keyed hr@K, ndcg@K, mrr@K, mrr.

    >>> {name: values.round(3).tolist() for name, values in gains(np.array([1, 3]), [2]).items()}
    {'hr@2': [1.0, 0.0], 'ndcg@2': [1.0, 0.0], 'mrr@2': [1.0, 0.0], 'mrr': [1.0, 0.333]}
    """
    ranks = np.asarray(ranks, dtype=np.float64)
    if ranks.size and not ranks.min() >= 1:
        raise ValueError(f"expected 1-based ranks, found {ranks.min()}")
    found: dict[str, np.ndarray] = {}
    for k in ks:
        hit = (ranks <= k).astype(np.float64)
        found[f"hr@{k}"] = hit
        found[f"ndcg@{k}"] = ndcg_gains(ranks, k)
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
        """Metric -> mean over all users so far; NaN if there was none."""
        return {name: total / self.count if self.count else float("nan") for name, total in self.sums.items()}
