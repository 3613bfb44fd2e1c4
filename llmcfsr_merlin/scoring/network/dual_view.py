"""The dual-view network of LLM-CFSR in plain torch: Transformers4Rec trains it, Triton serves it.

It imports neither Transformers4Rec nor Merlin, so that a server needs only torch; model/t4rec.py wraps the same
modules as Transformers4Rec blocks, and both share every weight.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcfsr_merlin.config.schema import ModelConfig
from llmcfsr_merlin.dataset.names import FIRST_ITEM, PAD
from llmcfsr_merlin.scoring.network.attention import Block, CrossAttention, Packing, PairFusion, RecurrentBlock
from llmcfsr_merlin.scoring.network.item_views import MASK, ItemViews

COLD_COUNT = 3  # training interactions at which cold_gamma counts half
RECENCY = 0.8  # what the transitions of an item count, of those of the item after it


class Catalogue(NamedTuple):
    """What is computed once for a set of weights: every item as a candidate."""

    candidates: Tensor  # [V, views * d], fused
    unit_vectors: Tensor | None  # [V, D (+ E)], unit norm, zero on reserved rows; None without content match


class DualViewNetwork(nn.Module):
    """History codes to next-item scores.

    Both views of every item of the history are read by one shared causal encoder, with cross-attention between the
    views before it (embedding level), between its blocks (sequence level) and between the two user states and the two
    views of a candidate (prediction level). With the raw semantic vectors v (and lexical ones, see _unit_vectors),

        score(u, i) = <u_c, e_c(i)> + <u_s, e_s(i)> + gamma(i) * max_t cos(v(h_t), v(i))
                      + transition_gamma * log(1 + 100 * sum_t 0.8^age(t) w(h_t, i))

    where gamma(i) = gamma + cold_gamma / (1 + n / 3) grows as the training count n of the candidate falls: the fewer
    interactions an item has, the less the first two terms know of it. w are the transitions of the training sequences
    (model/transitions.py), age(t) is 0 for the last item: what d numbers an item cannot hold of who follows whom.

    One view without fusion is SASRec (arXiv 1808.09781), BERT4Rec (arXiv 1904.06690:
    the state is read at a mask after the history) or GRU4Rec, by the backbone.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        max_length: int,
        semantic_dimension: int | None = None,
        lexical_dimension: int | None = None,
    ):
        super().__init__()
        self.config, self.rows, self.max_length = config, rows, max_length
        hidden, heads, dropout = config.hidden, config.heads, config.dropout
        dual = len(config.views) == 2
        self.items = ItemViews(config, rows, semantic_dimension)
        self.masked = config.backbone == "bert4rec"
        self.position = nn.Embedding(max_length + self.masked, hidden)
        nn.init.normal_(self.position.weight, std=0.02)
        self.drop = nn.Dropout(dropout)

        def cross() -> CrossAttention:
            return CrossAttention(hidden, heads, dropout, config.cross_attention == "replace")

        def block() -> nn.Module:
            return RecurrentBlock(hidden, dropout) if config.backbone == "gru4rec" else Block(hidden, heads, dropout)

        self.fuse_embedding = cross() if dual and config.fuse_embedding else None
        self.blocks = nn.ModuleList(block() for _ in range(config.layers))
        between = config.layers - 1 if dual and config.fuse_sequence else 0
        self.fuse_sequence = nn.ModuleList(cross() for _ in range(between))
        self.norm = nn.LayerNorm(hidden)
        pair = dual and config.fuse_prediction
        self.fuse_user = PairFusion(hidden, heads) if pair else None
        self.fuse_candidate = PairFusion(hidden, heads) if pair else None
        # Chosen on validation after training (training it was measured to bring nothing).
        self.register_buffer("gamma", torch.zeros(()))
        self.register_buffer("cold_gamma", torch.zeros(()))
        if config.content_match:
            self.register_buffer("coldness", torch.ones(rows))
            if lexical_dimension:
                self.register_buffer("lexical", torch.zeros(rows, lexical_dimension))
        self.register_buffer("transition_gamma", torch.zeros(()))
        if config.transition_neighbours:
            shape = (rows, config.transition_neighbours)
            self.register_buffer("next_codes", torch.zeros(shape, dtype=torch.int32))
            self.register_buffer("next_weights", torch.zeros(shape))

    def initialise(
        self,
        train_counts: Tensor,
        vectors: Tensor | None,
        transitions: tuple[Tensor, Tensor] | None = None,
        lexical: Tensor | None = None,
    ) -> None:
        """Set what is frozen: training counts int64 [V], semantic vectors float [V, D] and lexical ones [V, E]
        (reserved rows are zero), and what count_transitions returns (None: no item follows another).
        """
        self.items.initialise(self.config, train_counts, vectors)
        if self.config.content_match:
            self.coldness.copy_(1 / (1 + train_counts.float() / COLD_COUNT))
            if lexical is not None:
                self.lexical.copy_(lexical)
        if transitions is not None:
            self.next_codes.copy_(transitions[0])
            self.next_weights.copy_(transitions[1])

    @property
    def matches(self) -> bool:
        """Whether the content match has a part in the scores."""
        return self.config.content_match and bool(self.gamma != 0 or self.cold_gamma != 0)

    @property
    def follows(self) -> bool:
        """Whether the transitions have a part in the scores."""
        return self.config.transition_neighbours > 0 and bool(self.transition_gamma != 0)

    def match_weight(self) -> Tensor:
        """gamma(i) of all rows, float [V]."""
        return self.gamma + self.cold_gamma * self.coldness

    def embed(self, codes: Tensor, packing: Packing | None = None) -> list[Tensor]:
        """codes int64 [B, T], right-padded -> views of the items with positions, each [B, T, d] or packed [M, d]."""
        real = codes != PAD if self.masked else None
        positions = self.position.weight[: codes.shape[1]]
        if packing is not None:
            positions = packing.pack(positions.expand(*codes.shape, -1))
            codes = packing.pack(codes)
        scale = math.sqrt(self.config.hidden)
        views = [self.drop(view * scale + positions) for view in self.items(codes)]
        return self.fuse_embedding(views, packing, real) if self.fuse_embedding else views

    def encode(self, views: list[Tensor], packing: Packing | None = None, real: Tensor | None = None) -> Tensor:
        """Embedded views -> states, [B, T, views * d] or packed [M, views * d].

        State t has read items 0..t; with `real` (bool [B, T], for bert4rec alone) every real item.
        """
        count = len(views)
        shared = packing and packing.repeat(count)
        everywhere = None if real is None else real.repeat(count, 1)
        for depth, block in enumerate(self.blocks):
            views = list(block(torch.cat(views), shared, everywhere).chunk(count))  # one encoder reads both views
            if depth < len(self.fuse_sequence):
                views = self.fuse_sequence[depth](views, packing, real)
        views = [self.norm(view) for view in views]
        return torch.cat(self.fuse_user(views) if self.fuse_user else views, dim=-1)

    def candidates(self, codes: Tensor) -> Tensor:
        """Codes int64 [...] as candidates, [..., views * d]: <state, candidate> is the score of the two views."""
        views = self.items(codes)
        return torch.cat(self.fuse_candidate(views) if self.fuse_candidate else views, dim=-1)

    def user_states(self, histories: Tensor) -> Tensor:
        """histories int64 [B, L] right-padded -> state after the last real item, [B, views * d]."""
        lengths = (histories != PAD).sum(1)
        if self.masked:
            histories = F.pad(histories, (0, 1)).scatter(1, lengths[:, None], MASK)
            states, last = self.encode(self.embed(histories), real=histories != PAD), lengths
        else:
            states, last = self.encode(self.embed(histories)), lengths.clamp_min(1) - 1
        # gather, not an index by rows: a traced graph would keep the number of rows it was traced with.
        return states.gather(1, last[:, None, None].expand(-1, 1, states.shape[-1])).squeeze(1)

    @torch.no_grad()
    def catalogue(self, chunk: int = 65536) -> Catalogue:
        """All rows as candidates, computed in chunks of items; call it once for a set of weights."""
        device = self.gamma.device
        parts = torch.arange(self.rows, device=device).split(chunk)
        matrix = torch.cat([self.candidates(part) for part in parts])
        return Catalogue(matrix, self._unit_vectors())

    def transition_match(self, histories: Tensor) -> Tensor:
        """histories int64 [B, L] right-padded -> log(1 + 100 * sum_t 0.8^age(t) w(h_t, i)) of all rows, float [B, V].

        Zero for what never followed an item of the history, nor for an empty one.
        """
        places = torch.arange(histories.shape[1], device=histories.device)
        age = ((histories != PAD).sum(1, keepdim=True) - 1 - places).clamp_min(0)
        weights = self.next_weights[histories] * (RECENCY**age).unsqueeze(-1)  # PAD has no followers
        # Not new_zeros, whose size a traced graph would keep.
        sums = torch.zeros_like(histories[:, :1], dtype=weights.dtype).expand(-1, self.rows)
        return sums.scatter_add(1, self.next_codes[histories].long().flatten(1), weights.flatten(1)).mul(100).log1p()

    def content_match(self, histories: Tensor, unit_vectors: Tensor, candidates: Tensor | None = None) -> Tensor:
        """max over the real items of a history of the cosine with each candidate; [B, V], or [B, C] for codes [B, C].

        Raw vectors, not the d-dimensional views: it restores what the bottleneck drops. An empty history scores 0.
        """
        real = histories >= FIRST_ITEM
        if candidates is None:
            return self._match_catalogue(histories[real], real.sum(1).tolist(), unit_vectors)
        match = unit_vectors[histories] @ unit_vectors[candidates].transpose(1, 2)  # [B, L, C]
        return match.masked_fill(~real.unsqueeze(-1), -1.0).amax(1) * real.any(1, keepdim=True)

    @staticmethod
    def _match_catalogue(codes: Tensor, lengths: list[int], unit_vectors: Tensor, room: int = 1 << 22) -> Tensor:
        """codes int64 [M]: the real items of all histories, one after the other; lengths: of each. Returns [B, V].

        One product for all positions reads the catalogue once (measured: 7 to 10 times faster than a product a
        position); parts of the catalogue keep the [M, part] cosines at `room` numbers.
        """
        read = unit_vectors[codes]
        best = unit_vectors.new_zeros(len(lengths), len(unit_vectors))
        size = max(room // max(len(codes), 1), 1024)
        for start in range(0, len(unit_vectors), size):
            match = read @ unit_vectors[start : start + size].T
            for row, part in enumerate(match.split(lengths)):
                if len(part):
                    torch.amax(part, 0, out=best[row, start : start + size])
        return best

    def content_match_all(self, histories: Tensor, similarity: Tensor) -> Tensor:
        """content_match of many histories, from all cosines of items [V, V]; [B, V].

        Rows of the table are gathered instead of multiplied again for every history, and padding costs nothing.
        """
        real = histories >= FIRST_ITEM
        best = similarity[histories[:, 0]]
        for step in range(1, histories.shape[1]):
            rows = real[:, step].nonzero().squeeze(1)
            if len(rows):
                best[rows] = torch.maximum(best[rows], similarity[histories[rows, step]])
        return best * real.any(1, keepdim=True)

    def _unit_vectors(self) -> Tensor | None:
        """[V, D], or [V, D + E] with lexical vectors: what the content match takes inner products of."""
        if not (self.config.content_match and hasattr(self.items, "vectors")):
            return None
        vectors = F.normalize(self.items.vectors, dim=-1)
        if not hasattr(self, "lexical"):
            return vectors
        # Side by side under these factors, their cosine is the mean of both cosines by the share.
        share = self.config.lexical_share
        return torch.cat([math.sqrt(1 - share) * vectors, math.sqrt(share) * F.normalize(self.lexical, dim=-1)], dim=-1)
