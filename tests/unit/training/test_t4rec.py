"""The positions that are predicted are those that Transformers4Rec's own masking would give."""

import llmcfsr_merlin.training.t4rec_compat  # noqa: F401

# isort: split
import pytest
import torch

from llmcfsr_merlin.config.scorer_settings import NetworkSettings
from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.dataset.dataset import Shape
from llmcfsr_merlin.dataset.names import PAD
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.scoring.scorer import ItemVectors
from llmcfsr_merlin.training.masking import hide
from llmcfsr_merlin.training.objective import FixedStep, Objective
from llmcfsr_merlin.training.validation import split_last

CODES = torch.tensor([[5, 9, 30, 7], [8, 4, 0, 0], [3, 3, 3, 0]])


def network_of(**settings) -> DualViewNetwork:
    torch.manual_seed(0)
    return DualViewNetwork(NetworkSettings(**settings), 40, 8, ItemVectors(Shape(40, 8)))


def test_next_items_are_those_of_the_stock_masking():
    masking = pytest.importorskip("transformers4rec.torch.masking").CausalLanguageModeling(hidden_size=1)
    stock = masking.compute_masked_targets(CODES, training=True).targets
    found = Objective(network_of(), TrainConfig()).predicted(CODES)
    assert found.targets.tolist() == stock[stock != PAD].tolist()
    assert len(found.states) == len(found.targets)
    stock = masking.compute_masked_targets(CODES, testing=True).targets
    histories, wanted = split_last(CODES)
    assert wanted.tolist() == stock[stock != PAD].tolist() == [7, 4, 3]
    assert histories.tolist() == [[5, 9, 30], [8, 0, 0], [3, 3, 0]]


# bce draws as many negatives as there are positions.
@pytest.mark.parametrize("loss", ["uniform_softmax", "sampled_softmax", "full_softmax"])
@pytest.mark.parametrize(
    ("backbone", "samples"), [("sasrec", "sequences"), ("sasrec", "prefixes"), ("bert4rec", "sequences")]
)
def test_a_step_of_fixed_shapes_is_the_step(loss, backbone, samples):
    network = network_of(backbone=backbone, dropout=0.0)
    settings = TrainConfig(loss=loss, negatives=37, mask=1e-9, samples=samples)
    capacities = (9, 10, 12) if backbone == "bert4rec" else (6, 7, 9)  # the items, or those with a next one
    found = []
    for step in (Objective(network, settings), *(FixedStep(network, settings, size) for size in capacities)):
        torch.manual_seed(5)
        network.zero_grad()
        value = step(CODES)
        value.backward()
        found.append((value.detach(), torch.cat([weight.grad.flatten() for weight in network.parameters()])))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-4, atol=1e-6)


def test_masked_items_are_some_but_never_none_or_all():
    torch.manual_seed(0)
    items = torch.randint(3, 40, (4000, 9))
    lengths = torch.randint(1, 10, (4000, 1))
    items[torch.arange(9) >= lengths] = PAD
    hidden = hide(items, 0.3)
    assert not hidden[items == PAD].any()
    assert (hidden.sum(1) >= 1).all()
    long = lengths.squeeze(1) > 1
    assert (hidden.sum(1) < lengths.squeeze(1))[long].all()
    whole = lengths.squeeze(1) == 9
    assert hidden[whole].float().mean().item() == pytest.approx(0.3, abs=0.03)
