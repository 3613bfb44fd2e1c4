"""The exact best items by scores that are off by a known amount at most: the best of these are scored exactly.

Let e(i) be the sum of all scorers' scores with some of them estimated, off by at most d in all. Of the items with the
largest e, the exact scores are made. If the k-th largest of those is above the largest e of the others plus d, no other
item can be among the best k.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.scoring.ensemble import Ensemble
from llmcfsr_merlin.scoring.scorer import Scorer
from llmcfsr_merlin.scoring.search.best_items import Found

_SPARE = (14, 86)  # items that are scored exactly beyond k, at first and if that proves nothing
_NOISE = 1e-5  # of float32 scores, relative and absolute


def best_by_estimates(model: Ensemble, histories: Tensor, k: int, blocked: Tensor | None) -> Found | None:
    """histories int64 [B, L] right-padded, blocked bool [B, V]. None if no scorer estimates, or k is large.

    exact: false where all that was scored proves nothing.
    """
    if not k + max(_SPARE) < model.shape.n_items or not any(part.estimates for part in model.active):
        return None
    exact, estimators = torch.zeros(len(histories), model.shape.n_items), []
    total, error = torch.zeros_like(exact), 0.0
    for part in model.active:
        if part.estimates:
            estimate = part.estimate(histories)
            total += estimate.scores
            error += estimate.error
            estimators.append(part)
        else:
            exact += part.weighted(histories)
    total += exact
    total[:, :FIRST_ITEM] = -torch.inf
    total[:, model.retired] = -torch.inf
    if blocked is not None:
        total.masked_fill_(blocked, -torch.inf)
    found = _best(estimators, histories, exact, total, error, k, _SPARE[0])
    if not bool(found.exact.all()):
        rows = (~found.exact).nonzero()[:, 0]
        again = _best(estimators, histories[rows], exact[rows], total[rows], error, k, _SPARE[1])
        for tensor, values in zip(found, again):
            tensor[rows] = values
    return found


def _best(
    estimators: Sequence[Scorer], histories: Tensor, exact: Tensor, total: Tensor, error: float, k: int, spare: int
) -> Found:
    """exact: float [B, V], the scores of all other scorers; total: with the estimates, -inf at what is left out."""
    picked, places = total.topk(k + spare, dim=1)
    scores = exact.gather(1, places)
    for part in estimators:
        scores += part.weighted(histories, places)
    scores.masked_fill_(picked == -torch.inf, -torch.inf)
    # Ties by the smaller id: a stable sort of what is in the order of ids.
    places, order = places.sort(dim=1)
    scores, order = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
    scores, items = scores[:, :k], places.gather(1, order[:, :k])
    least, others = scores[:, -1], picked[:, -1]
    proven = (others == -torch.inf) | (least - _NOISE * (1 + least.abs()) > others + error)
    return Found(items.masked_fill(scores == -torch.inf, 0), scores, proven)
