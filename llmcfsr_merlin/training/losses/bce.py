"""Binary cross-entropy with few negatives: the papers' loss (SASRec, LLM-ESR with one, Caser with three)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork


def bce(network: DualViewNetwork, states: Tensor, targets: Tensor, settings: TrainConfig) -> Tensor:
    """settings.bce_negatives uniform negatives per position, of whose losses the mean counts."""
    count = settings.bce_negatives
    negatives = torch.randint(FIRST_ITEM, network.n_items, (count, *targets.shape), device=targets.device)
    views = network.candidates(torch.cat([targets[None], negatives]))
    positive, *others = (states * views).sum(-1)
    return F.softplus(-positive) + torch.stack([F.softplus(negative) for negative in others]).mean(0)
