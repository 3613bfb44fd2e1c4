"""The training objective: next-item (or masked-item) prediction and the auxiliary losses."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.dataset.names import PAD
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.scoring.network.attention import Packing
from llmcfsr_merlin.scoring.network.backbones import Block
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.scoring.network.item_views import MASK
from llmcfsr_merlin.training.distillation import Distillation
from llmcfsr_merlin.training.losses import loss_function
from llmcfsr_merlin.training.losses.alignment import alignment
from llmcfsr_merlin.training.losses.contrast import contrast
from llmcfsr_merlin.training.losses.mutual_distillation import MutualDistillation
from llmcfsr_merlin.training.masking import hide
from llmcfsr_merlin.training.tail_training import TailTraining
from llmcfsr_merlin.training.validation import split_last, split_latest

# Losses with the same tensor shapes in every batch, so that a step can be captured as a CUDA graph.
_FIXED_SHAPES = ("uniform_softmax", "sampled_softmax", "bce", "full_softmax")
_ROOM = 1 << 30  # scores that a captured step may hold


class Auxiliary(NamedTuple):
    """Inputs of the auxiliary losses. item_table: float [V, d] of a trained model, to align to. mutual: replaces the
    loss of the items; its weights are trained too."""

    item_table: Tensor | None = None
    distillation: Distillation | None = None
    tail: TailTraining | None = None
    mutual: MutualDistillation | None = None


_NOTHING = Auxiliary()


class Predicted(NamedTuple):
    """Positions with a target. states: float [M, views * d]; targets: int64 [M]; last: int64 [B], the row of `states`
    where each history ends, None for masked items."""

    states: Tensor
    targets: Tensor
    last: Tensor | None = None


class Objective:
    """The training loss of a batch, a scalar.

    On a GPU a step of this network is about 500 kernels of a few microseconds, and launching them takes longer than
    running them (docs/gpu.md). So if shapes allow, a step is captured as a CUDA graph, one per number of positions in
    steps of an eighth, and replayed. Otherwise, and on the CPU, only the real positions are computed.
    """

    def __init__(self, network: DualViewNetwork, settings: TrainConfig, auxiliary: Auxiliary = _NOTHING):
        self.network, self.settings, self.auxiliary = network, settings, auxiliary
        self._loss = loss_function(settings.loss)
        if network.left_padded and settings.samples != "prefixes":
            raise InputError(
                f"backbone {network.config.backbone} has one state per history: set train.samples=prefixes, found "
                f"{settings.samples}"
            )
        if network.masked and settings.samples == "prefixes":
            raise InputError("train.samples=prefixes needs a causal backbone, found a masked one")
        if settings.targets > 1 and not network.left_padded:
            raise InputError(
                f"train.targets={settings.targets} needs a backbone with a state for an empty history: set it to 1"
            )
        beside = [name for name in ("align", "distil", "contrast") if getattr(settings, name)]
        if settings.copies and beside:
            raise InputError(f"train.copies has losses of its own: set train.{beside[0]}=0")
        self._recorded: dict[tuple[int, int], Callable[..., Tensor]] = {}

    def __call__(self, items: Tensor, users: Tensor | None = None, positions: int | None = None) -> Tensor:
        """items: int64 [B, T + 1], right-padded; the last real item of a row is a target only. users: int64 [B], the
        rows' numbers, for self-distillation. positions: how many have a target (of masked items: may have one), if
        the host knows; a GPU need not be asked then.
        """
        if items.is_cuda and positions and self._can_record(positions):
            return self._replayed(items, positions)
        loss = (
            self._of_items(items, users)
            if self.auxiliary.mutual is None
            else self.auxiliary.mutual(self.network, items)
        )
        if self.settings.l2:
            weights = (weight for weight in self.network.parameters() if weight.requires_grad)
            loss = loss + self.settings.l2 / 2 * sum(weight.square().sum() for weight in weights)
        if self.auxiliary.tail is not None:
            loss = loss + self.auxiliary.tail(self.network)
        return loss

    def _of_items(self, items: Tensor, users: Tensor | None) -> Tensor:
        network, found = self.network, self.predicted(items)
        loss = self._loss(network, found.states, found.targets, self.settings).mean()
        if self.settings.align:
            table, temperature = self.auxiliary.item_table, self.settings.align_temperature
            loss = loss + self.settings.align * alignment(network, found.targets, table, temperature)
        if self.auxiliary.distillation is not None:
            if found.last is None or users is None:
                raise InputError("train.distil needs a causal backbone: masked training has no user state")
            loss = loss + self.settings.distil * self.auxiliary.distillation(users, found.states[found.last])
        if self.settings.contrast:
            loss = loss + self.settings.contrast * contrast(network, split_last(items)[0])
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
        if self.settings.samples == "prefixes":
            histories, targets = split_latest(items, self.settings.targets)
            states, real = network.packed_user_states(histories), targets != PAD
            if self.settings.targets == 1:
                return Predicted(states, targets.squeeze(1), torch.arange(len(targets), device=targets.device))
            return Predicted(states[real.nonzero()[:, 0]], targets[real], real.sum(1).cumsum(0) - 1)
        targets = items[:, 1:]
        packing = Packing(targets != PAD)  # every position that has a next item
        states = network.encode(network.embed(items[:, :-1], packing), packing)
        return Predicted(states, packing.pack(targets), packing.lengths.cumsum(0) - 1)

    def _can_record(self, positions: int) -> bool:
        per_position = self.network.n_items if self.settings.loss == "full_softmax" else self.settings.negatives
        return (
            self.settings.loss in _FIXED_SHAPES
            and positions * per_position <= _ROOM
            and not self.settings.align
            and not self.settings.contrast
            and not self.settings.l2
            and self.auxiliary.distillation is None
            and self.auxiliary.tail is None
            and self.auxiliary.mutual is None
            and all(isinstance(block, Block) for block in self.network.blocks)
        )

    def _replayed(self, items: Tensor, positions: int) -> Tensor:
        items = F.pad(items, (0, self.network.max_length + 1 - items.shape[1]))
        unit = max(1 << (positions.bit_length() - 4), 1)  # an eighth of the power of two below
        capacity = min(-(-positions // unit) * unit, items.numel())
        key = len(items), capacity
        if key not in self._recorded:
            half = torch.is_autocast_enabled()
            step = FixedStep(self.network, self.settings, capacity)
            with torch.autocast("cuda", torch.bfloat16, enabled=half, cache_enabled=False):
                recorded: Any = torch.cuda.make_graphed_callables(step, (items.clone(),), allow_unused_input=True)
                self._recorded[key] = recorded
        return self._recorded[key](items)


class FixedStep(nn.Module):
    """The same loss with batch-independent shapes: padding fills up to `capacity` positions, and
    is excluded from the mean."""

    def __init__(self, network: DualViewNetwork, settings: TrainConfig, capacity: int):
        super().__init__()
        self.network, self.settings, self.capacity = network, settings, capacity
        self._loss = loss_function(settings.loss)

    def forward(self, items: Tensor) -> Tensor:
        """items: int64 [B, T + 1] -> the mean loss of the positions with a target, a scalar."""
        network = self.network
        if network.masked:
            hidden, real = hide(items, self.settings.mask), items != PAD
            history, targets = items.masked_fill(hidden, MASK), items
            packing = Packing(real, self.capacity)
            wanted = packing.pack(hidden)
        else:
            history, targets, real = items[:, :-1], items[:, 1:], None
            packing = Packing(targets != PAD, self.capacity)
            wanted = packing.used
        states = network.encode(network.embed(history, packing), packing, real)
        if self.settings.samples == "prefixes":  # one per row, none of them padding
            last = packing.lengths.cumsum(0) - 1
            return self._loss(network, states[last], packing.pack(targets)[last], self.settings).mean()
        losses = self._loss(network, states, packing.pack(targets), self.settings)
        return torch.where(wanted, losses, 0).sum() / wanted.sum()


def predicted_positions(network: DualViewNetwork, rows: int, items: int) -> int:
    """Positions that may have a target in a batch of so many rows and items: a row's first item has no history."""
    return items if network.masked else items - rows


def shortest_prefix(network: DualViewNetwork, settings: TrainConfig) -> int | None:
    """Items of the shortest sample; None if samples are whole sequences.

    Where a network reads padding, an empty history has a state that a first item can be predicted from. One with a
    window slides it: shorter sequences give one sample.
    """
    if settings.samples == "sequences":
        return None
    if network.window:
        return network.window + settings.targets
    return 1 if network.left_padded else 2
