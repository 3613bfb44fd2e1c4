"""Binary cross-entropy with one negative: the papers' loss (SASRec, LLM-ESR)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork


def bce(network: DualViewNetwork, states: Tensor, targets: Tensor, settings: TrainConfig) -> Tensor:
    """One uniform negative per position."""
    negatives = torch.randint(FIRST_ITEM, network.n_items, targets.shape, device=targets.device)
    views = network.candidates(torch.stack([targets, negatives]))
    positive, negative = (states * views).sum(-1)
    return F.softplus(-positive) + F.softplus(negative)
