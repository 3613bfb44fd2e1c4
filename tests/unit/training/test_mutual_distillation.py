"""EMKD: its encoders and losses against its equations in plain torch, and that they read training items alone."""

import copy
import logging

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from scipy import sparse

from llmcfsr_merlin.config.scorer_settings import NetworkSettings
from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import FIRST_ITEM, PAD
from llmcfsr_merlin.dataset.prepare.sequences import write_part
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.scoring.network.item_views import MASK
from llmcfsr_merlin.training import attribute_pretraining, next_item
from llmcfsr_merlin.training.checkpoints import whole_checkpoints
from llmcfsr_merlin.training.losses import mutual_distillation
from llmcfsr_merlin.training.losses.mutual_distillation import MutualDistillation
from llmcfsr_merlin.training.masking import corrupted
from llmcfsr_merlin.training.objective import Objective
from llmcfsr_merlin.training.procedures import Training
from tests.models import ids_only

HALF, ITEMS = 8, 40
ROWS = [[5, 9, 30, 7], [8, 4], [3]]
HIDDEN = [[[0, 1, 0, 1], [0, 1], [1]], [[1, 0, 0, 0], [1, 0], [1]]]
READ = [[[5, 1, 30, 12], [8, 1], [1]], [[1, 9, 30, 7], [8, 4], [1]]]
ATTRIBUTES = {5: [1], 9: [1, 3], 7: [2], 4: [4], 3: []}


