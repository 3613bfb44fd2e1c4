"""Encodes texts as vectors: tokenised once, sorted by length, padded per batch, pooled with the mask, L2-normalised."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch

from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.machine import choose_device
from llmcfsr_merlin.text.language_models import ModelSource, load_model, load_tokenizer, longest_input

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH_TOKENS = 1 << 16  # measured on an H100: enough for a model of MiniLM's size to saturate it
_BUSY = 1 << 14  # tokens; measured there: a 7B model saturates it at a quarter of this
_log = logging.getLogger("llmcfsr_merlin")


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Pool token states to one L2-normalised float32 vector per text.

    hidden: (B, T, D) any float dtype. mask: (B, T), 1 at real tokens, padding on either side. pooling: "mean" over the
    real tokens, or "last" real token (for causal models only the last one has seen the whole text). Returns (B, D).
    """
    hidden = hidden.float()
    mask = mask.to(hidden.device)
    if pooling == "last":
        positions = torch.arange(mask.shape[1], device=hidden.device)
        last = (positions * mask.long()).argmax(dim=1)  # [B]
        pooled = hidden[torch.arange(len(hidden), device=hidden.device), last]
    else:
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    return torch.nn.functional.normalize(pooled, dim=-1)


class TextEncoder:
    """A language model as a function from texts to unit vectors."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        pooling: str = "mean",
        max_tokens: int = 128,
        batch_size: int = 64,
        batch_tokens: int = BATCH_TOKENS,
    ):
        """model: a bare transformers model; tokenizer: its tokenizer.

        batch_size: texts per batch on a CPU; batch_tokens: tokens per batch on a GPU, padding included.
        """
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.max_tokens = max_tokens
        self.batch_size, self.batch_tokens = batch_size, batch_tokens

    @classmethod
    def load(
        cls,
        source: ModelSource,
        *,
        pooling: str = "mean",
        max_tokens: int = 128,
        batch_size: int = 64,
        batch_tokens: int = BATCH_TOKENS,
        dtype: str = "float32",
        device: str = "auto",
        quantisation: str = "none",
    ) -> "TextEncoder":
        """Load the model of `source`; `max_tokens` is capped at the model's number of positions."""
        max_tokens = min(max_tokens, longest_input(source.folder) or max_tokens)
        model = load_model(source, dtype, str(choose_device(device, "embed.device")), quantisation)
        return cls(
            model,
            load_tokenizer(source, max_tokens),
            pooling=pooling,
            max_tokens=max_tokens,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
        )

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        return self.model.config.hidden_size

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, cut at max_tokens, not padded."""
        if not len(texts):
            return []
        return self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.max_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]

    def batch(self, tokens: Sequence[Sequence[int]]) -> dict:
        """Pad token lists on the right to input_ids and attention_mask, (B, T) int64 on the model's device."""
        lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))[:, None]
        places = np.arange(max(1, lengths.max()))
        ids = np.full((len(tokens), len(places)), self.tokenizer.pad_token_id, dtype=np.int64)
        ids[places < lengths] = np.fromiter(chain.from_iterable(tokens), np.int64, int(lengths.sum()))
        mask = (places < lengths.clip(1)).astype(np.int64)  # an empty text has one padding token
        device, tensors = self.device, {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        if device.type == "cuda":  # copies from pinned memory are asynchronous
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}

    def forward(self, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        """Unit vectors (B, D) float32 of a batch of token lists; gradients follow torch's mode."""
        batch = self.batch(tokens)
        mask = batch["attention_mask"]
        if len(set(map(len, tokens))) == 1:  # nothing is padded: without a mask, attention uses its faster kernels
            del batch["attention_mask"]
        return pool(self.model(**batch).last_hidden_state, mask, self.pooling)

    def encode_tokens(
        self, tokens: Sequence[Sequence[int]], progress: Callable[[int], object] | None = None
    ) -> np.ndarray:
        """Unit vectors (N, D) float32 in the given order. Longest first, so that out-of-memory errors appear at once.

        progress: called with the number of texts after each batch. A batch that does not fit a GPU's memory is halved,
        and those after it; InputError if one text does not.
        """
        vectors = np.empty((len(tokens), self.dimension), dtype=np.float32)
        lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
        order = np.argsort(-lengths, kind="stable")
        lengths = lengths[order]
        on_gpu, start = self.on_gpu, 0
        launched: deque[tuple[np.ndarray, Callable[[], np.ndarray]]] = deque()

        def finish() -> None:
            chosen, wait = launched.popleft()
            vectors[chosen] = wait()
            if progress:
                progress(len(chosen))

        with torch.inference_mode():
            while start < len(order):
                size = texts_that_fit(lengths[start:], self.batch_tokens) if on_gpu else self.batch_size
                chosen = order[start : start + size]
                wait = self._launch([tokens[index] for index in chosen])
                if wait is None:
                    self._halve(len(chosen), int(lengths[start]))
                    continue
                start += size
                launched.append((chosen, wait))
                if len(launched) > on_gpu:  # a GPU computes the next batch while this one is copied
                    finish()
            while launched:
                finish()
        return vectors

    def _launch(self, tokens: Sequence[Sequence[int]]) -> Callable[[], np.ndarray] | None:
        """Launch a batch and return a function that waits for its vectors; None if the GPU is out of memory."""
        try:
            found = self.forward(tokens)
        except torch.cuda.OutOfMemoryError:
            return None
        if found.device.type != "cuda":
            return found.numpy
        copy = torch.empty(found.shape, dtype=found.dtype, pin_memory=True).copy_(found, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(found.device))

        def wait() -> np.ndarray:
            copied.synchronize()
            return copy.numpy()

        return wait

    def _halve(self, texts: int, longest: int) -> None:
        if texts == 1:
            raise InputError(
                f"out of memory on the GPU with one text of {longest} tokens: set embed.max_tokens lower, "
                "embed.dtype=bfloat16, or use a smaller embed.model"
            )
        self.batch_tokens = texts * max(longest, 1) // 2
        torch.cuda.empty_cache()
        _log.warning("out of memory on the GPU: continuing with embed.batch_tokens=%d", self.batch_tokens)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (N, D) float32 of texts."""
        return self.encode_tokens(self.tokenise(texts))


def texts_that_fit(lengths: np.ndarray, tokens: int) -> int:
    """How many of the first texts fit a batch; lengths: int64 [N], descending; tokens: padding included.

    Only those of the first one's length if they fill at least half of it: then nothing is padded. Else those of at
    least seven eighths of it, or as many as keep a GPU busy (_BUSY tokens).

    >>> texts_that_fit(np.array([8, 8, 8, 7, 7, 2]), 32), texts_that_fit(np.array([8, 7, 7, 2]), 32)
    (3, 4)
    """
    longest = max(int(lengths[0]), 1)
    fit = max(tokens // longest, 1)
    alike = int(np.searchsorted(-lengths, -lengths[0], side="right"))
    if fit <= 2 * alike and alike < fit:
        return alike
    close = int(np.searchsorted(-lengths, -(longest * 7 / 8), side="right"))
    return min(fit, len(lengths), max(close, -(-_BUSY // longest)))
