"""Cross-entropy over the whole catalogue."""

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork


def full_softmax(network: DualViewNetwork, states: Tensor, targets: Tensor, settings: TrainConfig) -> Tensor:
    """Every item is a negative."""
    return against_all(network, states, targets)


def against_all(network: DualViewNetwork, states: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy float [M] of states [M, d] against the whole catalogue."""
    catalogue = torch.arange(FIRST_ITEM, network.n_items, device=targets.device)
    scores = states @ network.candidates(catalogue).T
    return F.cross_entropy(scores, (targets - FIRST_ITEM).clamp_min(0), reduction="none")
