"""SASRec's own block, and the starts and maps of what builds on it, against plain torch."""

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from llmcfsr_merlin.config.scorer_settings import NetworkSettings
from llmcfsr_merlin.scoring.network.tail_maps import TailMaps
from tests.models import ids_only

HIDDEN = 8
ORIGINAL = {"backbone": "sasrec_original", "hidden": HIDDEN, "heads": 1, "positions": "from_end"}


def norm(x, layer, epsilon=1e-8):
    return F.layer_norm(x, (HIDDEN,), layer.weight, layer.bias, epsilon)


def state(network, history):
    """The state of one history, as the published code computes it."""
    x = network.items.collaborative.weight[history] * math.sqrt(HIDDEN) + network.position.weight[-len(history) :]
    for block in network.blocks:
        q = norm(x, block.norm_attention)
        (wk, wv), (bk, bv) = block.attention.key_value.weight.chunk(2), block.attention.key_value.bias.chunk(2)
        scores = block.attention.query(q) @ F.linear(x, wk, bk).T / math.sqrt(HIDDEN)
        scores = scores.masked_fill(torch.ones(len(history), len(history)).triu(1).bool(), -torch.inf)
        x = norm(q + block.attention.out(scores.softmax(-1) @ F.linear(x, wv, bv)), block.norm_feed)
        x = x + block.feed[3](F.relu(block.feed[0](x)))
    return norm(x, network.norm, 1e-5)[-1]


def test_a_state_is_what_the_published_code_gives():
    network = ids_only(**ORIGINAL, initialisation="xavier").eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.3 * torch.randn_like(weight)) if weight.dim() == 1 else weight.mul_(3)
    for history in ([5, 9, 30], [7], [3, 4, 5, 6, 7, 8, 9, 10]):
        found = network.user_states(torch.tensor([history]))[0]
        torch.testing.assert_close(found, state(network, history), rtol=1e-4, atol=1e-4)


def test_every_matrix_starts_at_xaviers_normal_distribution():
    network = ids_only(
        n_items=400, max_length=50, **{**ORIGINAL, "hidden": 64}, initialisation="xavier", tail_maps=True
    )
    matrices = [(name, weight) for name, weight in network.named_parameters() if weight.dim() > 1]
    assert {name for name, _ in matrices} >= {"items.collaborative.weight", "position.weight", "tail_maps.items.weight"}
    for name, weight in matrices:
        assert float(weight.std().detach()) == pytest.approx(math.sqrt(2 / sum(weight.shape)), rel=0.1), name


def test_dropout_is_of_attention_weights():
    block = ids_only(**ORIGINAL, dropout=0.5).blocks[0]
    assert block.attention.dropout == 0.5


def test_short_histories_get_what_their_map_adds():
    network = ids_only(**ORIGINAL, tail_maps=True).eval()
    codes = torch.tensor([[5, 9, 0], [7, 8, 9], [0, 0, 0]])
    raw = network.user_states(codes)
    torch.testing.assert_close(network.packed_user_states(codes[:2]), raw[:2], rtol=1e-4, atol=1e-5)
    network.tail_maps.short.fill_(2)
    wanted = raw + torch.tensor([[1.0], [0.0], [1.0]]) * F.linear(
        raw, network.tail_maps.users.weight, network.tail_maps.users.bias
    )
    torch.testing.assert_close(network.user_states(codes), wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(TailMaps(HIDDEN)(raw, torch.tensor([0, 1, 2])), raw), "nothing is short before a training"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tail_maps": True, "views": ("semantic",)}, r"tail_maps needs views=\[collaborative\], found \['semantic'\]"),
        ({"cross_attention": "replace", "hidden": 9, "heads": 1}, r"hidden \(9\) must be even for cross_attention"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, said):
    with pytest.raises(ValidationError, match=said):
        NetworkSettings(**settings)
