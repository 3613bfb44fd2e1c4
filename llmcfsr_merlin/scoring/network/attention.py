"""Attention over packed batches, and the cross-attention between the two views."""

import math
from collections.abc import Callable
from copy import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Histories are padded on the right, so a causal mask alone keeps every real position from seeing padding; only
# bidirectional attention needs a padding mask (`real`). Attention weights have no dropout (except in baselines
# that follow a publication): on CPU it forces the unfused path (measured: a third of the training step).


class Packing:
    """Packs the real positions of a padded batch: padding costs nothing outside attention, and little in it.

    Most histories are short: at a mean of 9 items and 50 padded positions, packing makes a training step several times
    faster. `pack` takes [B, T, ...] to [M, ...] in the order of rows; attention reads `groups`, the rows of similar
    length padded to their own longest.
    """

    def __init__(self, real: Tensor, capacity: int | None = None):
        """real: bool [B, T], true at a prefix of each row.

        capacity: fixes M, an upper bound of the real positions: padding fills the rest and is computed like them.
        Then every shape is known in advance, and the host never waits for the GPU.
        """
        self._real, self._copies, self._fixed = real, 1, capacity is not None
        self.lengths = real.sum(1)  # int64 [B]
        flat = real.flatten()
        if capacity is None:
            self.places = flat.nonzero().squeeze(1)
        else:
            self.places = flat.long().argsort(descending=True, stable=True)[:capacity]
        self._groups: list[_Group] | None = None

    @property
    def used(self) -> Tensor:
        """bool [M], false at padding."""
        return torch.arange(len(self.places), device=self.places.device) < self.lengths.sum()

    @property
    def ends(self) -> Tensor:
        """int64 [copies * B], the place of each row's last position among the packed."""
        return self.lengths.repeat(self._copies).cumsum(0) - 1

    @property
    def real(self) -> Tensor:
        """bool [copies * B, T]."""
        return self._real.repeat(self._copies, 1)

    def repeat(self, copies: int) -> "Packing":
        repeated = copy(self)
        repeated._copies, repeated._groups = copies, None
        repeated.places = torch.cat([self.places + number * self._real.numel() for number in range(copies)])
        return repeated

    def pack(self, padded: Tensor) -> Tensor:
        return padded.flatten(0, 1).index_select(0, self.places)

    def of_columns(self, table: Tensor) -> Tensor:
        """The row of a table [T, ...] for each position's column: [M, ...]."""
        return self.pack(table.expand(*self._real.shape, *table.shape[1:]))

    def unpack(self, packed: Tensor) -> Tensor:
        """[M, ...] -> [copies * B, T, ...] with zeros at padding."""
        shape = (self._copies * self._real.shape[0], self._real.shape[1])
        padded = packed.new_zeros(shape[0] * shape[1], *packed.shape[1:])
        return padded.index_copy(0, self.places, packed).unflatten(0, shape)

    @property
    def together(self) -> bool:
        """Whether attention reads all rows at once: with a capacity, on a GPU, where few large products are faster
        than many small ones."""
        return self._fixed or self.places.is_cuda

    @property
    def groups(self) -> "list[_Group]":
        """Rows by length, at most twice as long as their shortest: padding at most doubles the work of attention."""
        if self._groups is None:
            lengths = self.lengths.repeat(self._copies)
            starts = lengths.cumsum(0) - lengths
            step = torch.arange(self._real.shape[1], device=lengths.device)
            self._groups, shortest = [], 1
            while shortest <= self._real.shape[1]:
                rows = ((lengths >= shortest) & (lengths < 2 * shortest)).nonzero().squeeze(1)
                shortest *= 2
                if len(rows):
                    real = step[: int(lengths[rows].max())] < lengths[rows, None]
                    places = real.flatten().nonzero().squeeze(1)
                    packed = (starts[rows, None] + step[: real.shape[1]])[real]
                    self._groups.append(_Group(packed, places, real))
        return self._groups


class _Group(NamedTuple):
    """Rows of similar length. packed: int64 [m], places among the packed; places: in `real`; real: [rows, T]."""

    packed: Tensor
    places: Tensor
    real: Tensor


