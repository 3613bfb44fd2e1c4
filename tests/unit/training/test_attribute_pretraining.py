"""S3-Rec: its four losses against its equations in plain torch, its samples, and that pre-training reads training items
alone."""

import logging

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from scipy import sparse

from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import PAD
from llmcfsr_merlin.dataset.prepare.sequences import write_part
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.scoring.network.item_views import MASK
from llmcfsr_merlin.training import attribute_pretraining
from llmcfsr_merlin.training.attribute_pretraining import latest, pretrain_on_attributes
from llmcfsr_merlin.training.losses import self_supervision
from llmcfsr_merlin.training.losses.self_supervision import SelfSupervision, masked, segments
from llmcfsr_merlin.training.procedures import Training
from tests.models import ids_only
from tests.unit.scoring.test_bsarec import HIDDEN, attended, fed, network_of, norm

ROWS = [[5, 9, 30, 7], [8, 4], [3]]
HIDDEN_ITEMS = [[0, 1, 0, 1], [0, 1], [1]]
SEGMENTS = [[[5, 1, 1, 7], [8, 1], [3]], [[1, 9, 30, 1], [1, 4], [1]], [[1, 20, 21, 1], [1, 22], [1]]]
NEGATIVES = [11, 12, 13, 14]
ATTRIBUTES = {5: [1], 9: [1, 3], 7: [2], 4: [4], 3: []}


