import numpy as np
import pytest
import torch

from llmcfsr_merlin.text.encoder import TextEncoder, pool
from llmcfsr_merlin.text.language_models import resolve

TEXTS = ["title : red soap 1", "blue", "green polish 12345 ; brand : acme", "title : skin cream", ""]


def test_pooling_ignores_padding_on_both_sides():
    hidden = torch.randn(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]])
    mean, last = pool(hidden, mask, "mean"), pool(hidden, mask, "last")
    for row, rows in ((0, hidden[0, :2]), (1, hidden[1, 1:])):
        torch.testing.assert_close(mean[row], torch.nn.functional.normalize(rows.mean(0), dim=0))
        torch.testing.assert_close(last[row], torch.nn.functional.normalize(rows[-1], dim=0))


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_llama"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_batching_changes_nothing(name, pooling, request):
    source = resolve(str(request.getfixturevalue(name)))
    encoder = TextEncoder.load(source, pooling=pooling, device="cpu", batch_size=3)
    together = encoder.encode(TEXTS)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert together.dtype == np.float32


def test_tokens_are_cut_to_the_models_positions(tiny_bert):
    encoder = TextEncoder.load(resolve(str(tiny_bert)), max_tokens=10_000, device="cpu")
    assert encoder.max_tokens == 64
    assert encoder.encode(["red " * 500]).shape == (1, 32)


def test_bfloat16_stays_close(tiny_llama):
    source = resolve(str(tiny_llama))
    full = TextEncoder.load(source, device="cpu").encode(TEXTS[:4])
    half = TextEncoder.load(source, device="cpu", dtype="bfloat16").encode(TEXTS[:4])
    assert (full * half).sum(1).min() > 0.99


def test_embedded_minilm_knows_meaning():
    encoder = TextEncoder.load(resolve("minilm"), device="cpu")
    shampoo, conditioner, guitar = encoder.encode(["hair shampoo", "hair conditioner", "electric guitar"])
    assert encoder.dimension == 384 and shampoo @ conditioner > shampoo @ guitar + 0.2
