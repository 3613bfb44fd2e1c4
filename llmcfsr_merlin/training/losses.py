"""Training losses over next-item targets: from the states of real positions to one number."""

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcfsr_merlin.config.schema import TrainConfig
from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork


def next_item_loss(network: DualViewNetwork, states: Tensor, targets: Tensor, config: TrainConfig) -> Tensor:
    """Mean loss of M positions. states: float [M, views * d]; targets: int64 [M], real codes.

    uniform_softmax: cross-entropy against negatives drawn uniformly once a batch and shared by its positions, which was
    measured to beat one negative by far on the tail (docs/results). full_softmax: against the whole catalogue. bce: one
    uniform negative a position, the papers' loss (SASRec, LLM-ESR). in_batch: the batch's other targets as negatives,
    each logit less log of the item's training share (logQ, Bengio and Senecal 2008): without it the tail would win.
    """
    if config.loss == "bce":
        negatives = torch.randint(FIRST_ITEM, network.rows, targets.shape, device=targets.device)
        views = network.candidates(torch.stack([targets, negatives]))
        positive, negative = (states * views).sum(-1)
        return F.softplus(-positive).mean() + F.softplus(negative).mean()
    if config.loss == "in_batch":
        unique, place = targets.unique(return_inverse=True)
        logits = states @ network.candidates(unique).T - network.items.log_share[unique]
        return F.cross_entropy(logits, place)
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


def alignment_loss(network: DualViewNetwork, codes: Tensor, teacher: Tensor | None, temperature: float) -> Tensor:
    """Symmetric InfoNCE between the two views of the batch's distinct items; codes: int64 [M].

    teacher: float [V, d] frozen, in place of the collaborative view (LLMEmb, arXiv 2409.19925, aligns its adapter to
    the item table of a trained SASRec).
    """
    unique = codes.unique()
    views = network.items(unique)
    other = views[0] if teacher is None else teacher[unique]
    logits = F.normalize(views[-1], dim=-1) @ F.normalize(other, dim=-1).T / temperature
    same = torch.arange(len(unique), device=codes.device)
    return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2
