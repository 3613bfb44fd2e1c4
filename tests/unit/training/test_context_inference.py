"""CITIES' contexts and network against the lines of its code, on a few sequences."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.dataset.dataset import Dataset
from llmcfsr_merlin.dataset.names import ITEM, PAD
from llmcfsr_merlin.dataset.prepare.sequences import write_part
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.scoring.network.item_views import MASK
from llmcfsr_merlin.training import context_inference
from llmcfsr_merlin.training.context_inference import Contexts, RowInference, infer_rows
from tests.models import ids_only

ROWS = [[3, 4, 5], [3, 6], [3, 4, 3, 6], [*range(3, 33)], [7, 3, 4]]
SIDE = 24


def written(folder, rows=ROWS):
    path = str(folder / "train.parquet")
    pq.write_table(pa.table({ITEM: pa.array(rows, pa.list_(pa.int64()))}), path)
    return [path]


def expected(item):
    found = []
    for row in ROWS:
        for place, one in enumerate(row):
            left, right = row[max(place - SIDE, 0) : place], row[place + 1 : place + 1 + SIDE]
            if one == item and len(left) + len(right) > 1:
                found.append([PAD] * (SIDE - len(left)) + left + [MASK] + right + [PAD] * (SIDE - len(right)))
    return found


@pytest.mark.parametrize("item", [3, 4, 6, 7, 20, 32])
def test_contexts_are_the_items_around(item, tmp_path):
    contexts = Contexts(written(tmp_path), 40)
    assert contexts.counts[item] == len(expected(item))
    assert contexts.every(torch.tensor([item]))[0].tolist() == expected(item)
    drawn = contexts.drawn(torch.tensor([item, 5]), 9, torch.Generator().manual_seed(0))
    assert {tuple(one) for one in drawn[0].tolist()} <= {tuple(one) for one in expected(item)}
    assert {tuple(one) for one in drawn[1].tolist()} == {tuple(one) for one in expected(5)}


def encoded(layer, x):
    """A post-norm block of four heads, of the rows of x alone."""
    width = x.shape[1]
    q, k, v = (
        part.unflatten(1, (4, -1)).transpose(0, 1)
        for part in F.linear(x, layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias).chunk(3, 1)
    )
    mixed = ((q @ k.transpose(1, 2) / math.sqrt(width / 4)).softmax(-1) @ v).transpose(0, 1).flatten(1)
    x = layer.norm1(x + layer.self_attn.out_proj(mixed))
    return layer.norm2(x + layer.linear2(F.relu(layer.linear1(x))))


def test_a_row_is_inferred_as_the_published_code_does():
    torch.manual_seed(0)
    table, hidden = torch.randn(40, 8), 8
    inference = RowInference(table)
    with torch.no_grad():
        inference.place_weights.normal_()
    contexts = torch.tensor([[expected(4)[0], expected(3)[2]], [expected(20)[0], expected(7)[0]]])
    assert inference.of_context[0].self_attn.dropout == 0.5
    inference.eval()
    for item, found in zip(contexts, inference(contexts)):
        means = []
        for context in item:
            places = (context != PAD).nonzero().squeeze(1)
            angle = places[:, None] / 10_000 ** (torch.arange(0, hidden, 2) / hidden)
            x = table[context[places]] * inference.place_weights[places, None]
            x[:, 0::2] += angle.sin() / math.sqrt(hidden)
            x[:, 1::2] += angle.cos() / math.sqrt(hidden)
            for layer in inference.of_context:
                x = encoded(layer, x)
            means.append(x.mean(0))
        x = torch.stack(means)
        for layer in inference.of_item:
            x = encoded(layer, x)
        torch.testing.assert_close(found, inference.out(x.mean(0)), rtol=1e-4, atol=1e-5)


@pytest.fixture
def pairs(tmp_path):
    """Each item is surrounded by the neighbours whose rows are like its own."""
    random = np.random.default_rng(0)
    rows = [(3 + 10 * group + random.permutation(10)).tolist() for group in range(4) for _ in range(6)]
    rows = [row[:-1] if 12 in row else row for row in rows] + [[3, 12, 4, 5]]  # 12 is rare
    return written(tmp_path, rows), torch.from_numpy(np.bincount(np.concatenate(rows), minlength=50))


def test_rare_rows_come_near_those_of_their_kind(pairs, monkeypatch):
    files, counts = pairs
    counts[3:43], counts[12], counts[45] = 6, 1, 3  # 45 has no context
    for name, value in {"_RATE": 1e-2, "_BATCH": 8, "_WARM_UP": 5, "_MOST_CONTEXTS": 3}.items():
        monkeypatch.setattr(context_inference, name, value)
    network = ids_only(n_items=50, hidden=16, max_length=9)
    kinds = torch.randn(5, 16)
    with torch.no_grad():
        network.items.collaborative.weight[3:] = kinds.repeat_interleave(10, 0)[:47] + 0.1 * torch.randn(47, 16)
        network.items.collaborative.weight[12] = 5.0
    before = network.items.collaborative.weight.detach().clone()
    infer_rows(network, files, counts, TrainConfig(infer_up_to=5, seed=1, epochs=5))
    after = network.items.collaborative.weight.detach()
    assert (before != after).any(1).nonzero().squeeze(1).tolist() == [12]
    distances = (kinds - after[12]).norm(dim=1)
    assert distances.argmin() == 0
    repeated = ids_only(n_items=50, hidden=16, max_length=9)
    repeated.items.collaborative.weight.data.copy_(before)
    infer_rows(repeated, files, counts, TrainConfig(infer_up_to=5, seed=1, epochs=5))
    assert torch.equal(repeated.items.collaborative.weight, after), "a seed repeats"


def test_no_held_out_item_is_in_a_context(tmp_path):
    """Markers stand where validation and test items do."""
    histories = [[*row, 98, 99] for row in ROWS]
    names = pa.chunked_array([pa.array([str(place) for place in range(len(ROWS))])])
    offsets = np.r_[0, np.cumsum([len(row) for row in histories])]
    write_part(tmp_path, "part-0.parquet", names, offsets, np.concatenate(histories), max_length=50)
    contexts = Contexts(Dataset(tmp_path).files("train"), 100)
    assert not contexts.counts[98:].any()
    read = {code for item in range(3, 33) for code in contexts.every(torch.tensor([item])).flatten().tolist()}
    assert read == {PAD, MASK, *range(3, 33)}


def test_a_table_is_needed(tmp_path):
    with pytest.raises(InputError, match="multiple of 4"):
        infer_rows(ids_only(hidden=10), written(tmp_path), torch.zeros(40), TrainConfig(infer_up_to=5))
