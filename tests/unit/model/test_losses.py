"""Each loss against a few lines of plain arithmetic."""

import pytest
import torch

from llmcfsr_merlin.config import TrainConfig
from llmcfsr_merlin.contract import FIRST_ITEM
from llmcfsr_merlin.model.losses import next_item_loss
from tests.unit.model.test_network import ROWS, build


@pytest.fixture
def case():
    torch.manual_seed(1)
    network = build(item_dropout=0).eval()
    network.requires_grad_(False)
    return network, torch.randn(6, 32), torch.randint(FIRST_ITEM, ROWS, (6,))


def test_full_softmax(case):
    network, states, targets = case
    logits = states @ network.candidates(torch.arange(ROWS)).T
    wanted = 0.0
    for row, target in zip(logits, targets):
        real = row[FIRST_ITEM:].double()
        wanted += float(torch.log(torch.exp(real).sum()) - row[target]) / len(targets)
    assert float(next_item_loss(network, states, targets, TrainConfig(loss="full_softmax"))) == pytest.approx(
        wanted, rel=1e-5
    )


def test_uniform_softmax_uses_the_drawn_negatives_and_skips_the_target_among_them(case):
    network, states, targets = case
    torch.manual_seed(7)
    found = float(next_item_loss(network, states, targets, TrainConfig(negatives=40)))
    torch.manual_seed(7)
    negatives = torch.randint(FIRST_ITEM, ROWS, (40,))
    assert any(target in negatives for target in targets), "the case must contain a collision"
    wanted = 0.0
    for state, target in zip(states, targets):
        kept = torch.cat([target[None], negatives[negatives != target]])
        logits = network.candidates(kept) @ state
        wanted += float(torch.logsumexp(logits, 0) - logits[0]) / len(targets)
    assert found == pytest.approx(wanted, rel=1e-5)


def test_bce_is_the_papers_one_negative_loss(case):
    network, states, targets = case
    torch.manual_seed(7)
    found = float(next_item_loss(network, states, targets, TrainConfig(loss="bce")))
    torch.manual_seed(7)
    negatives = torch.randint(FIRST_ITEM, ROWS, targets.shape)
    positive = torch.sigmoid((states * network.candidates(targets)).sum(1)).log()
    negative = torch.log(1 - torch.sigmoid((states * network.candidates(negatives)).sum(1)))
    assert found == pytest.approx(float(-(positive.mean() + negative.mean())), rel=1e-4)


@pytest.mark.parametrize("loss", ["uniform_softmax", "full_softmax", "bce"])
def test_no_loss_draws_or_scores_a_reserved_row(case, loss):
    network, states, targets = case
    with torch.no_grad():
        network.items.collaborative.weight[:FIRST_ITEM] = torch.nan
    for seed in range(20):
        torch.manual_seed(seed)
        assert torch.isfinite(next_item_loss(network, states, targets, TrainConfig(loss=loss, negatives=30)))
