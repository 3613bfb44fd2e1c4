"""The moving average of weights: its numbers, what it leaves as it was, and what a checkpoint keeps of it."""

import math

import torch
from torch import nn

from llmcfsr_merlin.training.averaging import WeightAverage


def walked(length: float, steps: int) -> tuple[nn.Linear, WeightAverage, list[float]]:
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    average, seen = WeightAverage(network, length), []
    for step in range(steps):
        with torch.no_grad():
            network.weight.fill_(step + 1.0)
        average.update()
        seen.append(float(average.state()["weight"]))
    return network, average, seen


def test_it_is_the_recurrence_of_its_length():
    _, _, seen = walked(length=4, steps=60)
    wanted, mean = [], 0.0
    for step in range(1, 61):
        decay = min(math.exp(-1 / 4), step / (step + 9))
        mean = decay * mean + (1 - decay) * step
        wanted.append(mean)
    torch.testing.assert_close(seen, wanted, rtol=1e-4, atol=1e-4)


def test_the_weights_are_as_they_were_after_it_was_taken_for_a_while():
    network, average, seen = walked(length=4, steps=20)
    address = network.weight.data_ptr()
    with average.taken():
        assert network.weight.item() == seen[-1] != 20
    assert network.weight.item() == 20
    average.take()
    assert network.weight.item() == seen[-1] and network.weight.data_ptr() == address


def test_it_goes_on_from_a_state():
    _, whole, _ = walked(length=4, steps=30)
    _, half, _ = walked(length=4, steps=12)
    network_after = nn.Linear(1, 1, bias=False)
    other = WeightAverage(network_after, 4)
    other.restore({name: tensor.clone() for name, tensor in half.state().items()})
    for step in range(12, 30):
        with torch.no_grad():
            network_after.weight.fill_(step + 1.0)
        other.update()
    torch.testing.assert_close(other.state(), whole.state())
