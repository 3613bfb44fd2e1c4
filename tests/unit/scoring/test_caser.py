"""Caser's layers and loss, against its equations as its authors' code computes them: Conv2d over an image of items."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llmcfsr_merlin.config.scorer_settings import NetworkSettings
from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.dataset.names import FIRST_ITEM, PAD
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.training.batches import prefixes_of
from llmcfsr_merlin.training.objective import Objective, shortest_prefix
from tests.models import ids_only

HALF, LENGTH, ITEMS = 6, 9, 40
HISTORIES = ([5, 9, 30], [7], list(range(3, 3 + LENGTH)), [])
SETTINGS = TrainConfig(samples="prefixes", targets=3, loss="bce", bce_negatives=3)


def network_of(**settings):
    network = ids_only(ITEMS, LENGTH, backbone="caser", hidden=2 * HALF, layers=1, **settings)
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(std=0.5)
    return network.eval()


def state_of(network, history: list[int]) -> torch.Tensor:
    """[z; p; 1] of a history, by the published code's convolutions of images."""
    (block,), table = network.blocks, network.items.collaborative.weight
    image = table[([PAD] * 5 + history)[-5:], :HALF][None, None]  # [1, 1, L, d]
    columns = F.conv2d(image, block.vertical.weight[:, None, :, None], block.vertical.bias).flatten(1)
    rows = []
    for filters in block.horizontal:
        found = F.conv2d(image, filters.weight.transpose(1, 2)[:, None], filters.bias).squeeze(3).relu()
        rows.append(F.max_pool1d(found, found.shape[2]).squeeze(2))
    z = F.linear(torch.cat([columns, *rows], 1), block.out.weight, block.out.bias).relu()[0]
    p = table[history, HALF:].sum(0) / max(len(history), 1) ** 0.5
    return torch.cat([z, p, torch.ones(1)])


def test_a_state_is_what_the_published_code_computes():
    network = network_of()
    for history in HISTORIES:
        given = torch.tensor([[*history, PAD, PAD][:LENGTH]])
        torch.testing.assert_close(network.user_states(given)[0], state_of(network, history), rtol=1e-4, atol=1e-5)
    assert network.width == network.catalogue().shape[1] == 2 * HALF + 1


def test_the_loss_is_three_targets_against_three_negatives_each(monkeypatch):
    """Rows of the batch: a window with eight items, and short histories, whose padding is no target."""
    network, rows = network_of(dropout=0.0), [[5, 9, 30, 7, 11, 12, 13, 14], [8, 4], [3, 6, 9, 21]]
    drawn, draw = [], torch.randint
    monkeypatch.setattr(torch, "randint", lambda *given, **kept: drawn.append(draw(*given, **kept)) or drawn[-1])
    items = torch.tensor([row + [PAD] * (8 - len(row)) for row in rows])
    found = Objective(network, SETTINGS)(items)
    pairs = [(row[:-3], target) for row in rows for target in row[-3:]]
    logits = [(network.output.weight @ state_of(network, history), target) for history, target in pairs]
    positive = torch.stack([-F.logsigmoid(scores[target]) for scores, target in logits]).mean()
    negative = torch.stack(
        [-(1 - scores[drawn[0][:, place]].sigmoid()).log() for place, (scores, _) in enumerate(logits)]
    ).mean()
    assert drawn[0].shape == (3, len(pairs)) and int(drawn[0].min()) >= FIRST_ITEM
    assert float(found.detach()) == pytest.approx(float((positive + negative).detach()), rel=1e-4)


def test_the_penalty_is_the_weight_decay_of_adam():
    network, items = network_of(dropout=0.0), torch.tensor([[5, 9, 30, 7, 11, 12, 13, 14]])
    found = []
    for l2 in (0.0, 0.1):
        network.zero_grad()
        torch.manual_seed(0)
        Objective(network, SETTINGS.model_copy(update={"l2": l2}))(items).backward()
        found.append([weight.grad.clone() for weight in network.parameters()])
    for plain, penalised, weight in zip(*found, network.parameters()):
        torch.testing.assert_close(penalised, plain + 0.1 * weight, rtol=1e-4, atol=1e-5)


def test_windows_slide_and_a_short_sequence_is_one_sample():
    assert shortest_prefix(network_of(), SETTINGS) == 8
    rows, lengths = prefixes_of(np.array([10, 8, 3, 1, 7]), 8)
    assert list(zip(rows.tolist(), lengths.tolist())) == [(0, 8), (0, 9), (0, 10), (1, 8), (2, 3), (4, 7)]


def test_no_state_has_read_a_target():
    objective = Objective(network_of(dropout=0.0), SETTINGS)
    items = torch.tensor([[5, 9, 30, 7, 11, 12, 13, 14], [8, 4, 0, 0, 0, 0, 0, 0]])
    other = items.clone()
    other[0, 5:], other[1, :2] = torch.tensor([20, 21, 22]), torch.tensor([23, 24])
    found, changed = objective.predicted(items), objective.predicted(other)
    assert torch.equal(found.states, changed.states)
    assert changed.targets.tolist() == [20, 21, 22, 23, 24]
    other[0, 4] = 25
    assert not torch.allclose(found.states[0], objective.predicted(other).states[0])


def test_it_starts_as_published():
    network = ids_only(3000, 50, backbone="caser", hidden=100, layers=1)
    assert network.items.collaborative.weight.std().item() == pytest.approx(1 / 50, rel=0.05)
    assert network.output.weight[:, :100].std().item() == pytest.approx(1 / 100, rel=0.05)
    assert not network.output.weight[:, 100].any()


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match="backbone caser has one layer: set layers=1, found 2"):
        NetworkSettings(backbone="caser")
    with pytest.raises(InputError, match=r"train\.targets=3 needs a backbone with a state for an empty history"):
        Objective(ids_only(), SETTINGS)
