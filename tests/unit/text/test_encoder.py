import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.text.encoder import TextEncoder, pool, texts_that_fit
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


LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=60).map(lambda found: -np.sort(-np.array(found)))


@given(LENGTHS, st.integers(1, 300))
def test_batches_by_tokens_hold_every_text_and_no_more_than_fit(lengths, tokens):
    start = 0
    while start < len(lengths):
        size = texts_that_fit(lengths[start:], tokens)
        batch = lengths[start : start + size]
        assert size == len(batch) and (size == 1 or 0 < size * max(batch[0], 1) <= tokens)
        start += size
    assert start == len(lengths)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_llama"])
@pytest.mark.parametrize("tokens", [1, 16, 1 << 16])
def test_batches_by_tokens_change_nothing(name, tokens, request, monkeypatch):
    encoder = TextEncoder.load(resolve(str(request.getfixturevalue(name))), device="cpu", batch_tokens=tokens)
    texts, seen = [*TEXTS, "blue soap", "red soap", "title : red soap 2"], []
    plain = encoder.encode(texts)
    monkeypatch.setattr(TextEncoder, "on_gpu", True)
    found = encoder.encode_tokens(encoder.tokenise(texts), seen.append)
    np.testing.assert_allclose(found, plain, atol=1e-5)
    assert sum(seen) == len(texts)


def test_batches_that_do_not_fit_the_memory_are_halved(tiny_bert, monkeypatch, caplog):
    encoder = TextEncoder.load(resolve(str(tiny_bert)), device="cpu", batch_tokens=64)
    plain, forward, sizes = encoder.encode(TEXTS), encoder.forward, []

    def small(tokens):
        sizes.append(len(tokens))
        if len(tokens) > most:
            raise torch.cuda.OutOfMemoryError
        return forward(tokens)

    monkeypatch.setattr(encoder, "forward", small)
    monkeypatch.setattr(TextEncoder, "on_gpu", True)
    most = 2
    np.testing.assert_allclose(encoder.encode(TEXTS), plain, atol=1e-5)
    assert sizes[0] > 2 and "embed.batch_tokens" in caplog.text
    most = 0
    with pytest.raises(InputError, match=r"one text of \d+ tokens: set embed.max_tokens lower"):
        encoder.encode(TEXTS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_llama"])
def test_a_gpu_gives_the_vectors_of_the_cpu(name, request):
    source = resolve(str(request.getfixturevalue(name)))
    texts = [f"{text} {number}" for number in range(50) for text in TEXTS]
    here, there = (TextEncoder.load(source, device=device, batch_tokens=128) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(there.encode(texts), here.encode(texts), atol=1e-4)
