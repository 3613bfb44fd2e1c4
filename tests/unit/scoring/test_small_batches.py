"""Recorded batches without a GPU: which batches are recorded, what a recording reads, and when it is dropped."""

import copy

import pytest
import torch

from llmcfsr_merlin.scoring.network import small_batches
from llmcfsr_merlin.scoring.network.small_batches import SIZES, SmallBatches, can_record, fill
from llmcfsr_merlin.scoring.ranker import Ranker
from llmcfsr_merlin.scoring.scorer import NewItems
from llmcfsr_merlin.scoring.scorers import network as network_scorer
from tests.unit.scoring.test_network import BASELINES, DIMENSION, LENGTH, ROWS, build, histories, network_of


class Recorded:
    """In the place of a CUDA graph: it computes on its own input and returns its own output, as a graph does."""

    made: list[int]

    def __init__(self, states, rows, length, device):
        type(self).made.append(rows)
        self._input, self._states = torch.full((rows, length), 7, device=device), states

    def __call__(self, rows):
        fill(self._input, rows)
        return self._states(self._input)[: len(rows)]


@pytest.fixture(autouse=True)
def recorded(monkeypatch):
    Recorded.made = []
    monkeypatch.setattr(small_batches, "Graph", Recorded)
    monkeypatch.setattr(network_scorer, "can_record", lambda network, rows: len(rows) <= SIZES[-1])
    return Recorded.made


@pytest.mark.parametrize("settings", [{}, BASELINES["bert4rec"], BASELINES["replace"]])
def test_recorded_scores_are_those_of_the_network(settings, recorded):
    model = build(**settings)
    ranker, plain = Ranker(model), Ranker(build(**settings), bulk=True)
    for rows in ([[5, 9, 30]], [[7], list(range(3, 3 + LENGTH)), []], [[]], [[k] for k in range(3, 50)], [[4, 4]] * 65):
        codes = histories(*rows) if any(rows) else torch.zeros(1, 1, dtype=torch.long)
        torch.testing.assert_close(ranker.scores(codes), plain.scores(codes), rtol=1e-5, atol=1e-5)
    assert recorded == [1, 4, 64], "each size once, and none for a larger batch or for bulk"


def test_new_weights_new_items_and_another_type_drop_what_was_recorded(recorded):
    model = build()
    one = histories([5, 9])
    Ranker(model).scores(one)
    Ranker(model).scores(one)
    assert recorded == [1, 1]
    model.append_items(NewItems(1, torch.randn(1, DIMENSION)))
    assert model.scores(one).shape == (1, ROWS + 1)
    assert recorded == [1, 1], "not the one of before"
    assert model.scores(one).shape == (1, ROWS + 1)
    assert recorded == [1, 1, 1]
    assert model.double().scores(one).dtype == torch.float32
    assert recorded == [1, 1, 1]


def test_a_copy_records_anew(recorded):
    model = Ranker(build()).model
    model.scores(histories([5]))
    other = copy.deepcopy(model)
    with torch.no_grad():
        network_of(other).blocks[0].feed[0].bias += 1
    assert not torch.allclose(other.scores(histories([5])), model.scores(histories([5])))
    assert recorded == [1, 1]


def test_without_a_recording_all_goes_on_after_one_warning(monkeypatch, caplog):
    def refuse(*_):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(small_batches, "Graph", refuse)
    model = build()
    ranker, one = Ranker(model), histories([5, 9])
    found = [ranker.scores(one), ranker.scores(one)]
    plain = Ranker(build(), bulk=True).scores(one)
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], plain)
    assert len(caplog.records) == 1 and "not permitted when" in caplog.text


def test_nothing_is_recorded_on_a_cpu():
    with torch.inference_mode():
        assert not can_record(network_of(build()).eval(), histories([5]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_a_cuda_graph_gives_the_states_of_the_network(rows, monkeypatch):
    monkeypatch.undo()
    network = network_of(build()).eval().cuda()
    codes = torch.randint(3, ROWS, (rows, 7), device="cuda")
    recorded = SmallBatches(network.user_states, LENGTH)
    with torch.inference_mode():
        assert can_record(network, codes)
        for _ in range(3):
            codes = codes.roll(1, 1)
            torch.testing.assert_close(recorded(codes), network.user_states(codes), rtol=1e-5, atol=1e-5)
    assert not recorded._failed
