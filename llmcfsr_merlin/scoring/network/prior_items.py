"""Items before a short history, as a network trained on reversed sequences continues it (ASReP, Liu et al., SIGIR 2021,
arXiv 2105.00522)."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcfsr_merlin.dataset.names import FIRST_ITEM, PAD

if TYPE_CHECKING:
    from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork


@torch.no_grad()
def with_prior_items(backwards: "DualViewNetwork", histories: Tensor, count: int, length: int) -> Tensor:
    """Histories int64 [B, L], right-padded -> [B, max(L, length)]: those shorter than `length` begin with up to `count`
    items more, until they are as long.

    backwards: reads the latest item first; the best item that the history does not have comes before the oldest, and so
    on, greedily. An empty history stays empty.
    """
    length = min(length, backwards.max_length)
    histories = F.pad(histories, (0, max(length - histories.shape[1], 0)))
    lengths = (histories != PAD).sum(1)
    missing = (length - lengths).clamp(0, count) * (lengths > 0)
    with torch.autocast(histories.device.type, enabled=False):  # half precision would choose other items
        if torch.jit.is_tracing():  # a graph has no shapes that depend on the data
            return _continued(backwards, histories, lengths, missing, count)
        short = missing.nonzero().squeeze(1)
        if len(short):
            rows = _continued(backwards, histories[short], lengths[short], missing[short], int(missing.max()))
            histories = histories.index_copy(0, short, rows)
    return histories


def _continued(backwards: "DualViewNetwork", histories: Tensor, lengths: Tensor, missing: Tensor, steps: int) -> Tensor:
    rows, catalogue = turned(histories, lengths), backwards.catalogue().T
    for step in range(steps):
        scores = (backwards.user_states(rows[:, : backwards.max_length]) @ catalogue).scatter(1, rows, -torch.inf)
        scores[:, :FIRST_ITEM] = -torch.inf
        place = (lengths + step).clamp_max(rows.shape[1] - 1).unsqueeze(1)
        best = torch.where((step < missing).unsqueeze(1), scores.argmax(1, keepdim=True), rows.gather(1, place))
        rows = rows.scatter(1, place, best)
    return turned(rows, lengths + missing)


def turned(rows: Tensor, lengths: Tensor) -> Tensor:
    """Rows int64 [B, L], right-padded, of lengths int64 [B], in reverse order."""
    place = lengths.unsqueeze(1) - 1 - torch.arange(rows.shape[1], device=rows.device)
    return rows.gather(1, place.clamp_min(0)).masked_fill(place < 0, PAD)
