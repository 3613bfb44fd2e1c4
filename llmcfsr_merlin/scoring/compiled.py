"""What a scorer asks of a faster runtime: `Scorer.compile` hands parts of itself to a Compiler and keeps what it gets.

serving/onnx_engine.py is one. Nothing is compiled in training, evaluation and the library: they run torch.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor, nn

from llmcfsr_merlin.scoring.network.attention import Kernel

Function = Callable[..., Tensor]
Axes = Sequence[Sequence[int]]

SMALL = 1 << 14  # items of a catalogue whose views, and cosines of all pairs (256 MB), are kept in one byte each


class Compiler(Protocol):
    products: bool
    """Whether products with the whole catalogue are wanted: with a shortlist they are rare, and would take memory."""

    kernel: Kernel | None
    """The runtime's own causal attention, which a module may hold in place of torch's; None: it has none."""

    def module(self, module: nn.Module, example: Sequence[Tensor], free: Axes) -> Function | None:
        """The module as a function of the tensors of `example`, on the CPU; None if the runtime cannot run it.

        free: of each input, the axes whose length varies.
        """

    def product(self, matrix: Tensor) -> Function | None:
        """x float [n, D] -> x @ matrix.T, float [n, V], for a matrix [V, D]; None if a second copy of the matrix,
        which the runtime keeps in its own order, is not worth its memory."""
