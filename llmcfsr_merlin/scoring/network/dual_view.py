"""The dual-view network of LLM-CFSR in plain torch: Transformers4Rec trains it, Triton serves it.

It imports neither Transformers4Rec nor Merlin, so that a server needs only torch; training/t4rec.py wraps the same
modules as Transformers4Rec blocks, and both share every weight.
"""

import math
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcfsr_merlin.config.scorer_settings import NetworkSettings
from llmcfsr_merlin.dataset.names import PAD
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.scoring.network.attention import CrossAttention, Packing, PairFusion
from llmcfsr_merlin.scoring.network.backbones import Backbone, block_class
from llmcfsr_merlin.scoring.network.item_views import MASK, ItemViews
from llmcfsr_merlin.scoring.network.prior_items import with_prior_items
from llmcfsr_merlin.scoring.network.tail_maps import TailMaps

if TYPE_CHECKING:
    from llmcfsr_merlin.scoring.scorer import ItemVectors


class DualViewNetwork(nn.Module):
    """Encoded histories to next-item scores.

    Both views of every item of the history are read by one shared causal encoder, with cross-attention between the
    views before it (embedding level), between its blocks (sequence level) and between the two user states and the two
    views of a candidate (prediction level):

        score(u, i) = <u_c, e_c(i)> + <u_s, e_s(i)>

    One view without fusion is SASRec (arXiv 1808.09781), BERT4Rec (arXiv 1904.06690: the state is read at a mask after
    the history), GRU4Rec or BSARec (arXiv 2312.10325: the history ends at the end of a fixed length), by the backbone.
    """

    def __init__(self, config: NetworkSettings, n_items: int, max_length: int, vectors: "ItemVectors"):
        """n_items: V, reserved rows included. vectors: holds `semantic`, the frozen vectors float [V, D], or None."""
        super().__init__()
        self.config, self.n_items, self.max_length = config, n_items, max_length
        hidden, heads, dropout = config.hidden, config.heads, config.dropout
        dual = len(config.views) == 2
        self.items = ItemViews(config, n_items, vectors)
        backbone = block_class(config.backbone)
        self.masked, self.left_padded, self.post_norm = backbone.MASKED, backbone.LEFT_PADDED, backbone.POST_NORM
        self.window = backbone.WINDOW
        if self.left_padded and dual:
            raise InputError(f"backbone {config.backbone} reads padding: expected one view, found two")
        self.position: nn.Embedding | None = None
        self.norm: nn.Module | None = None
        if not backbone.PLAIN:
            self.position = nn.Embedding(max_length + self.masked, hidden)
            nn.init.normal_(self.position.weight, std=0.02)
        self.drop = nn.Dropout(dropout)

        def cross() -> CrossAttention:
            return CrossAttention(hidden, heads, dropout, config.cross_attention == "replace")

        self.fuse_embedding = cross() if dual and config.fuse_embedding else None
        self.blocks = nn.ModuleList(backbone(hidden, heads, dropout) for _ in range(config.layers))
        between = config.layers - 1 if dual and config.fuse_sequence else 0
        self.fuse_sequence = nn.ModuleList(cross() for _ in range(between))
        if not backbone.PLAIN:
            self.norm = backbone.outer_norm(hidden)
        pair = dual and config.fuse_prediction
        self.fuse_user = PairFusion(hidden, heads) if pair else None
        self.fuse_candidate = PairFusion(hidden, heads) if pair else None
        self.tail_maps = TailMaps(hidden) if config.tail_maps else None
        # Candidates of their own, [V, d + 1]: the last column is a bias, for which a state ends with 1.
        self.output = nn.Embedding(n_items, hidden + 1) if backbone.OWN_OUTPUT else None
        if self.output is not None:
            nn.init.normal_(self.output.weight, std=1 / hidden)
            if self.items.collaborative is not None:
                nn.init.normal_(self.items.collaborative.weight, std=2 / hidden)
            self.output.weight.data[:, hidden:] = 0
        if self.post_norm:
            self.apply(_start_as_bert)
        if config.initialisation == "xavier":
            for weight in self.parameters():
                if weight.dim() > 1:
                    nn.init.xavier_normal_(weight)
        if config.freeze_items:
            self.items.requires_grad_(False)
        alone = config.model_copy(update={"prior_items": 0})
        self.backwards = DualViewNetwork(alone, n_items, max_length, vectors) if config.prior_items else None
        if self.backwards is not None:
            self.backwards.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def width(self) -> int:
        """Width of a state: views * d, and one more for a bias."""
        return len(self.config.views) * self.config.hidden + (self.output is not None)

    def initialise(self, train_counts: Tensor) -> None:
        """Initialise what depends on the training counts int64 [V] and the frozen vectors."""
        self.items.initialise(self.config, train_counts)
        if self.backwards is not None:
            self.backwards.initialise(train_counts)

    @torch.no_grad()
    def start_from(self, other: "DualViewNetwork") -> None:
        """Take the weights of a trained network of the same items, after `initialise`.

        Its rows of zeros are items that it was not trained on (NetworkScorer.append_items): they keep what they were
        initialised with. The confidence in an item follows the counts, the rest of the buffers the weights.
        """
        ours, state = self.state_dict(), {**other.state_dict()}
        state.pop("items.confidence", None)
        for table in {"items.collaborative.weight", "output.weight"} & state.keys() & ours.keys():
            if not self.config.freeze_items:  # a frozen row stays what it was initialised with, which is worth less
                state[table] = torch.where(state[table].any(1, keepdim=True), state[table], ours[table])
        missing, unexpected = self.load_state_dict(state, strict=False)
        if unexpected or set(missing) - {"items.confidence"}:
            raise ValueError(f"expected a network of the same settings, {(missing, unexpected)} differ")

    def embed(self, items: Tensor, packing: Packing | None = None) -> list[Tensor]:
        """items int64 [B, T], right-padded -> views of the items with positions, each [B, T, d] or packed [M, d].

        For a left-padded backbone: as `left_padded` gives them.
        """
        if self.norm is None:
            return self.items(items)
        real = items != PAD if self.masked else None
        positions = self._positions(items, packing)
        if packing is not None:
            items = packing.pack(items)
        if self.post_norm:
            views = [self.drop(self.norm(view + positions)) for view in self.items(items)]
        else:
            scale = math.sqrt(self.config.hidden)
            views = [self.drop(view * scale + positions) for view in self.items(items)]
        return self.fuse_embedding(views, packing, real) if self.fuse_embedding else views

    def _positions(self, items: Tensor, packing: Packing | None) -> Tensor:
        """Position embeddings of items int64 [B, T]: [T, d], [B, T, d] or packed [M, d]."""
        assert self.position is not None
        if self.config.positions == "from_end" and not self.left_padded:
            last = self.position.num_embeddings - 1
            ahead = last + 1 - (items != PAD).sum(1, keepdim=True)
            places = (ahead + torch.arange(items.shape[1], device=items.device)).clamp_max(last)
            return self.position(places if packing is None else packing.pack(places))
        positions = self.position.weight[: items.shape[1]]
        return positions if packing is None else packing.of_columns(positions)

    def encode(self, views: list[Tensor], packing: Packing | None = None, real: Tensor | None = None) -> Tensor:
        """Embedded views -> states, [B, T, views * d] or packed [M, views * d].

        State t has read items 0..t; with `real` (bool [B, T], bert4rec only) every real item.
        """
        views = self._before_last(views, packing, real)
        everywhere = None if real is None else real.repeat(len(views), 1)
        last = self.blocks[-1](torch.cat(views), packing and packing.repeat(len(views)), everywhere)
        return self._joined(list(last.chunk(len(views))))

    def encode_at(self, views: list[Tensor], places: Tensor, real: Tensor | None = None) -> Tensor:
        """The states of `encode` at one place int64 [B] of each row, [B, views * d]: no other leaves the last block."""
        views = self._before_last(views, None, real)
        everywhere = None if real is None else real.repeat(len(views), 1)
        last = cast(Backbone, self.blocks[-1]).at(torch.cat(views), places.repeat(len(views)), everywhere)
        return self._joined(list(last.chunk(len(views))))

    def _before_last(self, views: list[Tensor], packing: Packing | None, real: Tensor | None) -> list[Tensor]:
        """What the last block reads: one encoder reads both views."""
        shared = packing and packing.repeat(len(views))
        everywhere = None if real is None else real.repeat(len(views), 1)
        for depth, block in enumerate(self.blocks[:-1]):
            views = list(block(torch.cat(views), shared, everywhere).chunk(len(views)))
            if depth < len(self.fuse_sequence):
                views = self.fuse_sequence[depth](views, packing, real)
        return views

    def _joined(self, views: list[Tensor]) -> Tensor:
        if self.norm is not None and not self.post_norm:
            views = [self.norm(view) for view in views]
        return torch.cat(self.fuse_user(views) if self.fuse_user else views, dim=-1)

    def candidates(self, items: Tensor) -> Tensor:
        """Encoded ids int64 [...] as candidates, [..., views * d]: <state, candidate> is the score of the two views."""
        if self.output is not None:
            return self.output(items)
        views = self.items(items)
        return torch.cat(self.fuse_candidate(views) if self.fuse_candidate else views, dim=-1)

    def user_states(self, histories: Tensor) -> Tensor:
        """histories int64 [B, L] right-padded -> state after the last real item, [B, views * d]."""
        states = self._states(histories)
        return self.tail_maps(states, (histories != PAD).sum(1)) if self.tail_maps else states

    def _states(self, histories: Tensor) -> Tensor:
        if self.backwards is not None:
            histories = with_prior_items(self.backwards, histories, self.config.prior_items, self.config.prior_length)
        lengths = (histories != PAD).sum(1)
        if self.left_padded:
            histories = left_padded(histories, self.max_length)
            return self._last_states(histories)
        if self.masked:
            histories = F.pad(histories, (0, 1)).scatter(1, lengths[:, None], MASK)
            return self.encode_at(self.embed(histories), lengths, histories != PAD)
        if _mostly_padding(histories, lengths):
            return self._packed_states(histories)
        return self.encode_at(self.embed(histories), lengths.clamp_min(1) - 1)

    def _packed_states(self, histories: Tensor) -> Tensor:
        return self.states_of(histories, Packing(packed_places(histories)))

    def states_of(self, histories: Tensor, packing: Packing) -> Tensor:
        """The states of `encode` at the last place of each row, [B, views * d]: no other leaves the last block."""
        views = self._before_last(self.embed(histories, packing), packing, None)
        last = cast(Backbone, self.blocks[-1]).ends(torch.cat(views), packing.repeat(len(views)))
        return self._joined(list(last.chunk(len(views))))

    def _last_states(self, histories: Tensor) -> Tensor:
        """States of left-padded histories int64 [B, max_length], [B, d]."""
        (view,), real = self.embed(histories), histories != PAD
        *before, last = self.blocks
        for block in before:
            view = block(view, real=real)
        assert isinstance(last, Backbone)
        state = last.last(view, real)
        if self.norm is not None and not self.post_norm:
            state = self.norm(state)
        return state if self.output is None else F.pad(state, (0, 1), value=1.0)

    def packed_user_states(self, histories: Tensor) -> Tensor:
        """The same before `tail_maps`, for training: without computing padding if the backbone allows."""
        if self.masked or self.left_padded or self.backwards is not None:
            return self._states(histories)
        return self._packed_states(histories)

    @torch.no_grad()
    def catalogue(self, span: slice | None = None, chunk: int = 65536) -> Tensor:
        """All items, or those of a span, as candidates [V, views * d], in chunks of items; call it once per set of
        weights."""
        parts = torch.arange(self.n_items, device=self.device)[span or slice(None)].split(chunk)
        return torch.cat([self.candidates(part) for part in parts])


def packed_places(histories: Tensor) -> Tensor:
    """Bool [B, L], what a packing keeps of histories: an empty one has the state of its first padding."""
    return (histories != PAD) | (torch.arange(histories.shape[1], device=histories.device) == 0)


def _mostly_padding(histories: Tensor, lengths: Tensor) -> bool:
    """Whether the states are computed faster without it: measured on the CPU, four times where a seventh is items. A
    graph has no shapes that depend on the data, and a GPU would wait for their number."""
    if histories.device.type != "cpu" or torch.jit.is_tracing():
        return False
    return 2 * int(lengths.sum()) < histories.numel()


def left_padded(histories: Tensor, length: int) -> Tensor:
    """histories int64 [B, L], right-padded, L at most `length` -> [B, length], padding before the items."""
    place = torch.arange(length, device=histories.device) - length + (histories != PAD).sum(1, keepdim=True)
    histories = F.pad(histories, (0, 1))  # also for empty histories
    return histories.gather(1, place.clamp_min(0)).masked_fill(place < 0, PAD)


def _start_as_bert(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