def padded(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor([row + [PAD] * (max(map(len, rows)) - len(row)) for row in rows])


def emkd(**settings):
    network = ids_only(ITEMS, backbone="emkd", hidden=2 * HALF, positions="from_end", dropout=0.0, **settings)
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(std=0.3)
    return network


def norm(x: torch.Tensor, layer) -> torch.Tensor:
    return F.layer_norm(x, (HALF,), layer.weight, layer.bias)


def read(network, number: int, items: list[int]) -> torch.Tensor:
    """States [T, d / 2] of one encoder of the network, which is a network of its own."""
    own = slice(number * HALF, (number + 1) * HALF)
    places = network.position.weight[-len(items) :, own]
    x = network.items.collaborative.weight[items, own] * (2 * HALF) ** 0.5 + places
    for blocks in network.blocks:
        block = blocks.encoders[number]
        normal, attention = norm(x, block.norm_attention), block.attention
        query = F.linear(normal, attention.query.weight, attention.query.bias)
        key, value = F.linear(normal, attention.key_value.weight, attention.key_value.bias).chunk(2, dim=-1)
        heads = [part.unflatten(1, (2, HALF // 2)).transpose(0, 1) for part in (query, key, value)]
        weights = (heads[0] @ heads[1].transpose(1, 2) / (HALF / 2) ** 0.5).softmax(-1)
        x = x + attention.out((weights @ heads[2]).transpose(0, 1).flatten(1))
        first, _, _, second = block.feed
        x = x + second(F.gelu(first(norm(x, block.norm_feed)), approximate="tanh"))
    return norm(x, network.norm.norms[number])


def test_a_score_is_the_sum_of_encoders_that_know_nothing_of_each_other():
    network = emkd().eval()
    table, found = network.items.collaborative.weight, network.user_states(padded(ROWS)) @ network.catalogue().T
    for row, scores in zip(ROWS, found):
        own = (read(network, number, [*row, MASK])[-1] for number in range(2))
        wanted = sum(table[:, number * HALF : (number + 1) * HALF] @ state for number, state in enumerate(own))
        torch.testing.assert_close(scores, wanted, rtol=1e-4, atol=1e-4)


def cosines(rows: list[torch.Tensor], others: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([torch.stack([F.cosine_similarity(a, b, dim=0) for b in others]) for a in rows]) / 0.3


def test_the_losses_are_those_of_its_code(monkeypatch):
    network, table = emkd(), torch.zeros(ITEMS, 2, dtype=torch.long)
    for item, of in ATTRIBUTES.items():
        table[item, : len(of)] = torch.tensor(of)
    losses = MutualDistillation.of(network, TrainConfig(copies=2, mask=0.15), (table, 4))
    hidden, copies = iter(HIDDEN), iter(READ)
    monkeypatch.setattr(mutual_distillation, "hide", lambda items, share: padded(next(hidden)).bool())
    monkeypatch.setattr(mutual_distillation, "corrupted", lambda items, at, count: padded(next(copies)))
    found = losses(network, padded(ROWS))

    weight, wanted, width = network.items.collaborative.weight[FIRST_ITEM:], torch.zeros(()), 4
    tables = weight[:, :HALF], weight[:, HALF:]
    # One row of numbers a sequence, padding included.
    flat = [
        [[F.pad(read(network, n, row), (0, 0, 0, width - len(row))).flatten() for row in rows] for n in range(2)]
        for rows in (ROWS, *READ)
    ]
    for at, rows in zip(HIDDEN, READ):
        chosen = [(row, place) for row, hide in enumerate(at) for place, one in enumerate(hide) if one]
        targets = torch.tensor([ROWS[row][place] - FIRST_ITEM for row, place in chosen])
        scores = [torch.stack([read(network, n, rows[r])[p] for r, p in chosen]) @ tables[n].T for n in range(2)]
        wanted = wanted + sum(F.cross_entropy(one, targets) for one in scores)
        p, q = ((one / 0.3).softmax(1) for one in scores)
        divergence = (p * (p / q).log()).sum(1).mean() / 2 + (q * (q / p).log()).sum(1).mean() / 2
        wanted = wanted + 0.001 * divergence
    for n in range(2):  # attributes at the places of the last copy
        states = torch.stack([read(network, n, ROWS[row])[place] for row, place in chosen])
        has = [
            [float(number in ATTRIBUTES.get(ROWS[row][place], ())) for number in (1, 2, 3, 4)] for row, place in chosen
        ]
        wanted = wanted + F.binary_cross_entropy(losses.classifiers[n](states).sigmoid(), torch.tensor(has))
        for other in range(2):
            apart = cosines(flat[0][n], flat[0][other]) * (1 - torch.eye(3))
            own = torch.stack([cosines(flat[0][n], copy[other]).diag() for copy in flat[1:]], 1)
            wanted = wanted + 0.01 * (apart.exp().sum(1).log() - own.exp().sum(1).log()).mean()
    torch.testing.assert_close(found, wanted / 4, rtol=1e-4, atol=1e-4)
    found.backward()
    assert all(one.weight.grad.any() for one in losses.classifiers)


def test_each_encoder_is_taught_by_a_fixed_other():
    a, b = (torch.randn(5, 7, requires_grad=True) for _ in range(2))
    mutual_distillation.divergence(a, b).backward()
    p = (a.detach() / 0.3).softmax(1)
    q = F.log_softmax(b.detach() / 0.3, 1).requires_grad_()
    F.kl_div(q, p, reduction="batchmean").backward()  # what b learns from a
    q_grad = torch.autograd.grad(F.log_softmax(b / 0.3, 1), b, q.grad)[0]
    torch.testing.assert_close(b.grad, q_grad / 2)


def test_a_tenth_is_another_item_and_a_tenth_stays():
    torch.manual_seed(0)
    items = torch.full((2000, 4), 500)
    hidden = torch.tensor([[1, 0, 1, 0]]).bool().expand(2000, 4)
    read_ = corrupted(items, hidden, 10)
    assert (read_[~hidden] == 500).all() and read_.min() == MASK
    shares = [(read_[hidden] == value).float().mean().item() for value in (MASK, 500)]
    assert shares == pytest.approx([0.8, 0.1], abs=0.02) and set(read_[hidden].tolist()) == {MASK, 500, *range(3, 10)}


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
    train = TrainConfig(copies=2, mask=0.15, epochs=2, batch_size=4, device="cpu")
    files = {name: dataset.files(name) for name in ("train", "valid")}
    return Training(train, dataset, files, tmp_path, report=logging.info)


def test_training_reads_training_items_alone(training, monkeypatch):
    seen, forward = set(), MutualDistillation.forward

    def spy(self, network, items):
        seen.update(items.flatten().tolist())
        return forward(self, network, items)

    monkeypatch.setattr(MutualDistillation, "forward", spy)
    network = ids_only(backbone="emkd", hidden=16, positions="from_end")
    before = network.items.collaborative.weight.clone()
    assert len(next_item.by_transformers(training, network)) == 2
    assert seen == {PAD, 3, 4, 5, 6, 7, *range(21, 30)}
    assert not torch.equal(before, network.items.collaborative.weight)


def test_classifiers_of_attributes_are_trained_and_checkpointed(training, monkeypatch):
    made, build = [], MutualDistillation.of

    def of(*given):
        made.append(build(*given))
        made.append(copy.deepcopy(made[0].classifiers))
        return made[0]

    monkeypatch.setattr(MutualDistillation, "of", of)
    next_item.by_transformers(training, ids_only(backbone="emkd", hidden=16, positions="from_end"))
    (losses, before), kept = made, load_file(whole_checkpoints(training.work)[0] / "model.safetensors")
    for number in range(2):
        assert not torch.equal(kept[f"beside.classifiers.{number}.weight"], before[number].weight)
        assert not torch.equal(losses.classifiers[number].weight, before[number].weight)


def test_what_it_needs_is_said(training):
    with pytest.raises(InputError, match=r"train\.copies needs backbone emkd, found bert4rec"):
        next_item.by_transformers(training, ids_only(backbone="bert4rec", hidden=16))
    with pytest.raises(ValueError, match=r"expected one view and hidden a multiple of 2 \* heads, found .* and 18"):
        NetworkSettings(backbone="emkd", hidden=18)
    with pytest.raises(InputError, match=r"train\.copies has losses of its own: set train\.contrast=0"):
        Objective(ids_only(backbone="emkd", hidden=16), TrainConfig(copies=2, contrast=0.1))
    two = training._replace(settings=training.settings.model_copy(update={"processes": 2}))
    with pytest.raises(InputError, match=r"train\.copies trains in one process"):
        next_item.by_transformers(two, ids_only(backbone="emkd", hidden=16))
