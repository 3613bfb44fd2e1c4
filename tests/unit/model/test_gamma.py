"""The weight of the content match is chosen for the ranking that the recipe asks for."""

import torch

from llmcfsr_merlin.config import ModelConfig
from llmcfsr_merlin.contract import FIRST_ITEM, ITEM
from llmcfsr_merlin.model.network import DualViewNetwork
from llmcfsr_merlin.validation import GAMMAS, choose_gamma

ITEMS, TWINS, LENGTH, USERS = 32, 8, 12, 40


def test_history_is_left_out_where_it_is_not_recommended():
    """After 12 items the twin of the first one: the text knows it, but every item read matches itself better."""
    random = torch.Generator().manual_seed(0)
    texts = torch.eye(ITEMS)
    vectors = torch.cat([torch.zeros(FIRST_ITEM, ITEMS), texts, 0.9 * texts[:TWINS] + 0.1 * texts[TWINS : 2 * TWINS]])
    network = DualViewNetwork(ModelConfig(hidden=8, pca_init=False), len(vectors), 50, ITEMS).eval()
    network.items.initialise(network.config, torch.ones(len(vectors), dtype=torch.long), vectors)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(0.01)  # what the views say is noise, far below a difference of cosines
    rows = []
    for _ in range(USERS):
        others = TWINS + torch.randperm(ITEMS - TWINS, generator=random)[: LENGTH - 1]
        first = int(torch.randint(TWINS, (), generator=random))
        rows += [FIRST_ITEM + code for code in (first, *others.tolist(), first + ITEMS)]
    offsets = torch.arange(USERS + 1) * (LENGTH + 1)
    batches = [({f"{ITEM}__values": torch.tensor(rows), f"{ITEM}__offsets": offsets}, None)]

    def gain(exclude_history: bool) -> float:
        found = choose_gamma(network, batches, exclude_history)
        assert float(network.gamma) == found and found in GAMMAS
        return found

    assert gain(exclude_history=True) > 0 == gain(exclude_history=False)
