"""MELT's training (Kim et al., SIGIR 2023, arXiv 2304.08382): long histories and frequent items teach the tail.

Its two maps are in scoring/network/tail_maps.py. A map of users learns what a long history adds to its latest items; a
map of items learns a frequent item's row from a few of its contexts. The rows of rare items are set to what the latter
infers at the start of every epoch.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmcfsr_merlin.config.train_settings import TrainConfig
from llmcfsr_merlin.dataset.names import FIRST_ITEM, PAD
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork
from llmcfsr_merlin.scoring.network.tail_maps import TailMaps
from llmcfsr_merlin.training.rows import rows_of

_USERS, _ITEMS = 0.8, 0.78  # quantiles of the lengths and counts up to which a user and an item are of the tail
_ROOM = 50  # interactions beyond the threshold of items over which the weight of an item turns
_CHUNK = 4096  # contexts that are encoded at a time


class Parts(NamedTuple):
    """Pieces of the training sequences, read from `first` in steps of +1 or -1: int64 [N] each."""

    first: Tensor
    length: Tensor
    step: Tensor

    def of(self, chosen: Tensor) -> "Parts":
        return Parts(*(tensor[chosen] for tensor in self))


class TailTraining:
    """The two losses, and the rows of rare items. `start_epoch` is called before the first one."""

    def __init__(self, files: Sequence[str], counts: np.ndarray, settings: TrainConfig, max_length: int):
        """files: Parquet of the training rows. counts: training interactions, int64 [V]."""
        values, lengths = rows_of(files)
        self._values, self._settings, self._max_length = values, settings, max_length
        ends, kept = lengths.cumsum(0), lengths.clamp_max(max_length)
        self._histories = Parts(ends - kept, kept, torch.ones_like(kept))
        self.short = int(np.quantile(lengths.numpy(), _USERS))
        self._contexts, self._starts = _contexts(values, lengths, len(counts), max_length)
        self._counts = torch.from_numpy(counts).long()
        known = self._starts.diff() > 0
        known[:FIRST_ITEM] = False
        self.rare_up_to = int(np.quantile(counts[counts > 0], _ITEMS))
        frequent = self._counts > self.rare_up_to
        self.long_users = (lengths > self.short).nonzero().squeeze(1)
        self.frequent = (known & frequent).nonzero().squeeze(1)
        self.rare = (known & ~frequent).nonzero().squeeze(1)
        self._epoch = 0
        self._random = torch.Generator()
        self._steps: Iterator[tuple[Tensor, Tensor]] = iter(())

    def start_epoch(self, epoch: int, network: DualViewNetwork) -> None:
        """Infer the rows of the rare items, and draw which users and items each step of the epoch sees."""
        self._epoch = epoch
        self._random.manual_seed(self._settings.seed * 1_000_003 + epoch)
        maps, table = _of(network)
        maps.short.fill_(self.short)
        was = network.training
        network.eval()
        with torch.no_grad():
            means = torch.cat([self._mean_states(network, some) for some in self.rare.split(_CHUNK // 8)])
            table[self.rare.to(table.device)] = maps.items(means)
        network.train(was)
        assert self._settings.batch_size is not None, "fit_model chooses one"
        steps = -(-len(self._histories.length) // self._settings.batch_size)
        drawn = (some[torch.randperm(len(some), generator=self._random)] for some in (self.long_users, self.frequent))
        self._steps = zip(*(some.tensor_split(steps) for some in drawn))

    def __call__(self, network: DualViewNetwork) -> Tensor:
        """The two losses of the step's users and items, weighted; a scalar."""
        users, items = next(self._steps, (self.long_users[:0], self.frequent[:0]))
        loss = torch.zeros((), device=network.device)
        if len(users):
            loss = loss + self._settings.enhance_users * self.of_users(network, users)
        if len(items):
            loss = loss + self._settings.enhance_items * self.of_items(network, items)
        return loss

    def of_users(self, network: DualViewNetwork, users: Tensor) -> Tensor:
        """Weighted squared distance of the mapped state of a user's latest items to the state of the whole history."""
        maps, _ = _of(network)
        whole = self._histories.of(users)
        kept = 1 + (torch.rand(len(users), generator=self._random) * (max(self.short, 2) - 1)).long()
        latest = Parts(whole.first + whole.length - kept, kept, whole.step)
        distance = maps.users(self._states(network, latest)) - self._states(network, whole)
        beyond = whole.length - self.short - 1
        turn = math.pi / (2 * max(self._max_length - self.short - 1, 1))
        return (self._weights(beyond * turn).to(distance).unsqueeze(1) * distance**2).mean()

    def of_items(self, network: DualViewNetwork, items: Tensor) -> Tensor:
        """Weighted squared distance of the row inferred from a few of an item's contexts to the item's own."""
        maps, table = _of(network)
        available = self._starts[items + 1] - self._starts[items]
        few = 1 + (torch.rand(len(items), generator=self._random) * available.clamp_max(self.rare_up_to)).long()
        chosen = [
            self._starts[item] + torch.randperm(int(all_of), generator=self._random)[:count]
            for item, all_of, count in zip(items, available, few)
        ]
        states = self._states(network, self._contexts.of(torch.cat(chosen)))
        inferred = maps.items(_means(states + maps.users(states), few.to(states.device)))
        distance = inferred - table[items.to(table.device)]
        beyond = self._counts[items].clamp_max(self.rare_up_to + _ROOM) - self.rare_up_to - 1
        weights = self._weights(beyond * math.pi / (2 * _ROOM))
        return (weights.to(distance).unsqueeze(1) * distance**2).mean()

    def _weights(self, beyond: Tensor) -> Tensor:
        """The curriculum: |sin| of how far a user or item is beyond the tail, turned by a quarter over the epochs."""
        return (math.pi / 2 * self._epoch / self._settings.epochs + beyond).sin().abs()

    def _mean_states(self, network: DualViewNetwork, items: Tensor) -> Tensor:
        """Mean state of all contexts of each item, float [N, d]."""
        counts = self._starts[items + 1] - self._starts[items]
        chosen = torch.repeat_interleave(self._starts[items] - (counts.cumsum(0) - counts), counts)
        chosen = chosen + torch.arange(len(chosen))
        states = torch.cat([self._states(network, self._contexts.of(some)) for some in chosen.split(_CHUNK)])
        return _means(states, counts.to(states.device))

    def _states(self, network: DualViewNetwork, parts: Parts) -> Tensor:
        """States of some parts of the sequences as histories, float [N, d]."""
        place = torch.arange(int(parts.length.max()))
        real = place < parts.length.unsqueeze(1)
        places = (parts.first.unsqueeze(1) + parts.step.unsqueeze(1) * place).clamp(0, len(self._values) - 1)
        return network.packed_user_states(self._values[places].masked_fill(~real, PAD).to(network.device))


