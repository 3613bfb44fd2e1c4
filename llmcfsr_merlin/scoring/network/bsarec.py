"""BSARec's block (Shin et al., AAAI 2024, arXiv 2312.10325): a frequency filter beside causal attention."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from llmcfsr_merlin.scoring.network.attention import Packing
from llmcfsr_merlin.scoring.network.backbones import POST_NORM_EPSILON, PostNormBlock

_UNREAD = -1e4  # added to masked scores, as in its code: padding positions, fully masked, attend to everything


class FilterBlock(PostNormBlock):
    """h = share * LN(x + low + beta^2 (x - low)) + (1 - share) * LN(x + attention(x)), then the feed-forward layer.

    low: the lowest frequencies of x over the whole padded length, so that padding takes part and a position depends on
    later ones. beta: one number per channel. Settings are those for Beauty; for others, write a subclass.
    """

    LEFT_PADDED = True
    SHARE: ClassVar[float] = 0.7
    """alpha, of the filter."""
    CUT: ClassVar[int] = 5
    """c: the c // 2 + 1 lowest frequencies pass, the mean among them."""

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__(hidden, heads, dropout)
        self.norm_filter = nn.LayerNorm(hidden, eps=POST_NORM_EPSILON)
        self.beta = nn.Parameter(torch.randn(hidden))

    def forward(self, x: Tensor, packing: Packing | None = None, real: Tensor | None = None) -> Tensor:
        """x: float [B, T, d], left-padded; real: bool [B, T]."""
        assert packing is None and real is not None, "a left-padded network gives no packing"
        return self._states(x, real, 0)

    def last(self, x: Tensor, real: Tensor) -> Tensor:
        return self._states(x, real, x.shape[1] - 1).squeeze(1)

    def _states(self, x: Tensor, real: Tensor, start: int) -> Tensor:
        """The output at positions from `start` on."""
        here = x[:, start:]
        read = self.norm_attention(here + self.drop(self._attended(x, real, start)))
        low = low_pass(x.shape[1], self.CUT, x.device)[start:].to(x) @ x
        filtered = self.norm_filter(here + self.drop(low + self.beta**2 * (here - low)))
        return self.fed(self.SHARE * filtered + (1 - self.SHARE) * read)

    def _attended(self, x: Tensor, real: Tensor, start: int) -> Tensor:
        place = torch.arange(x.shape[1], device=x.device)
        reads = real[:, None, None, :] & (place <= place[start:, None])
        query, key_value = self.attention.query(x[:, start:]), self.attention.key_value(x)
        return self.attention.out(self.attention.mix(query, key_value, (~reads).to(query) * _UNREAD))


def low_pass(length: int, cut: int, device: torch.device) -> Tensor:
    """float [length, length], the low-pass filter that keeps the cut // 2 + 1 lowest frequencies.

    irfft(rfft(x)) with the others at zero is linear: as a matrix it costs less than two transforms of 50 places, and
    every format of export has it.
    """
    place = torch.arange(length, device=device)
    apart = place[:, None] - place
    total = torch.ones(length, length, device=device)
    for frequency in range(1, min(cut // 2, length // 2) + 1):
        both = 1 if 2 * frequency == length else 2  # a frequency and its negative, except for the highest one
        total = total + both * torch.cos(2 * math.pi * frequency / length * apart)
    return total / length
