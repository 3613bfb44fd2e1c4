"""Texts to vectors: tokenised once, sorted by length, padded batch by batch, pooled with the mask, L2-normalised."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from llmcfsr_merlin.text.language_models import ModelSource, load_model, load_tokenizer, longest_input, pick_device


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Pool token states to one L2-normalised float32 vector a text.

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

    def __init__(self, model, tokenizer, *, pooling: str = "mean", max_tokens: int = 128, batch_size: int = 64):
        """model: a bare transformers model; tokenizer: its tokenizer; batch_size: texts a batch."""
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.max_tokens = max_tokens
        self.batch_size = batch_size

    @classmethod
    def load(
        cls,
        source: ModelSource,
        *,
        pooling: str = "mean",
        max_tokens: int = 128,
        batch_size: int = 64,
        dtype: str = "float32",
        device: str = "auto",
        quantisation: str = "none",
    ) -> "TextEncoder":
        """Load the model of `source`; `max_tokens` is lowered to what the model has positions for."""
        max_tokens = min(max_tokens, longest_input(source.folder) or max_tokens)
        model = load_model(source, dtype, pick_device(device), quantisation)
        return cls(
            model, load_tokenizer(source, max_tokens), pooling=pooling, max_tokens=max_tokens, batch_size=batch_size
        )

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        return self.model.config.hidden_size

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
        longest = max(1, *(len(row) for row in tokens)) if len(tokens) > 1 else max(1, len(tokens[0]))
        ids = np.full((len(tokens), longest), self.tokenizer.pad_token_id, dtype=np.int64)
        mask = np.zeros((len(tokens), longest), dtype=np.int64)
        for row, values in enumerate(tokens):
            ids[row, : len(values)] = values
            mask[row, : max(1, len(values))] = 1
        device = next(self.model.parameters()).device
        return {
            "input_ids": torch.from_numpy(ids).to(device, non_blocking=True),
            "attention_mask": torch.from_numpy(mask).to(device, non_blocking=True),
        }

    def forward(self, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        """Unit vectors (B, D) float32 of a batch of token lists; gradients follow torch's mode."""
        batch = self.batch(tokens)
        return pool(self.model(**batch).last_hidden_state, batch["attention_mask"], self.pooling)

    def encode_tokens(
        self, tokens: Sequence[Sequence[int]], progress: Callable[[int], object] | None = None
    ) -> np.ndarray:
        """Unit vectors (N, D) float32 in the given order. Longest first: running out of memory shows at once.

        progress: called with the number of texts after each batch.
        """
        vectors = np.empty((len(tokens), self.dimension), dtype=np.float32)
        order = sorted(range(len(tokens)), key=lambda index: -len(tokens[index]))
        with torch.inference_mode():
            for start in range(0, len(order), self.batch_size):
                chosen = order[start : start + self.batch_size]
                vectors[chosen] = self.forward([tokens[index] for index in chosen]).cpu().numpy()
                if progress:
                    progress(len(chosen))
        return vectors

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (N, D) float32 of texts."""
        return self.encode_tokens(self.tokenise(texts))
