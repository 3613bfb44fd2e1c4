"""CITIES (Jang et al., ICDM 2020): rows of rare items inferred from the contexts they occur in.

A network learns to give a frequent item's row in a trained table from a few of its contexts, the items around it in the
training sequences; then it gives the rows of rare items.
"""

import copy
import logging
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.dataset.names import FIRST_ITEM, PAD
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.progress import Progress
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.scoring.network.item_views import MASK
from llmcfsr_merlin.training.rows import rows_of

_log = logging.getLogger(__name__)

_SIDE = 24  # items of a context on either side
_HEADS, _LAYERS, _DROPOUT, _ATTENTION_DROPOUT = 4, 2, 0.2, 0.5
_BATCH, _MOST_CONTEXTS = 128, 10
_RATE, _EPSILON, _WARM_UP = 1e-4, 1e-6, 100
_HELD_OUT, _PATIENCE = 0.05, 10
_CHUNK = 2048  # contexts that are read at a time in inference


class Contexts:
    """Where each item occurs in the training rows: the items around it, itself replaced by the mask token."""

    def __init__(self, files: Sequence[str], n_items: int):
        """files: Parquet of the training rows."""
        self._values, lengths = rows_of(files)
        ends = lengths.cumsum(0).repeat_interleave(lengths)
        here, starts = torch.arange(len(self._values)), ends - lengths.repeat_interleave(lengths)
        seen = torch.minimum(ends, here + _SIDE + 1) - torch.maximum(starts, here - _SIDE)
        here = here[seen > 2]  # as in its code: an item beside one other is no context
        items = self._values[here]
        self._here = here[items.argsort(stable=True)]
        self._row_starts, self._row_ends = starts[self._here], ends[self._here]
        self.counts = items.bincount(minlength=n_items)
        """Contexts of each item, int64 [V]."""
        self._first = self.counts.cumsum(0) - self.counts

    def drawn(self, items: Tensor, count: int, random: torch.Generator) -> Tensor:
        """`count` contexts of each item, with replacement: int64 [N, count, 2 * 24 + 1]."""
        share = torch.rand(len(items), count, generator=random)
        return self._read(self._first[items, None] + (share * self.counts[items, None]).long())

    def every(self, items: Tensor) -> Tensor:
        """All contexts of items that have equally many."""
        return self._read(self._first[items, None] + torch.arange(int(self.counts[items[0]])))

    def _read(self, chosen: Tensor) -> Tensor:
        here = self._here[chosen].unsqueeze(-1)
        places = here + torch.arange(-_SIDE, _SIDE + 1)
        real = (places >= self._row_starts[chosen].unsqueeze(-1)) & (places < self._row_ends[chosen].unsqueeze(-1))
        codes = self._values[places.clamp(0, len(self._values) - 1)].masked_fill(~real, PAD)
        return codes.masked_fill(places == here, MASK)


class RowInference(nn.Module):
    """Contexts of an item -> its row: one encoder reads each context, another all of them."""

    def __init__(self, table: Tensor):
        """table: float [V, d], frozen."""
        super().__init__()
        hidden = table.shape[1]
        self.table = nn.Embedding.from_pretrained(table)
        self.place_weights = nn.Parameter(torch.ones(2 * _SIDE + 1))
        self.register_buffer("waves", _waves(2 * _SIDE + 1, hidden) / math.sqrt(hidden), persistent=False)
        self.drop = nn.Dropout(_DROPOUT)
        self.of_context = nn.ModuleList(_layer(hidden) for _ in range(_LAYERS))
        self.of_item = nn.ModuleList(_layer(hidden) for _ in range(_LAYERS))
        self.out = nn.Linear(hidden, hidden)

    def forward(self, contexts: Tensor) -> Tensor:
        """contexts: int64 [B, K, T] -> rows float [B, d]."""
        padding = (contexts == PAD).flatten(0, 1)
        x = self.table(contexts).flatten(0, 1)
        x = self.drop(x * self.place_weights.unsqueeze(1) + self.waves)
        for layer in self.of_context:
            x = layer(x, src_key_padding_mask=padding)
        x = x.masked_fill(padding.unsqueeze(-1), 0).sum(1) / (~padding).sum(1, keepdim=True)
        x = x.unflatten(0, contexts.shape[:2])
        for layer in self.of_item:
            x = layer(x)
        return self.out(x.mean(1))