def padded(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor([row + [PAD] * (max(map(len, rows)) - len(row)) for row in rows])


def read(network, items: list[int]) -> torch.Tensor:
    """States of a sequence, each of which has read all of it."""
    x = norm(network.items.collaborative.weight[items] + network.position.weight[-len(items) :], network.norm)
    for block in network.blocks:
        x = fed(block, attended(block, x, torch.ones(len(items), len(items)).bool(), 2))
    return x


def test_the_losses_are_those_of_its_paper(monkeypatch):
    network = network_of("sasrec_post_norm", heads=2, positions="from_end")
    table = torch.zeros(40, 2, dtype=torch.long)
    for item, of in ATTRIBUTES.items():
        table[item, : len(of)] = torch.tensor(of)
    losses = SelfSupervision(HIDDEN, table, 4)
    with torch.no_grad():
        for weight in losses.parameters():
            weight.normal_(std=0.3)  # the sigmoids of the equations are exact there
    monkeypatch.setattr(self_supervision, "masked", lambda real: padded(HIDDEN_ITEMS).bool())
    monkeypatch.setattr(self_supervision, "segments", lambda items, stream: tuple(map(padded, SEGMENTS)))
    monkeypatch.setattr(torch, "randint", lambda *given, **kept: torch.tensor(NEGATIVES))
    found = losses(network, padded(ROWS), torch.tensor([3]))

    items, vectors, maps, wanted = network.items.collaborative.weight, losses.vectors.weight, losses.maps, 0.0
    negatives = iter(NEGATIVES)
    for row, hidden, *parts in zip(ROWS, HIDDEN_ITEMS, *SEGMENTS):
        states = read(network, [MASK if one else item for item, one in zip(row, hidden)])
        for state, item, one in zip(states, row, hidden):
            has = torch.tensor([float(number in ATTRIBUTES.get(item, ())) for number in (1, 2, 3, 4)])
            name, weight = ("masked_attribute", 1.0) if one else ("attribute", 0.2)
            wanted += weight * F.binary_cross_entropy((vectors @ maps[name](state)).sigmoid(), has, reduction="sum")
            if one:
                state = maps["masked_item"](state)
                apart = (state @ items[item]).sigmoid() - (state @ items[next(negatives)]).sigmoid()
                wanted -= apart.sigmoid().log()
        context, positive, negative = (read(network, part)[-1] for part in parts)
        context = maps["segment"](context)
        wanted -= 0.5 * ((context @ positive).sigmoid() - (context @ negative).sigmoid()).sigmoid().log()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_fifth_and_the_last_item_are_masked():
    torch.manual_seed(0)
    real = padded([[3] * 10, [3] * 4, [3]]).repeat(500, 1) != PAD
    found = masked(real)
    assert not found[~real].any()
    for row, length in enumerate((10, 4, 1)):
        assert found[row::3, length - 1].all()
        if length > 1:
            assert found[row::3, : length - 1].float().mean() == pytest.approx(0.2, abs=0.03)


def test_a_segment_is_any_of_up_to_half_of_the_items():
    torch.manual_seed(0)
    stream, seen = torch.arange(20, 30), set()
    given = padded([[3, 4, 5, 6, 7], [8, 9], [10]]).repeat(300, 1)
    for row, context, alone, other in zip(given.tolist(), *(part.tolist() for part in segments(given, stream))):
        places = [place for place, (item, left) in enumerate(zip(row, context)) if left == MASK]
        for place, item in enumerate(row):
            inside = place in places
            assert context[place] == (MASK if inside else item)
            assert alone[place] == (item if inside or item == PAD else MASK)
            assert (other[place] in stream.tolist()) if inside else other[place] == alone[place]
        drawn = [other[place] for place in places]
        assert drawn == list(range(drawn[0], drawn[0] + len(drawn))) if drawn else row[0] == 10
        seen.add((row[0], tuple(places)))
    pairs = {(place, place + 1) for place in range(4)}
    assert {places for first, places in seen if first == 3} == {(place,) for place in range(5)} | pairs
    assert {places for first, places in seen if first == 8} == {(0,), (1,)}


def test_the_latest_items_fit_the_network():
    assert latest(padded([[3, 4, 5], [6], [7, 8]]), 2).tolist() == [[4, 5], [6, 0], [7, 8]]
    assert latest(padded([[3, 4]]), 2).tolist() == [[3, 4]]


@pytest.fixture
def training(tmp_path, monkeypatch):
    """Markers stand where validation and test items do; every third item has an attribute."""
    rows = [[3, 4, 5, 38, 39], [6, 7, 39, 38], [8, 38, 39], [*range(10, 30), 38, 39]]
    names = pa.chunked_array([pa.array(["a", "b", "c", "d"])])
    offsets = np.r_[0, np.cumsum([len(row) for row in rows])]
    write_part(tmp_path / "data", "part-0.parquet", names, offsets, np.concatenate(rows), max_length=8)
    of = sparse.csr_matrix((np.ones(14, np.float32), (range(0, 40, 3), np.arange(14) % 4)), (40, 4))
    monkeypatch.setattr(attribute_pretraining, "item_attributes", lambda dataset, columns: of)
    dataset = Dataset(tmp_path / "data")
    train = TrainConfig(pretrain="attributes", epochs=3, device="cpu")
    return Training(train, dataset, {"train": dataset.files("train"), "valid": []}, tmp_path, report=logging.info)


def post_norm():
    return ids_only(backbone="sasrec_post_norm", hidden=8, positions="from_end")


def test_pretraining_reads_training_items_alone(training, monkeypatch):
    seen, forward = set(), SelfSupervision.forward

    def spy(self, network, items, stream):
        seen.update(items.flatten().tolist(), stream.tolist())
        return forward(self, network, items, stream)

    monkeypatch.setattr(SelfSupervision, "forward", spy)
    network = post_norm()
    before = network.items.collaborative.weight.clone()
    pretrain_on_attributes(training, network)
    assert seen == {PAD, 3, 4, 5, 6, 7, *range(21, 30)}
    assert not torch.equal(before, network.items.collaborative.weight)


def test_an_interrupted_pretraining_goes_on(training, monkeypatch):
    whole = post_norm()
    pretrain_on_attributes(training, whole)
    trained = []
    monkeypatch.setattr(SelfSupervision, "forward", lambda self, network, items, stream: trained.append(1))
    again = post_norm()
    pretrain_on_attributes(training, again)
    assert not trained
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    losses = SelfSupervision(8, *attribute_pretraining.attribute_lists(training))
    model = torch.nn.ModuleDict({"network": again, "losses": losses})
    optimiser = torch.optim.Adam(model.parameters())
    assert attribute_pretraining._restore(training.work / attribute_pretraining._STATE, model, optimiser) == 3
    assert any(state["exp_avg"].any() for state in optimiser.state.values())


def test_without_attributes_two_losses_are_left(training, monkeypatch, caplog):
    monkeypatch.setattr(attribute_pretraining, "item_attributes", lambda dataset, columns: None)
    monkeypatch.setattr(Dataset, "vocabulary", range(40))
    with caplog.at_level(logging.WARNING):
        pretrain_on_attributes(training, post_norm())
    assert "no item has one of the attributes categories, brand" in caplog.text


def test_another_block_is_refused(training):
    with pytest.raises(InputError, match="expected backbone sasrec_post_norm, found sasrec"):
        pretrain_on_attributes(training, ids_only(hidden=8))
