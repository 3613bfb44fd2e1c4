"""BSARec's block and the post-norm network around it, against the published equations in plain torch."""

import inspect
import math

import pytest
import torch
import torch.nn.functional as F

from llmcfsr_merlin.config.model_settings import ModelConfig
from llmcfsr_merlin.config.scorer_settings import NetworkSettings
from llmcfsr_merlin.dataset.dataset import Shape
from llmcfsr_merlin.dataset.names import PAD
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.scoring.network.bsarec import low_pass
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork, left_padded
from llmcfsr_merlin.scoring.scorer import ItemVectors
from tests.models import random_model
from tests.unit.scoring.test_network import build, histories

LENGTH, HIDDEN = 9, 8


def network_of(backbone: str, **settings) -> DualViewNetwork:
    torch.manual_seed(0)
    config = NetworkSettings(backbone=backbone, hidden=HIDDEN, **{"dropout": 0.5, **settings})
    network = DualViewNetwork(config, 40, LENGTH, ItemVectors(Shape(40, LENGTH)))
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "norm" in name or "bias" in name:  # that start at 0 and 1: nothing may hide behind that
                weight += 0.3 * torch.randn_like(weight)
            elif "beta" not in name:
                weight *= 20
    return network.eval()


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 9, 50])
def test_the_filter_is_the_one_of_the_fourier_transform(length):
    x = torch.randn(3, length, HIDDEN)
    spectrum = torch.fft.rfft(x, dim=1, norm="ortho")
    spectrum[:, 5 // 2 + 1 :] = 0
    low = torch.fft.irfft(spectrum, n=length, dim=1, norm="ortho")
    torch.testing.assert_close(low_pass(length, 5, x.device) @ x, low, rtol=1e-5, atol=1e-5)


def norm(x, layer):
    return F.layer_norm(x, (HIDDEN,), layer.weight, layer.bias, 1e-12)


def attended(block, x, allowed, heads=1):
    """Softmax with -10000 where nothing is read, as in the published code."""
    (wq, wk), (bq, bk) = (block.attention.query.weight, block.attention.key_value.weight[:HIDDEN]), (
        block.attention.query.bias, block.attention.key_value.bias[:HIDDEN],
    )  # fmt: skip
    wv, bv = block.attention.key_value.weight[HIDDEN:], block.attention.key_value.bias[HIDDEN:]
    q, k, v = (
        F.linear(x, w, b).unflatten(-1, (heads, -1)).transpose(-2, -3) for w, b in ((wq, bq), (wk, bk), (wv, bv))
    )
    scores = q @ k.transpose(-1, -2) / math.sqrt(HIDDEN / heads) + torch.where(allowed, 0.0, -1e4)
    mixed = (scores.softmax(-1) @ v).transpose(-2, -3).flatten(-2)
    return norm(x + block.attention.out(mixed), block.norm_attention)


def fed(block, x):
    inner = F.linear(x, block.feed[0].weight, block.feed[0].bias)
    gelu = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    return norm(x + F.linear(gelu, block.feed[2].weight, block.feed[2].bias), block.norm_feed)


def test_bsarec_is_what_its_paper_says():
    network = network_of("bsarec", heads=1)
    for history in ([5, 9, 30], [7], list(range(3, 3 + LENGTH)), []):
        codes = torch.tensor([PAD] * (LENGTH - len(history)) + history)
        x = norm(network.items.collaborative.weight[codes] + network.position.weight, network.norm)
        allowed = (codes != PAD)[None] & torch.ones(LENGTH, LENGTH).tril().bool()
        for block in network.blocks:
            spectrum = torch.fft.rfft(x, dim=0, norm="ortho")
            spectrum[3:] = 0
            low = torch.fft.irfft(spectrum, n=LENGTH, dim=0, norm="ortho")
            filtered = norm(x + low + block.beta**2 * (x - low), block.norm_filter)
            x = fed(block, 0.7 * filtered + 0.3 * attended(block, x, allowed))
        given = torch.tensor([[*history, *[PAD] * 2][:LENGTH]])
        torch.testing.assert_close(network.user_states(given), x[-1:], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("heads", [1, 2])
def test_the_post_norm_sasrec_is_a_causal_bert(heads):
    network = network_of("sasrec_post_norm", heads=heads, positions="from_end")
    for history in ([5, 9, 30], [7], list(range(3, 3 + LENGTH))):
        codes = torch.tensor(history)
        x = norm(network.items.collaborative.weight[codes] + network.position.weight[-len(history) :], network.norm)
        allowed = torch.ones(len(history), len(history)).tril().bool()
        for block in network.blocks:
            x = fed(block, attended(block, x, allowed, heads))
        padded = F.pad(codes, (0, 2))[None, :LENGTH]
        torch.testing.assert_close(network.user_states(padded), x[-1:], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network.packed_user_states(padded), x[-1:], rtol=1e-4, atol=1e-5)


def test_baselines_start_as_published():
    torch.manual_seed(0)
    config = NetworkSettings(backbone="bsarec", hidden=64)
    network = DualViewNetwork(config, 3000, 50, ItemVectors(Shape(3000, 50)))
    for name, weight in network.named_parameters():
        if "beta" in name:
            assert weight.detach().std() == pytest.approx(1, abs=0.3)
        elif "norm" in name:
            assert torch.equal(weight, torch.ones(64) if name.endswith("weight") else torch.zeros(64))
        elif name.endswith("bias"):
            assert not weight.any()
        else:
            assert weight.detach().std() == pytest.approx(0.02, rel=0.05), name


def test_a_history_moves_to_the_end():
    given = torch.tensor([[5, 9, 0], [7, 0, 0], [0, 0, 0], [4, 5, 6]])
    assert left_padded(given, 4).tolist() == [[0, 0, 5, 9], [0, 0, 0, 7], [0, 0, 0, 0], [0, 4, 5, 6]]
    assert left_padded(given, 3).tolist() == [[0, 5, 9], [0, 0, 7], [0, 0, 0], [4, 5, 6]]


def test_two_views_are_refused_where_padding_is_read():
    with pytest.raises(InputError, match="expected one view, found two"):
        build(backbone="bsarec", views=("collaborative", "semantic"))


@pytest.mark.parametrize("form", ["traced", "onnx"])
@pytest.mark.parametrize(
    "settings",
    [
        {"backbone": "bsarec", "heads": 1},
        {"backbone": "sasrec_post_norm"},
        {"backbone": "caser", "layers": 1},
        {"backbone": "emkd"},
    ],
)
def test_the_graph_is_the_model(settings, form, tmp_path):
    network = {"hidden": HIDDEN, "positions": "from_end", **settings}
    model = random_model(ModelConfig(scorers={"network": network}), 40, 12)
    graph = model.graph(4).eval()
    example = histories(list(range(3, 15)), [7])
    others = F.pad(histories([5, 9, 30], [7], [8, 8, 9]), (0, 9))
    if form == "traced":
        traced = torch.jit.trace(graph, example, check_trace=False)
        found = [traced(rows) for rows in (example, others)]
    else:
        onnxruntime = pytest.importorskip("onnxruntime")
        path = str(tmp_path / "model.onnx")
        torch.onnx.export(
            graph, example, path, opset_version=17, input_names=["codes"], output_names=["scores"],
            dynamic_axes={"codes": {0: "rows"}},
            **({"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}),
        )  # fmt: skip
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found = [torch.from_numpy(session.run(None, {"codes": rows.numpy()})[0]) for rows in (example, others)]
    for scores, rows in zip(found, (example, others)):
        torch.testing.assert_close(scores[:, 3:], model.scores(rows)[:, 3:], rtol=1e-4, atol=1e-4)
