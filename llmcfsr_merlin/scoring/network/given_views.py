"""User states as a module without a catalogue, for runtimes that compile it: the views of the items are inputs."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcfsr_merlin.dataset.names import FIRST_ITEM, PAD
from llmcfsr_merlin.scoring.compiled import Compiler, Function
from llmcfsr_merlin.scoring.network.attention import Attention, Kernel, Packing
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork, packed_places
from llmcfsr_merlin.scoring.network.item_views import ItemViews

_KEPT = 1 << 25  # numbers of the views of all items that are kept: 128 MB. Of more, each call makes those it reads
_SHORTEST = 8  # histories up to this length run together; so do those up to 8, 16, ... items


class StatesOfGivenViews(nn.Module):
    """DualViewNetwork.user_states of histories int64 [B, L] that index the rows of the given views, float [N, d] each.

    The first FIRST_ITEM rows are those of the reserved ids. The module holds no tensor of the catalogue's size: it does
    not change when items are added.
    """

    def __init__(self, network: DualViewNetwork, kernel: Kernel | None = None):
        """kernel: the runtime's own causal attention."""
        super().__init__()
        self.network = DualViewNetwork(network.config, FIRST_ITEM, network.max_length, network.items.vectors)
        per_item = ("items.", "output.")
        own = {name: weight for name, weight in network.state_dict().items() if not name.startswith(per_item)}
        self.network.load_state_dict(own, strict=False)
        self.views = _GivenViews()
        self.network.add_module("items", self.views)
        for part in self.modules():
            if isinstance(part, Attention):
                part.kernel = kernel
        self.eval()

    def forward(self, histories: Tensor, *views: Tensor) -> Tensor:
        self.views.given = views
        network = self.network
        # These read what a packing leaves out: a mask after the history, padding, or its length.
        if network.masked or network.left_padded or network.tail_maps is not None:
            return network.user_states(histories)
        return network.states_of(histories, _GraphPacking(packed_places(histories)))


class _GraphPacking(Packing):
    """A packing that attention reads as one group, of few operators, none of which hard-codes a size."""

    def __init__(self, real: Tensor):
        super().__init__(real)
        self._back = (real.flatten().long().cumsum(0) - 1).view_as(real)
        self._repeated: dict[int, _GraphPacking] = {}

    @property
    def together(self) -> bool:
        return True

    def repeat(self, copies: int) -> "_GraphPacking":
        if copies not in self._repeated:
            repeated = cast(_GraphPacking, super().repeat(copies))
            repeated._back = torch.cat([self._back + number * self.places.shape[0] for number in range(copies)])
            self._repeated[copies] = repeated
        return self._repeated[copies]

    def of_columns(self, table: Tensor) -> Tensor:
        return F.embedding(self.places % self._real.shape[1], table)

    def unpack(self, packed: Tensor) -> Tensor:
        """As of Packing, but with any values at padding: attention reads none."""
        return F.embedding(self._back, packed)


class _GivenViews(nn.Module):
    given: tuple[Tensor, ...] = ()

    def forward(self, items: Tensor) -> list[Tensor]:
        return [F.embedding(items, view) for view in self.given]


class CompiledStates:
    """`user_states` of a trained network by another runtime; histories of similar length run together.

    A batch padded to its longest history computes mostly padding: of 32 histories of Beauty, five of six positions.
    """

    def __init__(self, network: DualViewNetwork, run: Function, keep: bool):
        """keep: the views of all items."""
        self._run, self._items, self._padded = run, network.items, network.left_padded
        self._views: list[Tensor] | None = None
        with torch.no_grad():
            self._adapter = network.items.adapter()
            if keep:
                self._views = self._items(torch.arange(network.n_items), self._adapter)

    @classmethod
    def by(cls, compiler: Compiler, network: DualViewNetwork) -> "CompiledStates | None":
        """None if the compiler cannot run this network, or if it ranks the catalogue to extend a history."""
        if network.backwards is not None:
            return None
        length = min(3, network.max_length)
        histories = torch.full((2, length), FIRST_ITEM, device=network.device)
        histories[1, 1:] = PAD
        with torch.no_grad():
            example = _given(network.items, histories)
            module = StatesOfGivenViews(network, compiler.kernel)
            run = compiler.module(module, example, [(0, 1), *[(0,)] * (len(example) - 1)])
        keep = compiler.products and network.n_items * network.width <= _KEPT
        return None if run is None else cls(network, run, keep)

    def __call__(self, histories: Tensor) -> Tensor:
        """histories int64 [B, L] right-padded -> [B, views * d]."""
        lengths = (histories != PAD).sum(1)
        if len(histories) == 1 or self._padded:
            return self._states(histories[:, : max(int(lengths.max()), 1)])
        found, below, bound = None, -1, _SHORTEST
        while below < int(lengths.max()):
            rows = ((lengths > below) & (lengths <= bound)).nonzero().squeeze(1)
            below, bound = bound, 2 * bound
            if len(rows):
                states = self._states(histories[rows, : max(int(lengths[rows].max()), 1)])
                found = states.new_empty(len(histories), states.shape[1]) if found is None else found
                found[rows] = states
        assert found is not None
        return found

    def _states(self, histories: Tensor) -> Tensor:
        if self._views is not None:
            return self._run(histories, *self._views)
        return self._run(*_given(self._items, histories, self._adapter))


def _given(items: ItemViews, histories: Tensor, adapter: tuple[Tensor, Tensor] | None = None) -> list[Tensor]:
    """Histories as places among the rows of views, and the views: of the reserved ids, then of each item in turn."""
    real = histories >= FIRST_ITEM
    rows = torch.cat([torch.arange(FIRST_ITEM, device=histories.device), histories[real]])
    local = histories.masked_scatter(real, torch.arange(FIRST_ITEM, len(rows), device=histories.device))
    return [local, *items(rows, adapter)]
