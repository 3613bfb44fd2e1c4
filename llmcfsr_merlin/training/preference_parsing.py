"""TSLRec's item vectors (Liu et al., 2024, arXiv 2406.00333): a language model reads a user's items as text and has to
tell of which categories they are, where categories are clusters of a trained model's item vectors.

No code is public. Assumed: 64 clusters by k-means; the latest ten items, 16 tokens each, a line for each item; the
state of the last token, normalised, is mapped to the distribution of the whole training sequence over the clusters, by
cross-entropy, with low-rank adapters. An item's vector is the state at the end of its own line.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

from llmcfsr_merlin.config.tune_settings import TuneConfig
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.text.encoder import TextEncoder
from llmcfsr_merlin.text.tuning.lora import attach_lora
from llmcfsr_merlin.training.rows import rows_of

CATEGORIES, LATEST, ITEM_TOKENS = 64, 10, 16
_FEW = 4  # items a category, on average, at least
_CHUNK = 64  # lines that are read at a time


class Parser(nn.Module):
    """The loss of telling users' categories from their items' lines."""

    def __init__(self, encoder: TextEncoder, texts: list[str], categories: int):
        """encoder: a causal model and its tokenizer; the model gets adapters. texts: of all items, "" without."""
        super().__init__()
        tokenizer = encoder.tokenizer
        end = tokenizer("\n", add_special_tokens=False)["input_ids"] or [tokenizer.eos_token_id]
        given = tokenizer(texts, truncation=True, max_length=ITEM_TOKENS, add_special_tokens=False)["input_ids"]
        self.lines = [[*tokens, *end] if tokens else [] for tokens in given]
        self.start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self.encoder = encoder
        encoder.model = attach_lora(encoder.model, TuneConfig())
        self.model = encoder.model
        self.head = nn.Linear(encoder.dimension, categories).to(encoder.device)

    def states(self, histories: Sequence[Sequence[int]]) -> Tensor:
        """The state at the end of the lines of the latest items of each history, float [B, D]."""
        given = [[*self.start, *(token for item in row for token in self.lines[item])] for row in histories]
        batch = self.encoder.batch(given)
        states = self.model(**batch).last_hidden_state
        last = batch["attention_mask"].sum(1) - 1
        return states[torch.arange(len(given), device=states.device), last].float()

    def forward(self, histories: Sequence[Sequence[int]], shares: Tensor) -> Tensor:
        """shares: float [B, K], the users' distributions over the categories. Mean cross-entropy, a scalar."""
        states = self.states(histories)  # of Gemma: of a norm that would make the head's first scores all or nothing
        found = self.head(F.layer_norm(states, states.shape[1:])).log_softmax(1)
        return -(shares.to(found) * found).sum(1).mean()

    @torch.no_grad()
    def vectors(self) -> Tensor:
        """float [V, D]: the state at the end of each item's own line; the mean of all for items without text."""
        having = [item for item, line in enumerate(self.lines) if line]
        self.eval()
        parts = [self.states([[item] for item in having[at : at + _CHUNK]]) for at in range(0, len(having), _CHUNK)]
        found = torch.cat(parts).cpu()
        vectors = found.mean(0).repeat(len(self.lines), 1)
        vectors[having] = found
        return vectors


def categories_of(table: np.ndarray, seen: np.ndarray, seed: int) -> np.ndarray:
    """The cluster of each item, int64 [V], -1 for unseen ones; table: float [V, d] of a trained model."""
    places = np.flatnonzero(seen)
    count = max(min(CATEGORIES, len(places) // _FEW), 1)
    _, labels = kmeans2(table[places].astype(np.float64), count, minit="++", seed=seed)
    found = np.full(len(table), -1, dtype=np.int64)
    found[places] = labels
    return found


def samples_of(files: Sequence[str], categories: np.ndarray, lines: list[list[int]]) -> tuple[list[list[int]], Tensor]:
    """Of the training rows with a text: their latest items with one, and their distribution over the categories."""
    values, lengths = rows_of(files)
    histories, shares = [], []
    for row in values.split(lengths.tolist()):
        latest = [item for item in row.tolist() if lines[item]][-LATEST:]
        if latest:
            counts = np.bincount(categories[row.numpy()], minlength=categories.max() + 1)
            histories.append(latest)
            shares.append(torch.from_numpy(counts / counts.sum()).float())
    if not histories:
        raise InputError("no training row has an item with a text: a language model has nothing to read")
    return histories, torch.stack(shares)


def principal(vectors: Tensor, width: int) -> Tensor:
    """Scores float [N, at most width] of the leading principal components, each of variance 1 / width."""
    _, _, directions = torch.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    scores = (vectors - vectors.mean(0)) @ directions[:width].T
    return scores / scores.std(0).clamp_min(1e-12) * width**-0.5
