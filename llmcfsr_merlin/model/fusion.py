"""Attention parts: the causal block of SASRec and the cross-attention between the two views."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Histories are padded on the right, so a causal mask alone keeps every real position from seeing padding; no padding
# mask is needed and torch's fused attention can be used.


class Attention(nn.Module):
    """Multi-head attention, [B, T, d] -> [B, T, d]; causal by default."""

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key_value = nn.Linear(hidden, hidden), nn.Linear(hidden, 2 * hidden)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, query: Tensor, source: Tensor, causal: bool = True) -> Tensor:
        q = self.query(query).unflatten(-1, (self.heads, -1)).transpose(-3, -2)
        key, value = self.key_value(source).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        key, value = key.transpose(-3, -2), value.transpose(-3, -2)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, key, value, dropout_p=dropout, is_causal=causal)
        return self.out(mixed.transpose(-3, -2).flatten(-2))


class Block(nn.Module):
    """One pre-norm transformer block with SASRec's width (feed-forward d -> d -> d, ReLU)."""

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__()
        self.norm_attention, self.norm_feed = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.attention = Attention(hidden, heads, dropout)
        self.feed = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, hidden))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        normal = self.norm_attention(x)
        x = x + self.drop(self.attention(normal, normal))
        return x + self.drop(self.feed(self.norm_feed(x)))


class CrossAttention(nn.Module):
    """Each view reads the other: a + attend(a, b) and b + attend(b, a), causal over the sequence.

    Used at the embedding level (before the encoder) and at the sequence level (between its blocks). A position sees
    only the past of the other view, as in the encoder: anything else would leak the next item.
    """

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(2))
        self.attend = nn.ModuleList(Attention(hidden, heads, dropout) for _ in range(2))
        self.drop = nn.Dropout(dropout)

    def forward(self, views: list[Tensor]) -> list[Tensor]:
        """Two tensors [B, T, d] -> two tensors [B, T, d]."""
        a, b = (norm(view) for norm, view in zip(self.norms, views))
        return [views[0] + self.drop(self.attend[0](a, b)), views[1] + self.drop(self.attend[1](b, a))]


class PairFusion(nn.Module):
    """Prediction level: the two views of one user state, or of one candidate, attend to each other.

    The sequence is the pair itself, so a candidate is fused without knowing the user and the fused catalogue is
    computed once for a model. The output projection starts at zero: the exchange is learned.
    """

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(2))
        self.attention = Attention(hidden, heads, dropout)
        nn.init.zeros_(self.attention.out.weight)
        nn.init.zeros_(self.attention.out.bias)

    def forward(self, views: list[Tensor]) -> list[Tensor]:
        """Two tensors [..., d] -> two tensors [..., d]."""
        normal = torch.stack([norm(view) for norm, view in zip(self.norms, views)], dim=-2)
        pairs = normal.flatten(0, -3)  # [N, 2, d]
        mixed = self.attention(pairs, pairs, causal=False).view_as(normal)
        return [view + mixed[..., i, :] for i, view in enumerate(views)]
