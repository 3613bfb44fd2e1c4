"""What a batch of histories costs the network: next-item (or masked-item) prediction and the losses beside it."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcfsr_merlin.config.schema import TrainConfig
from llmcfsr_merlin.dataset.names import PAD
from llmcfsr_merlin.scoring.network.attention import Packing
from llmcfsr_merlin.scoring.network.backbones import Block
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.scoring.network.item_views import MASK
from llmcfsr_merlin.training.distillation import Distillation
from llmcfsr_merlin.training.losses import loss_function
from llmcfsr_merlin.training.losses.alignment import alignment

# Losses whose tensors have the same shapes in every batch, so that a step can be recorded as a CUDA graph.
_FIXED_SHAPES = ("uniform_softmax", "bce", "full_softmax")
_ROOM = 1 << 30  # scores that a recorded step may hold


class Auxiliary(NamedTuple):
    """What the losses beside next-item prediction need. item_table: float [V, d] of a trained model, to align to."""

    item_table: Tensor | None = None
    distillation: Distillation | None = None


_NOTHING = Auxiliary()


class Predicted(NamedTuple):
    """Positions with a target. states: float [M, views * d]; targets: int64 [M]; last: int64 [B], the row of `states`
    where each history ends, None for masked items."""

    states: Tensor
    targets: Tensor
    last: Tensor | None = None


class Objective:
    """The training loss of a batch, a scalar.

    On a GPU a step of this network is some 300 kernels of a few microseconds, and starting them takes longer than they
    do (docs/gpu.md). So the padded step is recorded once as a CUDA graph and
    replayed, wherever its shapes allow; elsewhere, and on the CPU, padding is left out of the work.
    """

    def __init__(self, network: DualViewNetwork, settings: TrainConfig, auxiliary: Auxiliary = _NOTHING):
        self.network, self.settings, self.auxiliary = network, settings, auxiliary
        self._loss = loss_function(settings.loss)
        self._recorded: nn.Module | None = None
        self._shape: torch.Size | None = None

    def __call__(self, items: Tensor, users: Tensor | None = None) -> Tensor:
        """items: int64 [B, T + 1], right-padded; the last real item of a row is a target only. users: int64 [B], the
        rows' numbers, for self-distillation."""
        if items.is_cuda and self._can_record(items):
            whole = F.pad(items, (0, self.network.max_length + 1 - items.shape[1]))  # every batch has one shape
            if self._recorded is None:
                self._record(whole)
            if whole.shape == self._shape:
                return self._recorded(whole)
        found = self.predicted(items)
        loss = self._loss(self.network, found.states, found.targets, self.settings).mean()
        if self.settings.align:
            table, temperature = self.auxiliary.item_table, self.settings.align_temperature
            loss = loss + self.settings.align * alignment(self.network, found.targets, table, temperature)
        if self.auxiliary.distillation is not None:
            loss = loss + self.settings.distil * self.auxiliary.distillation(users, found.states[found.last])
        return loss

    def predicted(self, items: Tensor) -> Predicted:
        """States and targets of the positions that are predicted, without padding."""
        network = self.network
        if network.masked:
            hidden = hide(items, self.settings.mask)
            real = items != PAD
            packing = Packing(real)
            states = network.encode(network.embed(items.masked_fill(hidden, MASK), packing), packing, real)
            hidden = packing.pack(hidden)
            return Predicted(states[hidden], packing.pack(items)[hidden])
        targets = items[:, 1:]
        packing = Packing(targets != PAD)  # every position that has a next item
        states = network.encode(network.embed(items[:, :-1], packing), packing)
        return Predicted(states, packing.pack(targets), packing.lengths.cumsum(0) - 1)

    def _can_record(self, items: Tensor) -> bool:
        scores = items.numel() * (self.network.n_items if self.settings.loss == "full_softmax" else 1)
        return (
            self.settings.loss in _FIXED_SHAPES
            and scores <= _ROOM
            and not self.settings.align
            and self.auxiliary.distillation is None
            and all(isinstance(block, Block) for block in self.network.blocks)
        )

    def _record(self, items: Tensor) -> None:
        half = torch.is_autocast_enabled()
        step = PaddedStep(self.network, self.settings)
        with torch.autocast("cuda", torch.bfloat16, enabled=half, cache_enabled=False):
            self._recorded = torch.cuda.make_graphed_callables(step, (items.clone(),), allow_unused_input=True)
        self._shape = items.shape


class PaddedStep(nn.Module):
    """The same loss by tensors of fixed shapes: padding is computed as everything else, and left out of the mean."""

    def __init__(self, network: DualViewNetwork, settings: TrainConfig):
        super().__init__()
        self.network, self.settings = network, settings
        self._loss = loss_function(settings.loss)

    def forward(self, items: Tensor) -> Tensor:
        """items: int64 [B, T + 1] -> the mean loss of the positions with a target, a scalar."""
        network = self.network
        if network.masked:
            wanted = hide(items, self.settings.mask)
            history, targets, real = items.masked_fill(wanted, MASK), items, items != PAD
        else:
            history, targets, real = items[:, :-1], items[:, 1:], None
            wanted = targets != PAD
        states = network.encode(network.embed(history), real=real)
        losses = self._loss(network, states.flatten(0, 1), targets.flatten(), self.settings)
        wanted = wanted.flatten()
        return torch.where(wanted, losses, 0).sum() / wanted.sum()


def hide(items: Tensor, share: float) -> Tensor:
    """BERT4Rec's training: which items, bool [B, T], are hidden and predicted; at least one a row, never all of two."""
    real = items != PAD
    draw = torch.rand(items.shape, device=items.device).masked_fill(~real, 2.0)
    rank = draw.argsort(1).argsort(1)  # a random order of a row's items, padding behind
    lengths = real.sum(1, keepdim=True)
    hidden = real & ((draw < share) | (rank == 0))
    return hidden & ~((hidden.sum(1, keepdim=True) == lengths) & (lengths > 1) & (rank == lengths - 1))
