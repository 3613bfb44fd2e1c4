"""The body's targets are those that Transformers4Rec's own masking would give it."""

import llmcfsr_merlin.training.t4rec_compat  # noqa: F401

# isort: split
import pytest
import torch
from transformers4rec.torch.masking import CausalLanguageModeling

from llmcfsr_merlin.config.schema import NetworkSettings
from llmcfsr_merlin.dataset.dataset import Shape
from llmcfsr_merlin.dataset.names import ITEM, PAD
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.scoring.scorer import ItemVectors
from llmcfsr_merlin.training.t4rec import DualViewBody

CODES = torch.tensor([[5, 9, 30, 7], [8, 4, 0, 0], [3, 3, 3, 0]])


@pytest.mark.parametrize("mode", ["training", "testing"])
def test_next_items_are_those_of_the_stock_masking(mode):
    network = DualViewNetwork(NetworkSettings(), 40, 8, ItemVectors(Shape(40, 8)))
    body = DualViewBody(network, None, mask=0.3)
    stock = CausalLanguageModeling(hidden_size=1).compute_masked_targets(CODES, **{mode: True}).targets
    found = body({ITEM: CODES}, **{mode: True})
    assert found.targets.tolist() == stock[stock != PAD].tolist()
    assert len(found.states) == len(found.targets)
