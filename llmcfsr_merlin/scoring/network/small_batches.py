"""Small batches on a GPU: the network's kernels are captured once as a CUDA graph and launched together."""

import logging
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from llmcfsr_merlin.dataset.names import PAD
from llmcfsr_merlin.scoring.network.backbones import Block, MaskedBlock
from llmcfsr_merlin.scoring.network.dual_view import DualViewNetwork

SIZES = (1, 2, 4, 8, 16, 32, 64)  # batch sizes of the graphs; a batch uses the smallest that holds it
_BACKBONES = (Block, MaskedBlock)  # blocks without synchronisation or data-dependent shapes
_RECORDING = threading.Lock()  # CUDA captures one graph per process at a time
_log = logging.getLogger("llmcfsr_merlin")
States = Callable[[Tensor], Tensor]


def can_record(network: DualViewNetwork, histories: Tensor) -> bool:
    """Whether the states of these histories may come from a CUDA graph of the network."""
    return (
        histories.is_cuda
        and len(histories) <= SIZES[-1]
        and torch.is_inference_mode_enabled()
        and not torch.is_autocast_enabled()
        and not network.training
        and network.backwards is None
        and all(type(block) in _BACKBONES for block in network.blocks)
    )


class SmallBatches:
    """`states` (histories int64 [B, L] -> float [B, d], no waiting inside) of at most SIZES[-1] rows, recorded.

    For one history the 150 or so kernels of the network compute for less time than their launches take. A graph of each
    size is recorded when it is first needed. It reads the weights at the addresses that they had then: whoever moves
    them drops this object. Where recording fails, all goes on without, after one warning. Threads may share it.
    """

    def __init__(self, states: States, max_length: int):
        self._states, self._max_length = states, max_length
        self._graphs: dict[int, States] = {}
        self._failed = False
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        return SmallBatches, (self._states, self._max_length)  # a copy captures its own graphs

    def __call__(self, histories: Tensor) -> Tensor:
        size = next(size for size in SIZES if size >= len(histories))
        with self._lock:
            if size not in self._graphs and not self._failed:
                try:
                    with _RECORDING:
                        self._graphs[size] = Graph(self._states, size, self._max_length, histories.device)
                except Exception as error:  # what cannot be captured depends on driver, torch and backbone
                    self._failed = True
                    _log.warning("the network runs without CUDA graphs (%s)", " ".join(str(error).split())[:200])
            if not self._failed:
                return self._graphs[size](histories)
        return self._states(histories)


class Graph:
    """`states` recorded for `rows` histories of `length` items on a CUDA device."""

    def __init__(self, states: States, rows: int, length: int, device: torch.device):
        self._histories = torch.full((rows, length), PAD, device=device)
        self._free = torch.cuda.Event()  # recorded when the graph's input and output can be reused
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):  # libraries allocate and choose their kernels outside of the recording
                    states(self._histories)
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            # thread_local: what other threads ask of the device meanwhile does not spoil it.
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                self._states = states(self._histories)

    def __call__(self, histories: Tensor) -> Tensor:
        with torch.cuda.device(histories.device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._free)
            fill(self._histories, histories)
            self._graph.replay()
            found = self._states[: len(histories)].clone()
            self._free.record(stream)
        return found


def fill(target: Tensor, histories: Tensor) -> None:
    """Write histories [B, L] into the corner of `target`, padding in the rest."""
    if histories.shape != target.shape:
        target.fill_(PAD)
    target[: histories.shape[0], : histories.shape[1]].copy_(histories)
