"""Softmax over the targets of the batch, corrected for how often each is drawn."""

import torch.nn.functional as F
from torch import Tensor

from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork


def in_batch(network: DualViewNetwork, states: Tensor, targets: Tensor, settings: TrainConfig) -> Tensor:
    """The batch's other targets as negatives, each logit less log of the item's training share (logQ, Bengio and
    Senecal 2008): without it the tail would be over-scored."""
    unique, place = targets.unique(return_inverse=True)
    logits = states @ network.candidates(unique).T - network.items.log_share[unique]
    return F.cross_entropy(logits, place, reduction="none")
