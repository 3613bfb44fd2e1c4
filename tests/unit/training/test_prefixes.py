"""train.samples=prefixes: which samples there are, the same for both Trainers, and none with a held-out item."""

import importlib.util

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import COUNT, ITEM, PAD, ROW
from llmcfsr_merlin.dataset.prepare.sequences import write_part
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.training.batches import Batches
from llmcfsr_merlin.training.data_parallel import fit_in_processes
from llmcfsr_merlin.training.objective import Auxiliary, Objective, shortest_prefix
from llmcfsr_merlin.training.procedures import Training
from tests.models import ids_only as network_of

CODES = torch.tensor([[5, 9, 30, 7], [8, 4, 0, 0], [3, 3, 3, 0]])

T4REC = pytest.mark.skipif(not importlib.util.find_spec("transformers4rec"), reason="needs Transformers4Rec")
SEQUENCES = [[[5, 9, 30, 7], [8, 4], [6]], [[11, 12, 13]]]
WANTED = [(0, [5, 9]), (0, [5, 9, 30]), (0, [5, 9, 30, 7]), (1, [8, 4]), (3, [11, 12]), (3, [11, 12, 13])]


@pytest.fixture
def files(tmp_path):
    paths = []
    for part, lists in enumerate(SEQUENCES):
        paths.append(str(tmp_path / f"part-{part}.parquet"))
        pq.write_table(pa.table({ITEM: pa.array(lists, pa.list_(pa.int64()))}), paths[-1])
    return paths


def written(files, tmp_path, shortest) -> list[tuple[int, list[int]]]:
    """What the Merlin loader reads."""
    from llmcfsr_merlin.training import t4rec_trainer

    table = pq.read_table(t4rec_trainer._numbered(files, tmp_path, shortest))
    return list(zip(table[ROW].to_pylist(), table[ITEM].to_pylist()))


def samples(batches) -> list[tuple[int, list[int]]]:
    return [
        (int(row), items[items != PAD].tolist()) for batch in batches for row, items in zip(batch[ROW], batch[ITEM])
    ]


def test_batches_have_every_prefix_once(files):
    cpu = torch.device("cpu")
    batches = Batches(files, 4, cpu, prefixes=2)
    assert samples(batches) == WANTED
    assert [batch[COUNT] for batch in batches] == [11, 5]
    assert (len(batches), len(batches.dataset)) == (2, 6)
    shuffled = Batches(files, 4, cpu, shuffle=True, seed=1, prefixes=2)
    assert sorted(samples(shuffled)) == sorted(WANTED)
    assert samples(shuffled) != WANTED
    with_empty_histories = samples(Batches(files, 4, cpu, prefixes=1))
    firsts = [(0, [5]), (1, [8]), (2, [6]), (3, [11])]
    assert sorted(with_empty_histories) == sorted(WANTED + firsts)


@T4REC
@pytest.mark.parametrize("block", [1, 2, 1 << 14])
def test_the_file_for_the_merlin_loader_has_the_same(files, tmp_path, monkeypatch, block):
    monkeypatch.setattr("llmcfsr_merlin.training.t4rec_trainer._BLOCK", block)
    assert written(files, tmp_path, 2) == WANTED
    assert written(files, tmp_path, 1) == samples(Batches(files, 4, torch.device("cpu"), prefixes=1))
    whole = [row for part in SEQUENCES for row in part]
    assert written(files, tmp_path, None) == list(enumerate(whole))


def test_held_out_items_are_in_no_sample(tmp_path):
    """Markers stand where validation and test items do; one that became a sample would show."""
    histories = [[3, 4, 5, 98, 99], [6, 98, 99], [7, 8, *range(10, 30), 98, 99]]
    offsets = np.r_[0, np.cumsum([len(row) for row in histories])]
    names = pa.chunked_array([pa.array(["a", "b", "c"])])
    write_part(tmp_path, "part-0.parquet", names, offsets, np.concatenate(histories), max_length=8)
    files = Dataset(tmp_path).files("train")
    found = samples(Batches(files, 4, torch.device("cpu"), prefixes=1))
    if importlib.util.find_spec("transformers4rec"):
        assert written(files, tmp_path, 1) == found
    assert found[0] == (0, [3])
    assert found[-1] == (1, list(range(21, 30)))
    assert not {98, 99} & {item for _, items in found for item in items}


def test_the_last_item_alone_is_predicted():
    network = network_of(dropout=0.0)
    found = Objective(network, TrainConfig(samples="prefixes")).predicted(CODES)
    assert found.targets.tolist() == [7, 4, 3]
    everywhere = Objective(network, TrainConfig()).predicted(CODES)
    torch.testing.assert_close(found.states, everywhere.states[everywhere.last], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", ["sasrec_post_norm", "bsarec"])
def test_the_loss_is_cross_entropy_over_all_items_at_the_last_place(backbone):
    network, wanted = network_of(backbone=backbone, dropout=0.0), 0.0
    for history, target in (([5, 9, 30], 7), ([8], 4), ([3, 3], 3)):
        logits = network.user_states(torch.tensor([history]))[0] @ network.items.collaborative.weight[3:].T
        wanted += float((logits.exp().sum().log() - logits[target - 3]).detach()) / 3
    found = Objective(network, TrainConfig(samples="prefixes", loss="full_softmax"))(CODES)
    assert float(found.detach()) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("backbone", ["sasrec", "sasrec_post_norm", "gru4rec", "bsarec"])
def test_no_state_has_read_what_it_is_to_predict(backbone):
    objective = Objective(network_of(backbone=backbone, dropout=0.0), TrainConfig(samples="prefixes"))
    other = CODES.clone()
    other[0, 3], other[1, 1], other[2, 2] = 20, 21, 22
    found, changed = objective.predicted(CODES), objective.predicted(other)
    assert torch.equal(found.states, changed.states)
    assert changed.targets.tolist() == [20, 21, 22]
    other[0, 2] = 23
    assert not torch.allclose(found.states[0], objective.predicted(other).states[0])


def test_an_empty_history_is_a_sample_where_it_has_a_state():
    settings = TrainConfig(samples="prefixes")
    assert shortest_prefix(network_of(), TrainConfig()) is None
    assert shortest_prefix(network_of(), settings) == 2
    network = network_of(backbone="bsarec", dropout=0.0)
    assert shortest_prefix(network, settings) == 1
    objective = Objective(network, settings)
    for items in (torch.tensor([[5], [8]]), torch.tensor([[5, 0, 0], [8, 0, 0]])):
        found = objective.predicted(items)
        assert found.targets.tolist() == [5, 8]
        torch.testing.assert_close(found.states, network.user_states(torch.zeros(2, 3, dtype=torch.long)))


def test_what_does_not_go_with_prefixes_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"backbone bsarec has one state per history: set train\.samples=prefixes"):
        Objective(network_of(backbone="bsarec"), TrainConfig())
    with pytest.raises(InputError, match="needs a causal backbone"):
        Objective(network_of(backbone="bert4rec"), TrainConfig(samples="prefixes"))
    train = TrainConfig(samples="prefixes", processes=2, device="cpu", batch_size=4)
    with pytest.raises(InputError, match=r"set train\.processes=1"):
        fit_in_processes("transformers", network_of(), Training(train, Dataset(tmp_path), {}, tmp_path), Auxiliary())
