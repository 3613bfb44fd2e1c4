"""Training losses over next-item targets: from the states of real positions to one number."""

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcfsr_merlin.config import TrainConfig
from llmcfsr_merlin.contract import FIRST_ITEM
from llmcfsr_merlin.model.network import DualViewNetwork


def next_item_loss(network: DualViewNetwork, states: Tensor, targets: Tensor, config: TrainConfig) -> Tensor:
    """Mean loss of M positions. states: float [M, views * d]; targets: int64 [M], real codes.

    uniform_softmax: cross-entropy against negatives drawn uniformly once a batch and shared by its positions, which was
    measured to beat one negative by far on the tail (docs/results). full_softmax: against the whole catalogue. bce: one
    uniform negative a position, the papers' loss (SASRec, LLM-ESR).
    """
    if config.loss == "bce":
        negatives = torch.randint(FIRST_ITEM, network.rows, targets.shape, device=targets.device)
        views = network.candidates(torch.stack([targets, negatives]))
        positive, negative = (states * views).sum(-1)
        return F.softplus(-positive).mean() + F.softplus(negative).mean()
    if config.loss == "full_softmax" or config.negatives >= network.rows - FIRST_ITEM:
        catalogue = torch.arange(FIRST_ITEM, network.rows, device=targets.device)
        return F.cross_entropy(states @ network.candidates(catalogue).T, targets - FIRST_ITEM)
    negatives = torch.randint(FIRST_ITEM, network.rows, (config.negatives,), device=targets.device)
    # One call embeds targets and negatives, so that item dropout treats an item alike in both places.
    unique, place = torch.cat([targets, negatives]).unique(return_inverse=True)
    views = network.candidates(unique)
    positive = (states * views[place[: len(targets)]]).sum(-1, keepdim=True)
    negative = states @ views[place[len(targets) :]].T
    negative = negative.masked_fill(negatives == targets.unsqueeze(1), -torch.inf)
    logits = torch.cat([positive, negative], dim=1)
    return F.cross_entropy(logits, torch.zeros_like(targets))
