"""The encoder's blocks by name. Your own is a subclass of Backbone, named `module:Class` in a recipe."""

from importlib import import_module
from typing import ClassVar

import torch
from torch import Tensor, nn

from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.extensions import load_class
from llmcfsr_merlin.scoring.network.attention import Attention, Packing

POST_NORM_EPSILON = 1e-12  # of BERT's layer norms


class Backbone(nn.Module):
    """One block of the encoder, [B, T, d] -> [B, T, d], or [M, d] -> [M, d] with a packing; it never reads padding.

    MASKED: bidirectional, trained on masked items (BERT4Rec). LEFT_PADDED: T is always the longest history, which
    ends at the last position, with padding before it; only the state there is used, and training predicts
    the last item of each prefix. Otherwise position t must not depend on later ones (a test for the causal ones is
    in tests/unit/scoring/test_network.py).
    POST_NORM: its output is normalised. Then the network normalises what goes into the first block, not what comes out
    of the last one, adds positions to the item vectors as they are, and starts at N(0, .02), as BERT does.
    PLAIN: reads item vectors as they are, without positions, dropout or norms around it. OWN_OUTPUT: candidates have a
    table and a bias of their own, not the vectors that histories are read by. WINDOW: how many of the latest items a
    sample needs at least, if there are as many. Only left-padded blocks have the last three.
    """

    MASKED: ClassVar[bool] = False
    LEFT_PADDED: ClassVar[bool] = False
    POST_NORM: ClassVar[bool] = False
    PLAIN: ClassVar[bool] = False
    OWN_OUTPUT: ClassVar[bool] = False
    WINDOW: ClassVar[int | None] = None

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__()

    @classmethod
    def outer_norm(cls, hidden: int) -> nn.Module:
        """The network's norm before the first block or after the last one."""
        return nn.LayerNorm(hidden, eps=POST_NORM_EPSILON if cls.POST_NORM else 1e-5)

    def forward(self, x: Tensor, packing: Packing | None = None, real: Tensor | None = None) -> Tensor:
        """real: bool [B, T] of the positions that may be read from anywhere; None: each reads itself and the past."""
        raise NotImplementedError

    def at(self, x: Tensor, places: Tensor, real: Tensor | None = None) -> Tensor:
        """The output at one place int64 [B] of each row, [B, d]."""
        return _taken(self(x, real=real), places)

    def ends(self, x: Tensor, packing: Packing) -> Tensor:
        """The output at the last place of each row of packed x [M, d], [B, d]."""
        return self(x, packing).index_select(0, packing.ends)

    def last(self, x: Tensor, real: Tensor) -> Tensor:
        """Of a left-padded block that is the last one: the state at the last place, [B, d]."""
        return self(x, real=real)[:, -1]


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

    def at(self, x: Tensor, places: Tensor, real: Tensor | None = None) -> Tensor:
        if real is None:
            real = torch.arange(x.shape[1], device=x.device) <= places[:, None]
        normal = self.norm_attention(x)
        return self._of_one(_taken(x, places), _taken(normal, places), normal, real)

    def ends(self, x: Tensor, packing: Packing) -> Tensor:
        normal, ends = self.norm_attention(x), packing.ends
        return self._of_one(x.index_select(0, ends), normal.index_select(0, ends), packing.unpack(normal), packing.real)

    def _of_one(self, x: Tensor, query: Tensor, source: Tensor, real: Tensor) -> Tensor:
        x = x + self.drop(self.attention.of_one(query, source, real))
        return x + self.drop(self.feed(self.norm_feed(x)))


def _taken(x: Tensor, places: Tensor) -> Tensor:
    """Row b of [B, T, d] at places[b]: [B, d]."""
    # gather, not an index by rows: a traced graph would hard-code the number of rows.
    return x.gather(1, places[:, None, None].expand(-1, 1, x.shape[-1])).squeeze(1)


class PostNormBlock(Backbone):
    """BERT's block (post-norm, feed-forward d -> 4d -> d, exact GELU), causal: SASRec as RecBole, DuoRec (CL4SRec) and
    BSARec's code have it."""

    POST_NORM = True

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__(hidden, heads, dropout)
        self.norm_attention, self.norm_feed = (nn.LayerNorm(hidden, eps=POST_NORM_EPSILON) for _ in range(2))
        self.attention = Attention(hidden, heads, dropout)
        self.feed = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Linear(4 * hidden, hidden))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, packing: Packing | None = None, real: Tensor | None = None) -> Tensor:
        return self.fed(self.norm_attention(x + self.drop(self.attention(x, x, packing, real))))

    def fed(self, x: Tensor) -> Tensor:
        return self.norm_feed(x + self.drop(self.feed(x)))


class OriginalBlock(Backbone):
    """SASRec's block as its authors' code has it (arXiv 1808.09781; MELT and LLM-ESR build on it): each half adds to
    its normalised input, from which the queries are made; keys and values are made from the input itself."""

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__(hidden, heads, dropout)
        self.norm_attention, self.norm_feed = (nn.LayerNorm(hidden, eps=1e-8) for _ in range(2))
        self.attention = Attention(hidden, heads, dropout)
        self.feed = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, hidden))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, packing: Packing | None = None, real: Tensor | None = None) -> Tensor:
        normal = self.norm_attention(x)
        x = self.norm_feed(normal + self.attention(normal, x, packing, real))
        return x + self.drop(self.feed(x))


class RecurrentBlock(Backbone):
    """One GRU layer (GRU4Rec, arXiv 1511.06939) in place of a transformer block; it never reads padding."""

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__(hidden, heads, dropout)
        self.cell = nn.GRU(hidden, hidden, batch_first=True)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, packing: Packing | None = None, real: Tensor | None = None) -> Tensor:
        # By default cuDNN uses TF32 here, and only here: 3e-4 away from the CPU's result.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            states, _ = self.cell(x if packing is None else packing.unpack(x))
        return self.drop(states if packing is None else packing.pack(states))


class MaskedBlock(Block):
    """The same block, bidirectional and trained on masked items (BERT4Rec, arXiv 1904.06690)."""

    MASKED = True


_HERE = "llmcfsr_merlin.scoring.network"
BACKBONES = {
    "sasrec": f"{_HERE}.backbones:Block",
    "sasrec_original": f"{_HERE}.backbones:OriginalBlock",
    "sasrec_post_norm": f"{_HERE}.backbones:PostNormBlock",
    "bert4rec": f"{_HERE}.backbones:MaskedBlock",
    "gru4rec": f"{_HERE}.backbones:RecurrentBlock",
    "bsarec": f"{_HERE}.bsarec:FilterBlock",
    "caser": f"{_HERE}.caser:ConvolutionBlock",
    "emkd": f"{_HERE}.parallel:ParallelBlock",
}


def block_class(name: str) -> type[Backbone]:
    """A backbone by its name or by `module:Class`; InputError for an unknown one."""
    if name in BACKBONES:
        module, _, attribute = BACKBONES[name].partition(":")
        return getattr(import_module(module), attribute)
    if ":" in name:
        return load_class(name)
    raise InputError(f"model.scorers.network.backbone: expected {', '.join(BACKBONES)} or module:Class, found {name!r}")
