"""Caser (Tang and Wang, WSDM 2018, arXiv 1809.07426): convolutions over the latest items, and a user factor."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from llmcfsr_merlin.scoring.network.attention import Packing
from llmcfsr_merlin.scoring.network.backbones import Backbone


class ConvolutionBlock(Backbone):
    """The state [z; p] of a history, d / 2 numbers each, from item vectors [e; q] of as many.

    z: the vectors e of the latest WINDOW items as an image, through convolutions over its columns (vertical) and over
    each number of its rows (horizontal, max-pooled), then a ReLU layer. p: the published user factor is a row of a
    table, which a history without a user id cannot have; here it is the sum of q over the whole history by the square
    root of its length (asymmetric SVD, Koren, KDD 2008).
    """

    LEFT_PADDED = True
    PLAIN = True
    OWN_OUTPUT = True
    WINDOW = 5
    VERTICAL: ClassVar[int] = 4
    """n_v: filters over the columns."""
    HORIZONTAL: ClassVar[int] = 16
    """n_h: filters of each height from 1 to WINDOW."""

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__(hidden, heads, dropout)
        self.width = hidden // 2
        self.vertical = nn.Linear(self.WINDOW, self.VERTICAL)
        heights = range(1, self.WINDOW + 1)
        self.horizontal = nn.ModuleList(nn.Conv1d(self.width, self.HORIZONTAL, height) for height in heights)
        self.drop = nn.Dropout(dropout)
        self.out = nn.Linear(self.VERTICAL * self.width + self.HORIZONTAL * self.WINDOW, hidden - self.width)

    def last(self, x: Tensor, real: Tensor) -> Tensor:
        image = x[:, -self.WINDOW :, : self.width].transpose(1, 2)  # [B, d / 2, WINDOW]
        found = [filters(image).relu().amax(2) for filters in self.horizontal]
        columns = self.vertical(image).transpose(1, 2).flatten(1)
        z = self.out(self.drop(torch.cat([columns, *found], dim=1))).relu()
        total = (x[:, :, self.width :] * real.unsqueeze(-1)).sum(1)
        return torch.cat([z, total / real.sum(1, keepdim=True).clamp_min(1).sqrt()], dim=1)

    def forward(self, x: Tensor, packing: Packing | None = None, real: Tensor | None = None) -> Tensor:
        raise NotImplementedError("a network of one layer asks for its last state only")
