"""Each loss against a few lines of plain arithmetic."""

import pytest
import torch

from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.dataset.names import FIRST_ITEM
from llmcfsr_merlin.training.distillation import Distillation, similar_users
from llmcfsr_merlin.training.losses import loss_function
from llmcfsr_merlin.training.losses.alignment import alignment
from tests.unit.scoring.test_network import ROWS, build, network_of


def next_item_loss(network, states, targets, settings: TrainConfig):
    return loss_function(settings.loss)(network, states, targets, settings).mean()


@pytest.fixture
def case():
    torch.manual_seed(1)
    network = network_of(build(item_dropout=0)).eval()
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


def test_sampled_softmax_estimates_the_full_one(case):
    """Each negative counts for its share of the catalogue: the mean over many draws is the full loss, nearly."""
    network, states, targets = case
    states = states / 8
    full = float(next_item_loss(network, states, targets, TrainConfig(loss="full_softmax")))
    draws = {
        loss: sum(
            float(next_item_loss(network, states, targets, TrainConfig(loss=loss, negatives=12))) for _ in range(200)
        )
        / 200
        for loss in ("sampled_softmax", "uniform_softmax")
    }
    assert draws["sampled_softmax"] == pytest.approx(full, abs=0.05)
    assert draws["uniform_softmax"] < full - 0.3


def test_sampled_softmax_with_as_many_negatives_as_items_is_the_full_one(case):
    network, states, targets = case
    losses = [
        next_item_loss(network, states, targets, TrainConfig(loss=loss, negatives=ROWS)) for loss in
        ("sampled_softmax", "full_softmax")
    ]  # fmt: skip
    torch.testing.assert_close(*losses)


def test_bce_is_the_papers_one_negative_loss(case):
    network, states, targets = case
    torch.manual_seed(7)
    found = float(next_item_loss(network, states, targets, TrainConfig(loss="bce")))
    torch.manual_seed(7)
    negatives = torch.randint(FIRST_ITEM, ROWS, targets.shape)
    positive = torch.sigmoid((states * network.candidates(targets)).sum(1)).log()
    negative = torch.log(1 - torch.sigmoid((states * network.candidates(negatives)).sum(1)))
    assert found == pytest.approx(float(-(positive.mean() + negative.mean())), rel=1e-4)


@pytest.mark.parametrize("loss", ["uniform_softmax", "sampled_softmax", "full_softmax", "bce"])
def test_no_loss_draws_or_scores_a_reserved_row(case, loss):
    network, states, targets = case
    with torch.no_grad():
        network.items.collaborative.weight[:FIRST_ITEM] = torch.nan
    for seed in range(20):
        torch.manual_seed(seed)
        assert torch.isfinite(next_item_loss(network, states, targets, TrainConfig(loss=loss, negatives=30)))


def test_in_batch_softmax_is_corrected_by_the_training_share(case):
    network, states, targets = case
    network.items.log_share.copy_(torch.linspace(-5, -1, ROWS))
    distinct = sorted(set(targets.tolist()))
    wanted = 0.0
    for state, target in zip(states, targets):
        logits = network.candidates(torch.tensor(distinct)) @ state - network.items.log_share[distinct]
        wanted += float(torch.logsumexp(logits, 0) - logits[distinct.index(int(target))]) / len(targets)
    assert float(next_item_loss(network, states, targets, TrainConfig(loss="in_batch"))) == pytest.approx(
        wanted, rel=1e-5
    )


@pytest.mark.parametrize("with_teacher", [False, True])
def test_alignment_is_symmetric_info_nce_of_the_distinct_items(case, with_teacher):
    network, _, _ = case
    codes = torch.tensor([5, 9, 9, 30])
    teacher = torch.randn(ROWS, 16) if with_teacher else None
    collaborative, semantic = network.items(torch.tensor([5, 9, 30]))
    other = teacher[[5, 9, 30]] if with_teacher else collaborative
    cosine = torch.cosine_similarity(semantic[:, None], other[None], dim=-1) / 0.5
    rows = -torch.log_softmax(cosine, 1).diagonal().mean()
    columns = -torch.log_softmax(cosine, 0).diagonal().mean()
    assert float(alignment(network, codes, teacher, 0.5)) == pytest.approx(float((rows + columns) / 2), rel=1e-5)


def test_distillation_pulls_to_the_mean_of_the_neighbours_seen():
    neighbours = similar_users(torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]]), 2)
    assert neighbours[0].tolist()[0] == 1
    assert neighbours[2].tolist()[0] == 3
    distil = Distillation(torch.tensor([[1, 2], [0, 2], [0, 1]]), width=2)
    assert float(distil(torch.tensor([1]), torch.tensor([[2.0, 0]]))) == 0  # nobody is known yet
    loss = distil(torch.tensor([0]), torch.tensor([[0.0, 0]], requires_grad=True))
    assert float(loss.detach()) == pytest.approx((2.0**2 + 0) / 2)  # user 2 has not been seen: user 1 alone
    distil(torch.tensor([2]), torch.tensor([[0.0, 4.0]]))
    assert float(distil(torch.tensor([0]), torch.tensor([[0.0, 0]]))) == pytest.approx((1.0**2 + 2.0**2) / 2)
