"""EMKD's losses (Du et al., SIGIR 2023, arXiv 2304.14668): encoders that learn from each other too."""

from itertools import combinations, product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.dataset.names import FIRST_ITEM, PAD
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.scoring.network.attention import Packing
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.scoring.network.parallel import ParallelBlock
from llmcfsr_merlin.training.masking import corrupted, hide

_DISTIL, _CONTRAST, _TEMPERATURE = 0.001, 0.01, 0.3  # mu, lambda and tau of the published code for Amazon Beauty


class MutualDistillation(nn.Module):
    """What the losses learn beside the network: each encoder's classifier of attributes.

    attributes: of each item, int64 [V, K], 1 to A, filled up with 0; count: A, 0 without attributes.
    """

    attributes: Tensor

    def __init__(self, width: int, encoders: int, attributes: Tensor, count: int, copies: int, share: float):
        """width: of a state of all encoders. copies: masked ones of each sequence. share: of the items that are hidden
        in one."""
        super().__init__()
        self.encoders, self.copies, self.share, self.count = encoders, copies, share, count
        self.classifiers = nn.ModuleList(nn.Linear(width // encoders, count) for _ in range(encoders if count else 0))
        self.register_buffer("attributes", attributes, persistent=False)

    @classmethod
    def of(
        cls, network: DualViewNetwork, settings: TrainConfig, attributes: tuple[Tensor, int] | None = None
    ) -> "MutualDistillation":
        """The losses of a network; InputError if it has no parallel encoders."""
        block = network.blocks[0]
        if not isinstance(block, ParallelBlock):
            raise InputError(f"train.copies needs backbone emkd, found {network.config.backbone}")
        lists, count = attributes or (torch.zeros(network.n_items, 1, dtype=torch.long), 0)
        return cls(network.width, block.ENCODERS, lists, count, settings.copies, settings.mask)

    def forward(self, network: DualViewNetwork, items: Tensor) -> Tensor:
        """The loss of a batch by encoder and copy, a scalar; items: int64 [B, T], right-padded sequences.

        The published loss is their sum: to Adam a factor is all one, to the clipping of gradients it is not.
        """
        real = items != PAD
        packing = Packing(real)
        known = packing.pack(items)
        catalogue = torch.arange(FIRST_ITEM, network.n_items, device=items.device)
        tables = network.candidates(catalogue).chunk(self.encoders, dim=1)
        anchors, copies = self._states(network, items, packing), []
        losses = []
        for _ in range(self.copies):
            hidden = hide(items, self.share)
            states = self._states(network, corrupted(items, hidden, network.n_items), packing)
            at = packing.pack(hidden)
            scores = [part[at] @ table.T for part, table in zip(states, tables)]
            losses += [F.cross_entropy(part, known[at] - FIRST_ITEM) for part in scores]
            losses += [_DISTIL * divergence(a, b) for a, b in combinations(scores, 2)]
            copies.append(states)
        if self.classifiers:  # at the places of the last copy, as read without a mask
            losses += [self._attributes(number, part[at], known[at]) for number, part in enumerate(anchors)]
        rows = [packing.unpack(part).flatten(1) for part in anchors]
        others = [torch.stack([packing.unpack(part).flatten(1) for part in of]) for of in zip(*copies)]
        pairs = product(range(self.encoders), repeat=2)
        losses += [_CONTRAST * contrast_of_copies(rows[one], rows[other], others[other]) for one, other in pairs]
        return torch.stack(losses).sum() / (self.copies * self.encoders)

    def _states(self, network: DualViewNetwork, items: Tensor, packing: Packing) -> tuple[Tensor, ...]:
        """States of each encoder, float [M, d]."""
        states = network.encode(network.embed(items, packing), packing, items != PAD)
        return states.chunk(self.encoders, dim=1)

    def _attributes(self, number: int, states: Tensor, items: Tensor) -> Tensor:
        """Mean binary cross-entropy of every attribute of the items int64 [M] at the states float [M, d]."""
        wanted = states.new_zeros(len(items), self.count + 1).scatter_(1, self.attributes[items], 1.0)[:, 1:]
        return F.binary_cross_entropy_with_logits(self.classifiers[number](states), wanted)


def divergence(a: Tensor, b: Tensor) -> Tensor:
    """Scores float [M, V] of two encoders -> the mean of both Kullback-Leibler divergences, each from a fixed other."""
    a, b = (F.log_softmax(scores / _TEMPERATURE, dim=1) for scores in (a, b))
    both = [F.kl_div(one, other.detach(), reduction="batchmean", log_target=True) for one, other in ((a, b), (b, a))]
    return torch.stack(both).mean()


def contrast_of_copies(rows: Tensor, others: Tensor, copies: Tensor) -> Tensor:
    """Sequences float [B, D] as one encoder reads them, as another one does (or itself), and as that one reads their
    masked copies [C, B, D]: each is nearer to its own copies than to other sequences, by cosine.

    As in the published code, a sequence itself counts as one at cosine 0 among the others.
    """
    rows, others, copies = (F.normalize(states, dim=-1) for states in (rows, others, copies))
    own = (rows * copies).sum(-1) / _TEMPERATURE
    apart = (rows @ others.T / _TEMPERATURE).fill_diagonal_(0.0)
    return (apart.logsumexp(1) - own.logsumexp(0)).mean()