def _of(network: DualViewNetwork) -> tuple[TailMaps, Tensor]:
    assert network.tail_maps is not None and network.items.collaborative is not None, "next_item refuses it"
    return network.tail_maps, network.items.collaborative.weight


def _contexts(values: Tensor, lengths: Tensor, n_items: int, max_length: int) -> tuple[Parts, Tensor]:
    """Of each interaction what led to it and, in reverse, what followed it, both with the item itself at the end.

    Sorted by item; the second result has the place of each item's first one, int64 [V + 1].
    """
    ends = lengths.cumsum(0).repeat_interleave(lengths)
    here, starts = torch.arange(len(values)), ends - lengths.repeat_interleave(lengths)
    before = (here - starts + 1).clamp_max(max_length)
    after = (ends - here).clamp_max(max_length)
    both = ends - starts > 1  # a sequence of one item is its own reverse
    items = torch.cat([values, values[both]])
    parts = Parts(
        torch.cat([here - before + 1, (here + after - 1)[both]]),
        torch.cat([before, after[both]]),
        torch.cat([torch.ones_like(here), -torch.ones_like(here[both])]),
    )
    order = items.argsort(stable=True)
    return parts.of(order), torch.cat([torch.zeros(1).long(), items.bincount(minlength=n_items).cumsum(0)])


def _means(states: Tensor, counts: Tensor) -> Tensor:
    """The mean of each run of rows, counts int64 [N] of them: float [N, d]."""
    runs = torch.arange(len(counts), device=states.device).repeat_interleave(counts)
    return states.new_zeros(len(counts), states.shape[1]).index_add(0, runs, states) / counts.unsqueeze(1)
