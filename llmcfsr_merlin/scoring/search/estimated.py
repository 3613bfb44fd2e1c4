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
from llmcfsr_merlin.scoring.scorer import Estimate
from llmcfsr_merlin.scoring.search.best_items import Found

_SPARE = (14, 86)  # items that are scored exactly beyond k, at first and if that proves nothing
_NOISE = 1e-5  # of float32 scores, relative and absolute


@torch.inference_mode()
def best_by_estimates(model: Ensemble, histories: Tensor, k: int, blocked: Tensor | None) -> Found | None:
    """histories int64 [B, L] right-padded, blocked bool [B, V]. None if no scorer estimates, or k is large.

    exact: false where all that was scored proves nothing.
    """
    estimators = [part for part in model.active if part.estimates(len(histories))]
    if not k + max(_SPARE) < model.shape.n_items or not estimators:
        return None
    exact = torch.zeros(len(histories), model.shape.n_items)
    for part in model.active:
        if part not in estimators:
            part.add_to(histories, exact)
    total = exact.clone()
    estimates = [part.add_estimate(histories, total) for part in estimators]
    total[:, :FIRST_ITEM] = -torch.inf
    total[:, model.retired] = -torch.inf
    if blocked is not None:
        total.masked_fill_(blocked, -torch.inf)
    found = _best(estimates, exact, total, k, _SPARE[0])
    if not bool(found.exact.all()):
        lacks = ~found.exact
        for tensor, values in zip(found, _best(estimates, exact, total, k, _SPARE[1])):
            tensor[lacks] = values[lacks]
    return found


def _best(estimates: Sequence[Estimate], exact: Tensor, total: Tensor, k: int, spare: int) -> Found:
    """exact: float [B, V], the scores of all other scorers; total: with the estimates, -inf at what is left out."""
    picked, places = total.topk(k + spare, dim=1)
    scores = exact.gather(1, places)
    for estimate in estimates:
        scores += estimate.exact(places)
    scores.masked_fill_(picked == -torch.inf, -torch.inf)
    # Ties by the smaller id: a stable sort of what is in the order of ids.
    places, order = places.sort(dim=1)
    scores, order = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
    scores, items = scores[:, :k], places.gather(1, order[:, :k])
    least, others, error = scores[:, -1], picked[:, -1], sum(estimate.error for estimate in estimates)
    proven = (others == -torch.inf) | (least - _NOISE * (1 + least.abs()) > others + error)
    return Found(items.masked_fill(scores == -torch.inf, 0), scores, proven)
