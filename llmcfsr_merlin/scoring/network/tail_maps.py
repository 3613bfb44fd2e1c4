"""MELT's two linear maps (Kim et al., SIGIR 2023, arXiv 2304.08382)."""

import torch
from torch import Tensor, nn


class TailMaps(nn.Module):
    """users: from the state of a short history to what a longer one would add. items: from the mean state of an item's
    contexts to the item's row; only training uses it (training/tail_training.py).

    short: the longest history, in items, that counts as short; -1 until training sets it.
    """

    short: Tensor

    def __init__(self, hidden: int):
        super().__init__()
        self.users, self.items = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        for linear in (self.users, self.items):
            nn.init.xavier_normal_(linear.weight)
        self.register_buffer("short", torch.tensor(-1))

    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        """States [B, d] of histories of so many items, int64 [B] -> the same, of short histories with their map."""
        return states + self.users(states) * (lengths <= self.short).unsqueeze(1)
