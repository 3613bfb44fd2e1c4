"""The moving average of a network's weights, which is better than the last ones long before the learning rate falls."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average (Polyak and Juditsky 1992, in the form of Tarvainen and Valpola, NeurIPS 2017).

    Early on, while fewer steps were made than it is long, it is the mean of nearly all of them.
    """

    def __init__(self, network: nn.Module, length: float):
        """length: steps after which a step counts 1/e as much."""
        self._weights = dict(network.named_parameters())
        self._decay = math.exp(-1 / max(length, 1.0))
        self._steps = 0
        self._mean = {name: weight.detach().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """After a step of the optimiser; its cost is one pass over the weights."""
        self._steps += 1
        share = 1 - min(self._decay, self._steps / (self._steps + 9))
        torch._foreach_lerp_(list(self._mean.values()), list(self._weights.values()), share)

    @torch.no_grad()
    def take(self) -> None:
        """Make it the network's weights, at the addresses that they have (a recorded CUDA graph reads them there)."""
        for name, weight in self._weights.items():
            weight.copy_(self._mean[name])

    @contextmanager
    def taken(self) -> Iterator[None]:
        """The network with the averaged weights, for as long as the context lasts."""
        kept = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self.take()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in self._weights.items():
                    weight.copy_(kept[name])

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: each weight's average, and `steps`."""
        return {"steps": torch.tensor(self._steps)} | self._mean

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self._steps = int(state["steps"])
        for name, mean in self._mean.items():
            mean.copy_(state[name])
