"""Masked-item training: which items of a sequence are hidden, and what is read in their place."""

import torch
from torch import Tensor

from llmcfsr_merlin.dataset.names import FIRST_ITEM, PAD
from llmcfsr_merlin.scoring.network.item_views import MASK

_SWAPPED, _LEFT = 0.1, 0.1  # of the hidden items, in `corrupted`


def hide(items: Tensor, share: float) -> Tensor:
    """BERT4Rec's training: which items, bool [B, T], are masked and predicted; at least one per row, never all of
    two."""
    real = items != PAD
    draw = torch.rand(items.shape, device=items.device).masked_fill(~real, 2.0)
    rank = draw.argsort(1).argsort(1)  # a random order of a row's items, padding behind
    lengths = real.sum(1, keepdim=True)
    hidden = real & ((draw < share) | (rank == 0))
    return hidden & ~((hidden.sum(1, keepdim=True) == lengths) & (lengths > 1) & (rank == lengths - 1))


def corrupted(items: Tensor, hidden: Tensor, n_items: int) -> Tensor:
    """Items int64 [B, T] as BERT reads the hidden ones, bool [B, T]: most are masked, a tenth is any item, a tenth
    stays."""
    draw = torch.rand(items.shape, device=items.device)
    any_item = torch.randint(FIRST_ITEM, n_items, items.shape, device=items.device)
    read = torch.where(draw < _SWAPPED, any_item, MASK)
    return torch.where(hidden & (draw < 1 - _LEFT), read, items)
