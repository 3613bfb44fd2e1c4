"""Cross-entropy over the whole catalogue."""

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcfsr_merlin.dataset.names import FIRST_ITEM


def full_softmax(network, states: Tensor, targets: Tensor, settings) -> Tensor:
    """Every item is a negative."""
    catalogue = torch.arange(FIRST_ITEM, network.n_items, device=targets.device)
    return F.cross_entropy(states @ network.candidates(catalogue).T, targets - FIRST_ITEM)
