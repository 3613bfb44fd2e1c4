"""User states as a module without a catalogue, for runtimes that compile it: the views of the items are inputs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcfsr_merlin.dataset.names import FIRST_ITEM, PAD
from llmcfsr_merlin.scoring.compiled import Compiler, Function
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork

_SHORTEST = 8  # histories up to this length run together; so do those up to 8, 16, ... items


class StatesOfGivenViews(nn.Module):
    """DualViewNetwork.user_states of histories int64 [B, L] that index the rows of the given views, float [N, d] each.

    The first FIRST_ITEM rows are those of the reserved ids. The module holds no tensor of the catalogue's size: it does
    not change when items are added.
    """

    def __init__(self, network: DualViewNetwork):
        super().__init__()
        self.network = DualViewNetwork(network.config, FIRST_ITEM, network.max_length, network.items.vectors)
        per_item = ("items.", "output.")
        own = {name: weight for name, weight in network.state_dict().items() if not name.startswith(per_item)}
        self.network.load_state_dict(own, strict=False)
        self.views = _GivenViews()
        self.network.add_module("items", self.views)
        self.eval()

    def forward(self, histories: Tensor, *views: Tensor) -> Tensor:
        self.views.given = views
        return self.network.user_states(histories)


class _GivenViews(nn.Module):
    given: tuple[Tensor, ...] = ()

    def forward(self, items: Tensor) -> list[Tensor]:
        return [F.embedding(items, view) for view in self.given]


class CompiledStates:
    """`user_states` of a trained network by another runtime; histories of similar length run together.

    A batch padded to its longest history computes mostly padding: of 32 histories of Beauty, five of six positions.
    """

    def __init__(self, network: DualViewNetwork, run: Function):
        self._run, self._items, self._padded = run, network.items, network.left_padded
        with torch.no_grad():
            self._adapter = network.items.adapter()

    @classmethod
    def by(cls, compiler: Compiler, network: DualViewNetwork) -> "CompiledStates | None":
        """None if the compiler cannot run this network, or if it ranks the catalogue to extend a history."""
        if network.backwards is not None:
            return None
        length = min(3, network.max_length)
        histories = torch.full((2, length), FIRST_ITEM, device=network.device)
        histories[1, 1:] = PAD
        with torch.no_grad():
            example = [histories, *network.items(_rows(histories))]
            run = compiler.module(StatesOfGivenViews(network), example, [(0, 1), *[(0,)] * (len(example) - 1)])
        return None if run is None else cls(network, run)

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
        places = torch.arange(FIRST_ITEM, FIRST_ITEM + histories.numel()).view_as(histories)
        local = torch.where(histories < FIRST_ITEM, histories, places)
        return self._run(local, *self._items(_rows(histories), self._adapter))


def _rows(histories: Tensor) -> Tensor:
    """Encoded ids of the rows of the views: the reserved ones, then every position of the histories."""
    return torch.cat([torch.arange(FIRST_ITEM, device=histories.device), histories.flatten()])