def infer_rows(network: DualViewNetwork, files: Sequence[str], counts: Tensor, settings: TrainConfig) -> None:
    """Overwrite the rows of items with at most settings.infer_up_to training interactions, counts int64 [V]; those
    without a context, as of new items, stay as they are."""
    if network.items.collaborative is None or network.config.hidden % _HEADS:
        raise InputError(
            f"train.infer_up_to needs a network with an item table of a width that is a multiple of {_HEADS}"
        )
    table, contexts = network.items.collaborative.weight, Contexts(files, network.n_items)
    known = contexts.counts > 0
    known[:FIRST_ITEM] = False
    frequent = (known & (counts > settings.infer_up_to)).nonzero().squeeze(1)
    rare = (known & (counts <= settings.infer_up_to)).nonzero().squeeze(1)
    if not len(rare) or len(frequent) < 2:
        _log.info("no rows inferred: %d rare and %d frequent items with contexts", len(rare), len(frequent))
        return
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        inference = RowInference(table.detach().clone()).to(table.device)
        _train(inference, contexts, frequent, settings)
    inference.eval()
    with torch.no_grad():
        for count in contexts.counts[rare].unique():
            alike = rare[contexts.counts[rare] == count]
            for some in alike.split(max(_CHUNK // int(count), 1)):
                table[some.to(table.device)] = inference(contexts.every(some).to(table.device))
    _log.info("rows of %d rare items inferred from their contexts", len(rare))


def _train(inference: RowInference, contexts: Contexts, items: Tensor, settings: TrainConfig) -> None:
    """Train for at most settings.epochs to the best one by the mean squared error of held-out items."""
    random = torch.Generator().manual_seed(settings.seed)
    items = items[torch.randperm(len(items), generator=random)]
    held_out, items = items.tensor_split([max(round(_HELD_OUT * len(items)), 1)])
    weights = [weight for weight in inference.parameters() if weight.requires_grad]
    optimiser = torch.optim.Adam(weights, _RATE, eps=_EPSILON)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min((step + 1) / _WARM_UP, 1.0))
    best, stale, kept = math.inf, 0, inference.state_dict()
    progress = Progress(settings.epochs, "row inference", "epochs")
    for _ in range(settings.epochs):
        inference.train()
        for _ in range(max(len(items) // _BATCH, 1)):
            chosen = items[torch.randint(len(items), (_BATCH,), generator=random)]
            count = int(torch.randint(1, _MOST_CONTEXTS + 1, (1,), generator=random))
            optimiser.zero_grad()
            _error(inference, contexts, chosen, count, random).backward()
            optimiser.step()
            warm_up.step()
        error = _held_out_error(inference, contexts, held_out, settings.seed)
        if error < best:
            best, stale, kept = error, 0, copy.deepcopy(inference.state_dict())
        else:
            stale += 1
        progress.update(1)
        if stale == _PATIENCE:
            break
    _log.info("row inference: squared error of held-out items %.6f", best)
    inference.load_state_dict(kept)


@torch.no_grad()
def _held_out_error(inference: RowInference, contexts: Contexts, items: Tensor, seed: int) -> float:
    """The mean over 1 to 10 contexts an item, the same ones in every epoch."""
    inference.eval()
    random = torch.Generator().manual_seed(seed)
    counts = range(1, _MOST_CONTEXTS + 1)
    return sum(float(_error(inference, contexts, items, count, random)) for count in counts) / len(counts)


def _error(inference: RowInference, contexts: Contexts, items: Tensor, count: int, random: torch.Generator) -> Tensor:
    device = inference.place_weights.device
    inferred = inference(contexts.drawn(items, count, random).to(device))
    return F.mse_loss(inferred, inference.table(items.to(device)))


def _layer(hidden: int) -> nn.TransformerEncoderLayer:
    layer = nn.TransformerEncoderLayer(hidden, _HEADS, 2 * hidden, _DROPOUT, batch_first=True)
    layer.self_attn.dropout = _ATTENTION_DROPOUT
    return layer


def _waves(length: int, hidden: int) -> Tensor:
    """Sinusoidal positions (Vaswani et al., NeurIPS 2017), float [length, hidden]."""
    angle = torch.arange(length).unsqueeze(1) / 10_000 ** (torch.arange(0, hidden, 2) / hidden)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)
