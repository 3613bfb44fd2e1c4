"""InfoNCE and its memory-efficient gradient (gradient caching)."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from llmcfsr_merlin.text.encoder import pool

RandomState: TypeAlias = tuple[torch.Tensor, list[torch.Tensor]]
"""Of the CPU and of each GPU."""


class Embedder(nn.Module):
    """A bare language model and its pooling as one module, since DDP wraps the whole forward pass."""

    def __init__(self, model: nn.Module, pooling: str, precision: str = "float32"):
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.precision = precision

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """input_ids, attention_mask: (B, T) int64. Returns unit vectors (B, D) float32."""
        half = self.precision == "bfloat16"
        with torch.autocast(input_ids.device.type, torch.bfloat16, enabled=half):
            hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return pool(hidden, attention_mask, self.pooling)


def info_nce(
    left: torch.Tensor,
    right: torch.Tensor,
    temperature: float,
    left_mask: torch.Tensor | None = None,
    right_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Symmetric in-batch InfoNCE: -log softmax(left_i . right_i / temperature) over row i, and the same over columns.

    left, right: (B, D) float32 unit vectors, row i of both is a pair. left_mask[i, j], right_mask[j, i]: (B, B) bool,
    true where the other row is a false negative and is left out. Returns the mean over both directions, a scalar.
    """
    logits = left @ right.T / temperature  # [B, B]
    target = torch.arange(len(left), device=left.device)

    def masked(scores: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return scores if mask is None else scores.masked_fill(mask, float("-inf"))

    return (cross_entropy(masked(logits, left_mask), target) + cross_entropy(masked(logits.T, right_mask), target)) / 2


def length_chunks(lengths: Sequence[int], size: int) -> list[np.ndarray]:
    """Positions cut into chunks of at most `size`, similar lengths together: little padding."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]


def cached_backward(
    forward: Callable[[np.ndarray], torch.Tensor],
    chunks: Sequence[np.ndarray],
    loss_gradient: Callable[[torch.Tensor], tuple[float, torch.Tensor]],
    backward: Callable[[torch.Tensor, torch.Tensor, bool], None],
) -> float:
    """Backward pass of a loss over all N texts with activations of one chunk at a time (GradCache, arXiv 2101.06983).

    forward(chunk): vectors (len(chunk), D) of those texts. loss_gradient(vectors (N, D)): the loss and its gradient by
    the vectors. backward(vectors, gradient, last): back-propagate one chunk. With one chunk this is the plain backward
    pass; with more each chunk goes forward twice, under the same random state, so that dropout is the same both times.
    """
    size = sum(map(len, chunks))
    if len(chunks) == 1:
        vectors = forward(chunks[0])
        gathered = torch.empty(size, vectors.shape[1], device=vectors.device)
        gathered[chunks[0]] = vectors.detach().float()
        loss, gradient = loss_gradient(gathered)
        backward(vectors, gradient[chunks[0]], True)
        return loss
    states, parts = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_random_state())
            parts.append(forward(chunk).float())
    vectors = torch.empty(size, parts[0].shape[1], device=parts[0].device)
    for chunk, part in zip(chunks, parts):
        vectors[chunk] = part
    loss, gradient = loss_gradient(vectors)
    after = _random_state()
    for number, (chunk, state) in enumerate(zip(chunks, states)):
        _restore(state)
        backward(forward(chunk), gradient[chunk], number == len(chunks) - 1)
    _restore(after)
    return loss


def _random_state() -> RandomState:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _restore(state: RandomState) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
