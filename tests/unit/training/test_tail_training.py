"""MELT's training against the lines of its paper and code, on a few sequences."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import ITEM
from llmcfsr_merlin.dataset.prepare.sequences import write_part
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.training import next_item
from llmcfsr_merlin.training.objective import Auxiliary, Objective
from llmcfsr_merlin.training.procedures import Training
from llmcfsr_merlin.training.tail_training import TailTraining
from tests.models import ids_only

ROWS = [[3, 4, 5], [3, 6], [3, 4], [4, 3], [7], [3, 4, 8, 9, 3, 4, 10, 5], [4, 3, 8], [4, 11]]
COUNTS = np.bincount(np.concatenate(ROWS), minlength=13)
SETTINGS = TrainConfig(enhance_users=0.1, enhance_items=0.4, batch_size=4, epochs=8, seed=3)
LENGTH = 6


def network_of(**settings):
    return ids_only(n_items=13, max_length=LENGTH, hidden=8, tail_maps=True, **settings).eval()


@pytest.fixture
def tail(tmp_path):
    path = str(tmp_path / "train.parquet")
    pq.write_table(pa.table({ITEM: pa.array(ROWS, pa.list_(pa.int64()))}), path)
    return TailTraining([path], COUNTS, SETTINGS, LENGTH)


def contexts(item: int) -> list[list[int]]:
    """What led to each interaction with an item and, in reverse, what followed, both cut to what the model reads."""
    found = []
    for row in ROWS:
        for place, one in enumerate(row):
            if one == item:
                found.append(row[: place + 1][-LENGTH:])
                if len(row) > 1:
                    found.append(row[place : place + LENGTH][::-1])
    return found


def state(network, history):
    return network.packed_user_states(torch.tensor([history]))[0]


def test_head_and_tail_are_by_quantiles(tail):
    lengths = [len(row) for row in ROWS]
    assert tail.short == np.quantile(lengths, 0.8) // 1
    assert tail.long_users.tolist() == [place for place, length in enumerate(lengths) if length > tail.short]
    limit = np.quantile(COUNTS[COUNTS > 0], 0.78)
    assert tail.frequent.tolist() == [item for item in range(13) if COUNTS[item] > limit] == [3, 4]
    assert tail.rare.tolist() == [5, 6, 7, 8, 9, 10, 11], "12 has no context"


def test_rare_rows_are_inferred_from_all_their_contexts(tail):
    network = network_of()
    before = network.items.collaborative.weight.detach().clone()
    wanted = {item: network.tail_maps.items(torch.stack([state(network, one) for one in contexts(item)]).mean(0))
              for item in tail.rare.tolist()}  # fmt: skip
    network.train()
    tail.start_epoch(0, network)
    assert network.training
    assert network.tail_maps.short == tail.short
    for item, row in enumerate(network.items.collaborative.weight.detach()):
        torch.testing.assert_close(row, wanted[item].detach() if item in wanted else before[item])


def test_the_users_loss_is_that_of_the_paper(tail, monkeypatch):
    network, epoch = network_of(), 2
    tail.start_epoch(epoch, network)
    monkeypatch.setattr(torch, "rand", lambda count, generator: torch.full((count,), 0.999))
    kept = tail.short - 1  # the most of 1 to threshold - 1
    users, wanted = tail.long_users, 0.0
    for user in users:
        whole = ROWS[user][-LENGTH:]
        angle = math.pi / 2 * epoch / 8 + math.pi / (2 * (LENGTH - tail.short - 1)) * (len(whole) - tail.short - 1)
        distance = network.tail_maps.users(state(network, whole[-kept:])) - state(network, whole)
        wanted = wanted + abs(math.sin(angle)) * (distance**2).mean() / len(users)
    torch.testing.assert_close(tail.of_users(network, users), wanted)


def test_the_items_loss_is_that_of_the_paper(tail, monkeypatch):
    network, epoch = network_of(), 2
    tail.start_epoch(epoch, network)
    monkeypatch.setattr(torch, "rand", lambda count, generator: torch.full((count,), 0.999))
    monkeypatch.setattr(torch, "randperm", lambda count, generator: torch.arange(count))
    wanted = 0.0
    for item in (3, 4):
        count = min(len(contexts(item)), tail.rare_up_to)
        # prefixes come before reversed suffixes in the order of contexts
        ordered = [one for kind in (0, 1) for one in halves(item)[kind]][:count]
        states = torch.stack([state(network, one) for one in ordered])
        inferred = network.tail_maps.items((states + network.tail_maps.users(states)).mean(0))
        angle = math.pi / 2 * epoch / 8 + math.pi / 100 * (COUNTS[item] - tail.rare_up_to - 1)
        distance = inferred - network.items.collaborative.weight[item]
        wanted = wanted + abs(math.sin(angle)) * (distance**2).mean() / 2
    torch.testing.assert_close(tail.of_items(network, torch.tensor([3, 4])), wanted)
    tail.of_items(network, torch.tensor([3, 4])).backward()
    assert network.items.collaborative.weight.grad[3].any(), "the target learns as well"


def halves(item):
    prefixes = [row[: place + 1][-LENGTH:] for row in ROWS for place, one in enumerate(row) if one == item]
    return prefixes, [one for one in contexts(item) if one not in prefixes]


def test_an_epoch_sees_every_long_user_and_frequent_item_once(tail):
    network, seen = network_of(), []
    tail.of_users = lambda network, users: seen.extend(users.tolist()) or torch.zeros(())
    tail.of_items = lambda network, items: seen.extend((-items).tolist()) or torch.zeros(())
    tail.start_epoch(1, network)
    for _ in range(5):  # steps beyond those of the epoch add nothing
        tail(network)
    assert sorted(seen) == sorted([*tail.long_users.tolist(), -3, -4])


def test_both_losses_are_added_with_their_weights(tail):
    network, codes = network_of(dropout=0.0), torch.tensor([[3, 4, 5], [3, 6, 0]])
    alone, parts = Objective(network, SETTINGS.model_copy(update={"loss": "full_softmax"})), []
    tail.of_users = lambda network, users: torch.tensor(2.0)
    tail.of_items = lambda network, items: torch.tensor(5.0)
    tail.start_epoch(0, network)
    for auxiliary in (Auxiliary(), Auxiliary(tail=tail)):
        alone.auxiliary = auxiliary
        parts.append(float(alone(codes).detach()))
    users, items = (len(some) > 0 for some in (tail.long_users, tail.frequent))
    assert parts[1] - parts[0] == pytest.approx(0.1 * 2 * users + 0.4 * 5 * items, rel=1e-4)


def test_it_needs_the_maps(tmp_path):
    training = Training(SETTINGS, Dataset(tmp_path), {}, tmp_path)
    with pytest.raises(InputError, match=r"need model\.scorers\.network\.tail_maps=true"):
        next_item.by_transformers(training, ids_only())


def test_no_held_out_item_is_in_a_context(tmp_path):
    """Markers stand where validation and test items do."""
    histories = [[*row, 98, 99] for row in ROWS]
    names = pa.chunked_array([pa.array([str(place) for place in range(len(ROWS))])])
    offsets = np.r_[0, np.cumsum([len(row) for row in histories])]
    write_part(tmp_path, "part-0.parquet", names, offsets, np.concatenate(histories), max_length=LENGTH)
    found, read = TailTraining(Dataset(tmp_path).files("train"), np.pad(COUNTS, (0, 90)), SETTINGS, LENGTH), []
    network = ids_only(n_items=103, max_length=LENGTH, hidden=8, tail_maps=True)
    network.packed_user_states = lambda codes: read.extend(codes.unique().tolist()) or torch.zeros(len(codes), 8)
    found.start_epoch(0, network)
    found.of_users(network, found.long_users)
    found.of_items(network, found.frequent)
    assert set(read) == {0, *range(3, 12)} - {7}, "a sequence of one item is no training row"
