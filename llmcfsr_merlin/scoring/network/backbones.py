"""The encoder's blocks by name. One of your own is a Backbone anywhere, named `module:Class` in a recipe."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.extensions import load_class
from llmcfsr_merlin.scoring.network.attention import Attention, Packing


class Backbone(nn.Module):
    """One block of the encoder, [B, T, d] -> [B, T, d], or [M, d] -> [M, d] with a packing; it never reads padding.

    MASKED: read both ways and train on masked items (BERT4Rec); else position t must not depend on later ones (a test
    of the causal ones is in tests/unit/scoring/test_network.py).
    """

    MASKED: ClassVar[bool] = False

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__()

    def forward(self, x: Tensor, packing: Packing | None = None, real: Tensor | None = None) -> Tensor:
        """real: bool [B, T] of the positions that may be read from anywhere; None: each reads itself and the past."""
        raise NotImplementedError


class Block(Backbone):
    """One pre-norm transformer block with SASRec's width (feed-forward d -> d -> d, ReLU)."""

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__(hidden, heads, dropout)
        self.norm_attention, self.norm_feed = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.attention = Attention(hidden, heads)
        self.feed = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, hidden))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, packing: Packing | None = None, real: Tensor | None = None) -> Tensor:
        normal = self.norm_attention(x)
        x = x + self.drop(self.attention(normal, normal, packing, real))
        return x + self.drop(self.feed(self.norm_feed(x)))


class RecurrentBlock(Backbone):
    """One GRU layer (GRU4Rec, arXiv 1511.06939) in the place of a transformer block; it never reads padding."""

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__(hidden, heads, dropout)
        self.cell = nn.GRU(hidden, hidden, batch_first=True)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, packing: Packing | None = None, real: Tensor | None = None) -> Tensor:
        # By default cuDNN would multiply in TF32 here, and here alone: 3e-4 away from what a CPU gives.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            states, _ = self.cell(x if packing is None else packing.unpack(x))
        return self.drop(states if packing is None else packing.pack(states))


class MaskedBlock(Block):
    """The same block, trained on masked items and read both ways (BERT4Rec, arXiv 1904.06690)."""

    MASKED = True


BACKBONES: dict[str, type[Backbone]] = {"sasrec": Block, "bert4rec": MaskedBlock, "gru4rec": RecurrentBlock}


def block_class(name: str) -> type[Backbone]:
    """A backbone by its name or by `module:Class`; InputError for an unknown one."""
    if name in BACKBONES:
        return BACKBONES[name]
    if ":" in name:
        return load_class(name)
    raise InputError(f"model.scorers.network.backbone: expected {', '.join(BACKBONES)} or module:Class, found {name!r}")
