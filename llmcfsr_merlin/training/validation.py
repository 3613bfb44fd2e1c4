"""Ranks of the held-out items over the full catalogue, for early stopping."""

import torch
from torch import Tensor

from llmcfsr_merlin.dataset.names import FIRST_ITEM, PAD
from llmcfsr_merlin.scoring.ndcg import ndcg_gains
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork

CUT_OFF = 10  # places that epochs and score weights are chosen by


def split_last(items: Tensor) -> tuple[Tensor, Tensor]:
    """items: int64 [B, T + 1] right-padded -> histories [B, T] without each row's last item, and the last items [B]."""
    histories, last = split_latest(items, 1)
    return histories, last.squeeze(1)


def split_latest(items: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """items: int64 [B, T + 1] right-padded -> histories [B, T] without each row's latest `count` items, and these
    [B, count], oldest first, after padding where a row has fewer."""
    lengths = (items != PAD).sum(1, keepdim=True)
    step = torch.arange(max(items.shape[1] - 1, count), device=items.device)
    places = lengths - count + step[:count]
    latest = items.gather(1, places.clamp_min(0)).masked_fill(places < 0, PAD)
    return items[:, :-1].masked_fill(step[: items.shape[1] - 1] >= lengths - count, PAD), latest


def held_out_ranks(network: DualViewNetwork, items: Tensor, catalogue: Tensor, exclude_history: bool = False) -> Tensor:
    """items: int64 [B, T + 1]; catalogue: float [V, views * d]. Ranks int64 [B] of the last items, 0 is the best.

    exclude_history: the user's own items take no part in the ranking; one of them that is wanted comes last.
    """
    histories, wanted = split_last(items)
    return ranks(network.user_states(histories) @ catalogue.T, histories, wanted, exclude_history)


def ranks(scores: Tensor, histories: Tensor, wanted: Tensor, exclude_history: bool) -> Tensor:
    """scores: float [B, V], changed in place; the ranks int64 [B] of `wanted`, int64 [B]."""
    scores[:, :FIRST_ITEM] = -torch.inf
    if exclude_history:
        scores = scores.scatter(1, histories, -torch.inf)
    of_wanted = scores.gather(1, wanted.unsqueeze(1))
    # Floats, since torch adds up bools eight times as slowly.
    above = torch.gt(scores, of_wanted, out=scores).sum(1, dtype=torch.float32).long()
    return torch.where(of_wanted.squeeze(1).isneginf(), above.clamp_min(CUT_OFF), above)


def quality(ranks: Tensor, k: int = CUT_OFF) -> dict[str, float]:
    """HR@k and NDCG@k of ranks int64 [N], from 0: `hr_at_<k>` and `ndcg_at_<k>`."""
    return {f"hr_at_{k}": float((ranks < k).double().mean()), f"ndcg_at_{k}": float(ndcg_gains(ranks + 1, k).mean())}
