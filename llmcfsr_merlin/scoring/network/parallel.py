"""EMKD's encoders (Du et al., SIGIR 2023, arXiv 2304.14668): several read a history, each by itself."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from llmcfsr_merlin.scoring.network.attention import Attention, Packing
from llmcfsr_merlin.scoring.network.backbones import Backbone


class ParallelBlock(Backbone):
    """A block of each encoder, on its own ENCODERS-th of the numbers: item vectors, positions and states are those of
    all encoders side by side, and the score is the sum of theirs. They meet in training alone
    (training/mutual_distillation.py)."""

    MASKED = True
    ENCODERS: ClassVar[int] = 2
    """N; the published models have three."""

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__(hidden, heads, dropout)
        self.encoders = nn.ModuleList(_Block(hidden // self.ENCODERS, heads, dropout) for _ in range(self.ENCODERS))

    @classmethod
    def outer_norm(cls, hidden: int) -> nn.Module:
        return _Norms(hidden // cls.ENCODERS, cls.ENCODERS)

    def forward(self, x: Tensor, packing: Packing | None = None, real: Tensor | None = None) -> Tensor:
        parts = zip(self.encoders, x.chunk(self.ENCODERS, dim=-1))
        return torch.cat([block(part, packing, real) for block, part in parts], dim=-1)


class _Block(nn.Module):
    """The published code's block: pre-norm, feed-forward d -> 4d -> d, GELU, dropout of attention weights too."""

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__()
        self.norm_attention, self.norm_feed = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.attention = Attention(hidden, heads, dropout)
        self.feed = nn.Sequential(
            nn.Linear(hidden, 4 * hidden), nn.GELU("tanh"), nn.Dropout(dropout), nn.Linear(4 * hidden, hidden)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, packing: Packing | None, real: Tensor | None) -> Tensor:
        normal = self.norm_attention(x)
        x = x + self.drop(self.attention(normal, normal, packing, real))
        return self.drop(x + self.drop(self.feed(self.norm_feed(x))))


class _Norms(nn.Module):
    """A layer norm of each encoder's numbers, [..., N * d] -> [..., N * d]."""

    def __init__(self, hidden: int, encoders: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(encoders))

    def forward(self, x: Tensor) -> Tensor:
        parts = zip(self.norms, x.chunk(len(self.norms), dim=-1))
        return torch.cat([norm(part) for norm, part in parts], dim=-1)
