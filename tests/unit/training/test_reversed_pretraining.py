"""ASReP: what is trained on backwards, which items come before a history, and that no held-out item is among either."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from llmcfsr_merlin.config.model_settings import ModelConfig
from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import ITEM, PAD
from llmcfsr_merlin.dataset.prepare.sequences import write_part
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.scoring.network.prior_items import turned, with_prior_items
from llmcfsr_merlin.training.fit import fit_model
from llmcfsr_merlin.training.procedures import Training
from llmcfsr_merlin.training.reversed_pretraining import extended, pretrain_reversed, reversed_files
from tests.models import ids_only, random_model

ITEMS, LENGTH = 40, 8
HISTORIES = [[5, 9, 30], [7], list(range(3, 3 + LENGTH)), [11, 12, 13, 14, 15], []]
MARKERS = {38, 39}


def padded(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor([row + [PAD] * (max(map(len, rows)) - len(row)) for row in rows])


def continued(backwards, history: list[int], count: int, length: int) -> list[int]:
    """The published loop: while a history is too short, the best item not in it comes before its oldest."""
    added = 0
    while history and len(history) < length and added < count:
        scores = backwards.user_states(torch.tensor([history[::-1]]))[0] @ backwards.items.collaborative.weight.T
        scores[[0, 1, 2, *history]] = -torch.inf
        history, added = [int(scores.argmax()), *history], added + 1
    return history


@pytest.mark.parametrize(("count", "length"), [(15, 6), (2, 6), (3, 18), (1, 3)])
def test_prior_items_are_those_of_the_published_loop(count, length):
    backwards = ids_only(ITEMS, LENGTH, hidden=8).eval()
    found = with_prior_items(backwards, padded(HISTORIES), count, length)
    with torch.no_grad():
        wanted = [continued(backwards, history, count, min(length, LENGTH)) for history in HISTORIES]
    assert [row[row != PAD].tolist() for row in found] == wanted
    assert wanted[0] != HISTORIES[0] or length == 3


def test_half_precision_chooses_the_same_prior_items():
    """Scores of the table's neighbours, which bfloat16 rounds to the same number."""
    backwards = ids_only(ITEMS, LENGTH, hidden=8).eval()
    with torch.no_grad():
        table = backwards.items.collaborative.weight
        table[:] = table[5] + torch.linspace(0, 1e-3, len(table)).unsqueeze(1)
    rows = padded(HISTORIES)
    with torch.autocast("cpu", torch.bfloat16):
        found = with_prior_items(backwards, rows, 3, 6)
    assert torch.equal(found, with_prior_items(backwards, rows, 3, 6))


def test_rows_are_turned():
    rows = padded([[3, 4, 5], [6], []])
    assert turned(rows, torch.tensor([3, 1, 0])).tolist() == [[5, 4, 3], [6, 0, 0], [0, 0, 0]]


def test_a_history_is_read_with_its_prior_items():
    network = ids_only(ITEMS, LENGTH, hidden=8, prior_items=3, prior_length=6).eval()
    alone = ids_only(ITEMS, LENGTH, hidden=8).eval()
    alone.load_state_dict(network.state_dict(), strict=False)
    with torch.no_grad():
        for history in HISTORIES[:4]:
            longer = torch.tensor([continued(network.backwards, history, 3, 6)])
            given = torch.tensor([history + [PAD] * (LENGTH - len(history))])
            torch.testing.assert_close(network.user_states(given), alone.user_states(longer), rtol=1e-4, atol=1e-5)


def test_the_graph_is_the_model():
    network = {"hidden": 8, "prior_items": 3, "prior_length": 6}
    model = random_model(ModelConfig(scorers={"network": network}), ITEMS, LENGTH)
    rows, others = padded(HISTORIES[:4]), padded([[9, 4], list(range(20, 28)), [8, 8, 9]])
    traced = torch.jit.trace(model.graph(4).eval(), rows, check_trace=False)
    for given in (rows, others):
        torch.testing.assert_close(traced(given)[:, 3:], model.scores(given)[:, 3:], rtol=1e-4, atol=1e-4)


@pytest.fixture
def files(tmp_path):
    """Markers stand where validation and test items do."""
    rows = [[3, 4, 5, 38, 39], [6, 7, 39, 38], [8, 38, 39], [*range(10, 30), 38, 39]]
    names = pa.chunked_array([pa.array(["a", "b", "c", "d"])])
    offsets = np.r_[0, np.cumsum([len(row) for row in rows])]
    write_part(tmp_path / "data", "part-0.parquet", names, offsets, np.concatenate(rows), max_length=LENGTH)
    return Dataset(tmp_path / "data").files("train")


def items_of(files: list[str]) -> list[list[int]]:
    return [row for file in files for row in pq.read_table(file)[ITEM].to_pylist()]


def test_training_rows_alone_are_reversed(files, tmp_path):
    found = reversed_files(files, tmp_path, 10)
    assert items_of(found["train"]) == [[5, 4], [7, 6], [*range(29, 21, -1)]]
    assert items_of(found["valid"]) == [[5, 4, 3], [*range(29, 20, -1)]]
    assert len(items_of(reversed_files(files, tmp_path, 1)["valid"])) == 1


def test_pretraining_starts_the_network_and_extends_its_rows(files, tmp_path):
    """With the published steps by hand for a Trainer; a second call repeats none of it."""
    network = ids_only(ITEMS, LENGTH, hidden=8, prior_items=3, prior_length=6)
    train, seen = TrainConfig(pretrain="reversed", device="cpu"), []

    def fit(backwards, training, auxiliary, checkpoint):
        seen.append(items_of(training.files["train"]) + items_of(training.files["valid"]))
        assert backwards is network.backwards and all(weight.requires_grad for weight in backwards.parameters())
        with torch.no_grad():
            for number, weight in enumerate(backwards.parameters()):
                weight.add_(0.1 * number)
                weight[:, ...] = weight
        return []

    training = Training(train, Dataset(tmp_path / "data"), {"train": files, "valid": []}, tmp_path)
    found = pretrain_reversed(training, network, fit)
    for name, weight in network.backwards.named_parameters():
        assert not weight.requires_grad
        assert torch.equal(weight, network.state_dict()[name])
    with torch.no_grad():
        wanted = [continued(network.backwards.eval(), row, 3, 6) for row in items_of(files)]
    assert items_of(found.files["train"]) == wanted
    assert not MARKERS & {item for part in seen for row in part for item in row}
    again = pretrain_reversed(training, network, fit)
    assert len(seen) == 1 and items_of(again.files["train"]) == wanted
    assert [row.tolist() for row in extended(network, map(np.array, items_of(files)))] == wanted


def test_neither_goes_without_the_other(files, tmp_path):
    for settings, pretrain in (({"prior_items": 3}, None), ({}, "reversed")):
        model = ModelConfig(scorers={"network": settings})
        with pytest.raises(InputError, match=r"prior_items and train\.pretrain=reversed need each other"):
            fit_model(model, TrainConfig(pretrain=pretrain), Dataset(tmp_path / "data"), tmp_path)
