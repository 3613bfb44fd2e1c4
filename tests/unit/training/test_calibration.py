"""The weights of the content match are chosen for the ranking that the recipe asks for, and for the tail."""

import pytest
import torch

from llmcfsr_merlin.config.schema import ModelConfig
from llmcfsr_merlin.dataset.names import FIRST_ITEM, ITEM
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.scoring.ranker import Ranker
from llmcfsr_merlin.training.calibration import (
    COLD_GAMMAS,
    GAMMAS,
    Weights,
    choose_match,
    ndcg,
    set_weights,
    validation_ranks,
)

ITEMS, TWINS, LENGTH, USERS = 32, 8, 12, 40


def batches(rows: list[list[int]]) -> list:
    """One batch in the form of the Merlin dataloader."""
    offsets = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    values = torch.tensor([code for row in rows for code in row])
    return [({f"{ITEM}__values": values, f"{ITEM}__offsets": offsets}, None)]


def quiet(vectors: torch.Tensor, counts: torch.Tensor, follow: bool = False) -> DualViewNetwork:
    """A network whose views are noise, far below a difference of cosines."""
    network = DualViewNetwork(ModelConfig(hidden=8, pca_init=False), len(vectors), 50, vectors.shape[1]).eval()
    random = torch.Generator().manual_seed(3)
    shape = network.next_codes.shape
    followers = torch.randint(FIRST_ITEM, len(vectors), shape, generator=random), torch.rand(shape, generator=random)
    network.initialise(counts, vectors, followers if follow else None)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(0.01)
    return network


def test_history_is_left_out_where_it_is_not_recommended():
    """After 12 items the twin of the first one: the text knows it, but every item read matches itself better."""
    random = torch.Generator().manual_seed(0)
    texts = torch.eye(ITEMS)
    vectors = torch.cat([torch.zeros(FIRST_ITEM, ITEMS), texts, 0.9 * texts[:TWINS] + 0.1 * texts[TWINS : 2 * TWINS]])
    network = quiet(vectors, torch.ones(len(vectors), dtype=torch.long))
    rows = []
    for _ in range(USERS):
        others = TWINS + torch.randperm(ITEMS - TWINS, generator=random)[: LENGTH - 1]
        first = int(torch.randint(TWINS, (), generator=random))
        rows.append([FIRST_ITEM + code for code in (first, *others.tolist(), first + ITEMS)])

    def gain(exclude_history: bool) -> float:
        tail = torch.zeros(len(vectors), dtype=torch.bool)
        found = choose_match(network, batches(rows), tail, exclude_history=exclude_history)
        assert (float(network.gamma), float(network.cold_gamma), float(network.transition_gamma)) == found
        assert found.gamma in GAMMAS and found.cold in COLD_GAMMAS
        return found.gamma

    assert gain(exclude_history=True) > 0 == gain(exclude_history=False)


@pytest.mark.parametrize("tolerance", [0.0, 0.3])
def test_what_may_be_given_up_goes_to_the_tail(tolerance):
    """Every item has a popular and a rare twin, equally like it; most users go on to the popular one."""
    texts = torch.eye(ITEMS)
    vectors = torch.cat([torch.zeros(FIRST_ITEM, ITEMS), texts, 0.9 * texts + 0.1, 0.9 * texts + 0.1])
    counts = torch.cat([torch.full((FIRST_ITEM + 2 * ITEMS,), 500), torch.ones(ITEMS, dtype=torch.long)])
    network = quiet(vectors, counts)
    rows = [
        [FIRST_ITEM + item, FIRST_ITEM + item + (2 if user % 5 == 0 else 1) * ITEMS]
        for user, item in enumerate(list(range(ITEMS)) * 5)
    ]
    tail = counts < 4
    chosen = choose_match(network, batches(rows), tail, tolerance, exclude_history=True)
    tried = [Weights(gamma) for gamma in GAMMAS] + [chosen]
    ranks = torch.cat([found for _, found in validation_ranks(network, batches(rows), tried, True)], dim=1)
    quality = ndcg(ranks)
    assert quality[-1] >= (1 - tolerance) * quality.max() - 1e-9
    of_tail = ndcg(ranks[:, tail[torch.tensor([row[-1] for row in rows])]])
    plain = of_tail[:-1][quality[:-1] == quality[:-1].max()].max()
    assert (of_tail[-1] > plain) == (tolerance > 0)


def test_validation_ranks_by_the_scores_that_are_served():
    random = torch.Generator().manual_seed(1)
    vectors = torch.cat([torch.zeros(FIRST_ITEM, 8), torch.randn(ITEMS, 8, generator=random)])
    network = quiet(vectors, torch.randint(0, 9, (len(vectors),), generator=random), follow=True)
    rows = (FIRST_ITEM + torch.randint(0, ITEMS, (20, 6), generator=random)).tolist()
    weights = Weights(2.0, 3.0, 1.5)
    ((targets, ranks),) = validation_ranks(network, batches(rows), [weights])
    set_weights(network, weights)
    scores = Ranker(network).scores(torch.tensor(rows)[:, :-1])
    wanted = (scores > scores.gather(1, targets[:, None])).sum(1)
    assert ranks[0].tolist() == wanted.tolist()