Kernel = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""Causal attention: queries, keys and values [B, T, d] and the number of heads -> [B, T, d]."""


class Attention(nn.Module):
    """Multi-head attention, [B, T, d] -> [B, T, d], or [M, d] -> [M, d] with a packing.

    `real`: bool [B, T] of the places that may be read, from anywhere; None: each place reads itself and what is before.
    dropout: of the attention weights in training. kernel: another runtime's, for a module that it is to run.
    """

    kernel: Kernel | None = None

    def __init__(self, hidden: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key_value = nn.Linear(hidden, hidden), nn.Linear(hidden, 2 * hidden)
        self.out = nn.Linear(hidden, hidden)

    def forward(
        self, query: Tensor, source: Tensor, packing: Packing | None = None, real: Tensor | None = None
    ) -> Tensor:
        if packing is None:
            mask = None if real is None else real[:, None, None, :]
            return self.out(self.mix(self.query(query), self.key_value(source), mask))
        if self.kernel is not None and real is None:
            key, value = (packing.unpack(F.linear(source, *one)) for one in self._key_and_value())
            return self.out(packing.pack(self.kernel(packing.unpack(self.query(query)), key, value, self.heads)))
        projected = self.project(query, source)
        if packing.together:
            mask = None if real is None else packing.real[:, None, None, :]
            return self.out(packing.pack(self.mix(*self._split(packing.unpack(projected)), mask)))
        mixed = [self._mix_group(projected, group, real is not None) for group in packing.groups]
        if len(mixed) == 1:
            return self.out(mixed[0])
        back = torch.cat([group.packed for group in packing.groups]).argsort()
        return self.out(torch.cat(mixed).index_select(0, back))

    def project(self, query: Tensor, source: Tensor) -> Tensor:
        """Queries, keys and values side by side, [..., 3 * d]."""
        return torch.cat([self.query(query), self.key_value(source)], dim=-1)

    def _mix_group(self, projected: Tensor, group: _Group, both_ways: bool) -> Tensor:
        padded = projected.new_zeros(group.real.numel(), projected.shape[1])
        padded = padded.index_copy(0, group.places, projected.index_select(0, group.packed))
        mask = group.real[:, None, None, :] if both_ways else None
        mixed = self.mix(*self._split(padded.unflatten(0, group.real.shape)), mask)
        return mixed.flatten(0, 1).index_select(0, group.places)

    def _split(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        width = projected.shape[-1] // 3
        return projected[..., :width], projected[..., width:]

    def mix(self, query: Tensor, key_value: Tensor, mask: Tensor | None) -> Tensor:
        """Projected queries [B, S, d], and keys and values [B, T, 2 * d] -> attention output, [B, S, d].

        mask: [B, 1, 1 or S, T], bool (true where a place is read) or float, which is added to the scores; None: causal.
        """
        query = query.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, S, d / heads]
        key, value = key_value.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=mask is None)
        return mixed.transpose(1, 2).flatten(2)

    def of_one(self, query: Tensor, source: Tensor, real: Tensor) -> Tensor:
        """What one place of each row reads: query [B, d], source [B, T, d] and `real` -> [B, d].

        <q, K x> = <K' q, x>, and a mean of V x is V of the mean of x: no place of the source is projected. The bias of
        the keys adds the same everywhere, which the softmax drops.
        """
        each = self.query.out_features // self.heads
        (key, _), (value, bias) = self._key_and_value()
        asked = self.query(query).view(-1, self.heads, each).transpose(0, 1) @ key.unflatten(0, (self.heads, each))
        scores = asked.transpose(0, 1) @ source.transpose(1, 2) / math.sqrt(each)  # [B, heads, T]
        share = scores.masked_fill(~real[:, None], -torch.inf).softmax(-1)
        read = F.dropout(share, self.dropout, self.training) @ source  # [B, heads, d]
        mixed = read.transpose(0, 1) @ value.unflatten(0, (self.heads, each)).transpose(1, 2)
        return self.out(mixed.transpose(0, 1).flatten(1) + bias)

    def _key_and_value(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Weight [d, d] and bias [d] of the keys, and of the values."""
        width = self.query.out_features
        weight, bias = self.key_value.weight, self.key_value.bias
        return (weight[:width], bias[:width]), (weight[width:], bias[width:])


class CrossAttention(nn.Module):
    """Each view attends to the other: a + attend(a, b) and b + attend(b, a), causal over the sequence.

    Used at the embedding level (before the encoder) and at the sequence level (between its blocks). A position sees
    only the past of the other view, as in the encoder: anything else would leak the next item. replace: LLM-ESR's form,
    where the query is the other view, the rest one's own, two heads whatever the encoder has, and the output takes the
    view's place.
    """

    def __init__(self, hidden: int, heads: int, dropout: float, replace: bool = False):
        super().__init__()
        self.replace = replace
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(0 if replace else 2))
        self.attend = nn.ModuleList(Attention(hidden, 2 if replace else heads) for _ in range(2))
        self.drop = nn.Dropout(dropout)

    def forward(self, views: list[Tensor], packing: Packing | None = None, real: Tensor | None = None) -> list[Tensor]:
        """Two tensors [B, T, d] (or packed [M, d]) -> two of the same shape."""
        if self.replace:
            # Nothing normalises what this form reads: half precision would round its large scores coarsely.
            with torch.autocast(views[0].device.type, enabled=False):
                a, b = (view.float() for view in views)
                return [self.attend[0](b, a, packing, real), self.attend[1](a, b, packing, real)]
        a, b = (norm(view) for norm, view in zip(self.norms, views))
        read_b, read_a = self.attend[0](a, b, packing, real), self.attend[1](b, a, packing, real)
        return [views[0] + self.drop(read_b), views[1] + self.drop(read_a)]


class PairFusion(nn.Module):
    """Prediction level: the two views of one user state, or of one candidate, attend to each other.

    The sequence is the pair itself, so a candidate is fused without knowing the user and the fused catalogue is
    computed once for a model. The output projection starts at zero: the exchange is learned.
    """

    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(2))
        self.attention = Attention(hidden, heads)
        nn.init.zeros_(self.attention.out.weight)
        nn.init.zeros_(self.attention.out.bias)

    def forward(self, views: list[Tensor]) -> list[Tensor]:
        """Two tensors [..., d] -> two tensors [..., d]."""
        attention = self.attention
        normal = torch.stack([norm(view) for norm, view in zip(self.norms, views)], dim=-2)
        query, key, value = attention.project(normal, normal).unflatten(-1, (3, attention.heads, -1)).unbind(-3)
        # [..., 2, heads, d / heads] each. Softmax over two places is the sigmoid of the difference of their scores.
        (key_a, key_b), (value_a, value_b) = key.split(1, -3), value.split(1, -3)
        share_of_a = ((query * (key_a - key_b)).sum(-1, keepdim=True) / math.sqrt(query.shape[-1])).sigmoid()
        mixed = attention.out((value_b + share_of_a * (value_a - value_b)).flatten(-2))
        return [view + mixed[..., i, :] for i, view in enumerate(views)]
