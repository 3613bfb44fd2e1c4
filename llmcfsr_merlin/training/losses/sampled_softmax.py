"""Cross-entropy over the whole catalogue, estimated from uniform negatives."""

import math

from torch import Tensor

from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.training.losses.uniform_softmax import against_uniform


def sampled_softmax(network: DualViewNetwork, states: Tensor, targets: Tensor, settings: TrainConfig) -> Tensor:
    """Each of settings.negatives stands for N / negatives of the N items: log of that is added to its score (the
    correction of Bengio and Senecal 2008 for a uniform draw). Without it the loss falls to nothing as soon as a target
    is above a thousand of many thousand items."""
    offset = math.log(max((network.n_items - FIRST_ITEM) / settings.negatives, 1.0))
    return against_uniform(network, states, targets, settings.negatives, offset)
