"""CL4SRec's views and loss against the lines of its paper."""

import math

import pytest
import torch

from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.dataset.names import PAD
from llmcfsr_merlin.scoring.network.item_views import MASK
from llmcfsr_merlin.training.losses.contrast import augmented_twice, contrast, crop, mask, nt_xent, reorder
from llmcfsr_merlin.training.objective import Objective
from llmcfsr_merlin.training.validation import split_last
from tests.models import ids_only as network_of

CODES = torch.tensor([[5, 9, 30, 7], [8, 4, 0, 0], [3, 3, 3, 0]])

LENGTHS = [1, 2, 3, 5, 9, 10]


def drawn(length: int, count: int = 400) -> torch.Tensor:
    """The same history of distinct items many times, padded to ten."""
    return torch.tensor([list(range(3, 3 + length)) + [PAD] * (10 - length)]).repeat(count, 1)


def items(row: torch.Tensor) -> list[int]:
    return row[row != PAD].tolist()


@pytest.mark.parametrize("length", LENGTHS)
def test_a_crop_is_any_run_of_six_tenths(length):
    kept = math.floor(length * 0.6)
    found = {tuple(items(row)) for row in crop(drawn(length))}
    assert found == {tuple(range(3 + begin, 3 + begin + kept)) for begin in range(length - kept + 1)}


@pytest.mark.parametrize("length", LENGTHS)
def test_three_tenths_are_masked_wherever_they_stand(length):
    given = drawn(length)
    found = mask(given)
    hidden = found != given
    assert (found[hidden] == MASK).all()
    assert (hidden.sum(1) == math.floor(length * 0.3)).all()
    assert not hidden[given == PAD].any()
    assert hidden.any(0)[:length].all() == (length * 3 >= 10)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_run_of_six_tenths_is_reordered_and_nothing_is_lost(length):
    given, run = drawn(length), math.floor(length * 0.6)
    found = reorder(given)
    assert torch.equal(found.sort(1).values, given.sort(1).values)
    assert torch.equal(found == PAD, given == PAD)
    moved = [(row != start).nonzero().flatten().tolist() for row, start in zip(found, given)]
    assert all(not places or places[-1] - places[0] < run for places in moved)
    assert {place for places in moved for place in places} == (set(range(length)) if run > 1 else set())


def test_two_views_are_by_two_different_ones():
    torch.manual_seed(0)
    given = drawn(10)

    def kind(row):
        found = items(row)
        return "mask" if MASK in found else "crop" if len(found) < 10 else "reorder"

    pairs = [(kind(a), kind(b)) for a, b in zip(*augmented_twice(given))]
    assert set(pairs) == {(a, b) for a in ("crop", "mask", "reorder") for b in ("crop", "mask", "reorder") if a != b}
    for view in augmented_twice(drawn(1)):
        assert torch.equal(view, drawn(1))
    for view in augmented_twice(drawn(2)):
        assert (view != PAD).any(1).all()


def test_nt_xent_finds_the_other_view_among_all():
    torch.manual_seed(0)
    a, b = torch.randn(4, 6), torch.randn(4, 6)
    states, wanted = torch.cat([a, b]), 0.0
    for place in range(8):
        others = [math.exp(states[place] @ states[other] / 0.7) for other in range(8) if other != place]
        wanted -= math.log(math.exp(states[place] @ states[(place + 4) % 8] / 0.7) / sum(others)) / 8
    assert float(nt_xent(a, b, 0.7)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("samples", ["sequences", "prefixes"])
def test_it_is_added_with_its_weight(samples):
    network = network_of(dropout=0.0)
    found = []
    for weight in (0.0, 0.1):
        torch.manual_seed(3)
        found.append(Objective(network, TrainConfig(samples=samples, loss="full_softmax", contrast=weight))(CODES))
    torch.manual_seed(3)
    beside = contrast(network, split_last(CODES)[0])
    assert float((found[1] - found[0]).detach()) == pytest.approx(0.1 * float(beside.detach()), rel=1e-4)
    assert float(beside.detach()) > 0
