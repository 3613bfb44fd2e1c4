"""Cross-entropy against many uniform negatives, shared by the positions of a batch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.training.losses.full_softmax import against_all


def uniform_softmax(network: DualViewNetwork, states: Tensor, targets: Tensor, settings: TrainConfig) -> Tensor:
    """settings.negatives are drawn once per batch: measured to beat one negative by far on the tail (docs/results)."""
    return against_uniform(network, states, targets, settings.negatives, 0.0)


def against_uniform(network: DualViewNetwork, states: Tensor, targets: Tensor, count: int, offset: float) -> Tensor:
    """Cross-entropy float [M] against `count` uniform negatives, to whose scores `offset` is added; against all items,
    without an offset, if there are no more."""
    if count >= network.n_items - FIRST_ITEM:
        return against_all(network, states, targets)
    negatives = torch.randint(FIRST_ITEM, network.n_items, (count,), device=targets.device)
    # One call embeds targets and negatives, so that item dropout treats an item the same in both.
    items = torch.cat([targets, negatives])
    if items.is_cuda:  # counting the distinct ones would make the host wait for the device
        views = network.candidates(items)
    else:
        unique, place = items.unique(return_inverse=True)
        views = F.embedding(place, network.candidates(unique))
    positive = (states * views[: len(targets)]).sum(-1, keepdim=True)
    negative = states @ views[len(targets) :].T + offset
    negative = negative.masked_fill(negatives == targets.unsqueeze(1), -torch.inf)
    logits = torch.cat([positive, negative], dim=1)
    return F.cross_entropy(logits, torch.zeros_like(targets), reduction="none")
