"""The four pre-training losses of S3-Rec (Zhou et al., CIKM 2020, arXiv 2008.07873)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcfsr_merlin.dataset.names import FIRST_ITEM, PAD
from llmcfsr_merlin.scoring.network.attention import Packing
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.scoring.network.item_views import MASK

SHARE = 0.2  # of the items of a sequence that are masked, beside its last one
_WEIGHTS = {"attribute": 0.2, "masked_item": 1.0, "masked_attribute": 1.0, "segment": 0.5}  # the published code's


class SelfSupervision(nn.Module):
    """What the losses learn beside the network: a linear map each, and the attributes' vectors.

    attributes: of each item, int64 [V, K], 1 to A, filled up with 0; count: A, 0 without attributes.
    """

    attributes: Tensor

    def __init__(self, width: int, attributes: Tensor, count: int):
        super().__init__()
        self.maps = nn.ModuleDict({name: nn.Linear(width, width) for name in _WEIGHTS})
        self.vectors = nn.Embedding(count, width)
        self.register_buffer("attributes", attributes, persistent=False)
        for name, weight in self.named_parameters():
            nn.init.normal_(weight, std=0.0 if name.endswith("bias") else 0.02)

    def forward(self, network: DualViewNetwork, items: Tensor, stream: Tensor) -> Tensor:
        """The weighted sum of the four losses of a batch, a scalar, each summed over its positions.

        items: int64 [B, T], right-padded sequences; stream: int64 [N], what negative segments are cut from.
        """
        real = items != PAD
        hidden, own = masked(real), Packing(real)
        at, known = own.pack(hidden), own.pack(items)
        # One pass reads the four forms of each sequence: on a GPU the kernels of four would be launched one by one.
        states, last = read(network, torch.cat([items.masked_fill(hidden, MASK), *segments(items, stream)]))
        states = states[: len(known)]
        found = {
            "masked_item": self._masked_items(network, states[at], known[at]),
            "segment": self._segments(*last.chunk(4)[1:]),
        }
        if len(self.vectors.weight):
            found["attribute"] = self._attributes("attribute", states[~at], known[~at])
            found["masked_attribute"] = self._attributes("masked_attribute", states[at], known[at])
        return torch.stack([_WEIGHTS[name] * loss for name, loss in found.items()]).sum()

    def _attributes(self, name: str, states: Tensor, items: Tensor) -> Tensor:
        """Binary cross-entropy of every attribute of the items int64 [M] at the states float [M, d]."""
        scores = self.maps[name](states) @ self.vectors.weight.T
        wanted = scores.new_zeros(len(items), scores.shape[1] + 1).scatter_(1, self.attributes[items], 1.0)[:, 1:]
        return F.binary_cross_entropy_with_logits(scores, wanted, reduction="sum")

    def _masked_items(self, network: DualViewNetwork, states: Tensor, items: Tensor) -> Tensor:
        negatives = torch.randint(FIRST_ITEM, network.n_items, items.shape, device=items.device)
        views = network.candidates(torch.stack([items, negatives]))
        return _apart(*(self.maps["masked_item"](states) * views).sum(-1))

    def _segments(self, context: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        context = self.maps["segment"](context)
        return _apart((context * positive).sum(-1), (context * negative).sum(-1))


def _apart(positive: Tensor, negative: Tensor) -> Tensor:
    """-log sigma(sigma(positive) - sigma(negative)), summed: the published code has both sigmas."""
    return F.softplus(negative.sigmoid() - positive.sigmoid()).sum()


def read(network: DualViewNetwork, items: Tensor) -> tuple[Tensor, Tensor]:
    """States of the real positions of items int64 [B, T], each of which has read its whole row, float [M, d]; and those
    of the rows' last items, float [B, d]."""
    real = items != PAD
    packing = Packing(real)
    states = network.encode(network.embed(items, packing), packing, real)
    return states, states[packing.lengths.cumsum(0) - 1]


def masked(real: Tensor) -> Tensor:
    """Which items are masked, bool [B, T]: each with chance SHARE, and the last one always."""
    last = real.sum(1, keepdim=True) - 1 == torch.arange(real.shape[1], device=real.device)
    return real & (last | (torch.rand(real.shape, device=real.device) < SHARE))


def segments(items: Tensor, stream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences int64 [B, T] without a segment, the segment alone, and as many items from anywhere in its place; a mask
    stands where the rest was.

    A segment has from one item to half of a sequence's; a sequence of one item has none, so that the second and third
    are alike.
    """
    real = items != PAD
    lengths = real.sum(1, keepdim=True)
    size = _draw(lengths // 2) * (lengths > 1)
    start = _draw(lengths - size + 1) - 1
    place = torch.arange(items.shape[1], device=items.device)
    within = (place >= start) & (place < start + size)
    begin = _draw((len(stream) - size + 1).clamp_min(1)) - 1
    other = stream[(begin + place - start).clamp(0, len(stream) - 1)]
    alone = [torch.where(within, part, MASK).masked_fill(~real, PAD) for part in (items, other)]
    return items.masked_fill(within, MASK), alone[0], alone[1]


def _draw(most: Tensor) -> Tensor:
    """Uniform from 1 to most, int64 [B, 1]; 1 where most is 0."""
    drawn = (torch.rand(most.shape, device=most.device) * most).long() + 1
    return drawn.minimum(most.clamp_min(1))
