"""Text to vectors by TextEncoder, and LoRA steps, for models of random bf16 weights that are made on the device."""

import json
import time
from types import SimpleNamespace

import numpy as np
import torch

from benchmarks.gpu.common import CUDA, DEVICE, median, seconds, wait
from benchmarks.gpu.record import Skip
from llmcfsr_merlin.config.embed_settings import TuneConfig
from llmcfsr_merlin.text.encoder import TextEncoder
from llmcfsr_merlin.text.tuning.contrastive import Embedder, cached_backward, info_nce, length_chunks
from llmcfsr_merlin.text.tuning.lora import attach_lora

MAX_TOKENS = 128


def run(record, small: bool) -> None:
    peaks = _peaks(record.path.parent)
    names = ("minilm", "llama_7b") if CUDA or small else ("minilm",)
    items = {"minilm": 32, "llama_7b": 16} if small else {"minilm": 100_000, "llama_7b": 4096}
    for name in names:
        start = time.perf_counter()
        made = load(name, small)
        wait()
        record(f"{name} made", {"seconds": round(time.perf_counter() - start, 2)})
        encoder = TextEncoder(
            made, SimpleNamespace(pad_token_id=0), pooling="mean" if name == "minilm" else "last",
            max_tokens=MAX_TOKENS, batch_size=256,
        )  # fmt: skip
        record.part(name, lambda encoder=encoder, name=name: encoding(encoder, items[name], peaks))
        if name == "llama_7b":
            record.part(f"{name} lora", lambda encoder=encoder: lora(encoder, 4 if small else 32, peaks))
        del made, encoder
        if CUDA:
            torch.cuda.empty_cache()


def load(name: str, small: bool):
    """A bare model of the named shape (of a tiny one for a dry run), random bf16 weights on the device."""
    from transformers import AutoModel, BertConfig, LlamaConfig

    tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    bert = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    config = BertConfig(**(tiny if small else bert)) if name == "minilm" else LlamaConfig(**(tiny if small else {}))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(DEVICE):
            return AutoModel.from_config(config).eval()
    finally:
        torch.set_default_dtype(before)


def prompts(count: int, vocabulary: int) -> list[list[int]]:
    """Token lists as long as the prompts of items with a description: 8 to 128, mean about 50."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(np.log(45), 0.5, count).astype(int), 8, MAX_TOKENS)
    return [random.integers(5, vocabulary, length).tolist() for length in lengths]


def encoding(encoder: TextEncoder, items: int, peaks: dict[str, float]) -> dict:
    """Speed over all items, from token lists to vectors on the host; padding is not counted as work."""
    tokens = prompts(items, encoder.model.config.vocab_size)
    encoder.encode_tokens(tokens[: max(items // 16, 8)])
    wait()
    (taken,) = seconds(lambda: encoder.encode_tokens(tokens), 1, 0)
    count = sum(map(len, tokens))
    flops = 2 * _weights(encoder.model) * count
    return {
        "items_per_second": round(items / taken), "tokens_per_second": round(count / taken), "items": items,
        "mean_tokens": round(count / items, 1),
        "attention": getattr(encoder.model.config, "_attn_implementation", None),  # transformers 4.36 and newer
        **_shares(flops / taken / 1e12, peaks),
    }  # fmt: skip


def lora(encoder: TextEncoder, pairs: int, peaks: dict[str, float]) -> dict:
    """One contrastive step on a batch of pairs as stage `embed` takes it: forward, loss, backward, AdamW."""
    try:
        import peft  # noqa: F401
    except ImportError as missing:
        raise Skip("peft is not installed") from missing
    settings = TuneConfig(enabled=True, method="lora", precision="bfloat16", batch_size=pairs)
    frozen = _weights(encoder.model)
    wrapped = encoder.model = attach_lora(encoder.model, settings).to(DEVICE).train()
    trained = [weight for weight in wrapped.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate)
    embed = Embedder(wrapped, encoder.pooling, settings.precision)
    tokens = prompts(2 * pairs, wrapped.config.vocab_size)
    chunks = length_chunks([len(row) for row in tokens], settings.micro_batch)

    def gradient(vectors):
        leaf = vectors.detach().requires_grad_(True)
        loss = info_nce(leaf[:pairs], leaf[pairs:], settings.temperature)
        loss.backward()
        return float(loss.detach()), leaf.grad

    def step():
        optimizer.zero_grad()
        cached_backward(
            lambda chunk: embed(**encoder.batch([tokens[place] for place in chunk])), chunks, gradient,
            lambda vectors, slope, last: vectors.backward(slope.to(vectors.dtype)),
        )  # fmt: skip
        optimizer.step()

    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    taken, count = median(step, 3, 1), sum(map(len, tokens))
    # Forward and backward through the activations; the frozen weights need no gradient of their own.
    return {
        "tokens_per_second": round(count / taken), "texts": 2 * pairs,
        "trained_weights": sum(weight.numel() for weight in trained),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1) if CUDA else None,
        **_shares(4 * frozen * count / taken / 1e12, peaks),
    }  # fmt: skip


def _weights(model) -> int:
    """Weights that multiply each token: all but the embedding tables."""
    return sum(weight.numel() for name, weight in model.named_parameters() if "embed" not in name)


def _shares(tflops: float, peaks: dict[str, float]) -> dict:
    return {"tflops": round(tflops, 3)} | {f"share_of_{name}": round(tflops / peak, 3) for name, peak in peaks.items()}


def _peaks(folder) -> dict[str, float]:
    """bf16 TFLOP/s that the step `machine` measured, and of the data sheet."""
    try:
        found = json.loads((folder / "machine.json").read_text())["found"]
    except (OSError, ValueError):
        return {}
    peaks = {
        "measured_peak": found.get("bf16", {}).get("tflops"),
        "data_sheet": found.get("facts", {}).get("data_sheet_bf16_tflops"),
    }
    return {name: peak for name, peak in peaks.items() if peak}
