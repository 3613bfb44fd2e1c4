"""Between a server and its python steps: environment variables, and BYTES tensors that cannot be decoded.

Triton calls `deserialize_bytes_tensor(bytes).reshape(shape)` for every BYTES tensor of a batch before the step sees one
of them, and the process ends if that raises. Nothing raises here: what cannot be read becomes Unreadable, which the
step turns into an error of its request.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from llmcfsr_merlin.runtime.errors import InputError

FOLDER_VARIABLE = "LLMCFSR_SERVER_FOLDER"  # where STOPPING appears
STOPPING = "stopping"  # a file: while it exists, the first step refuses new requests
REQUEST_VARIABLE = "LLMCFSR_OWN_REQUEST"  # id of the server's own requests: not counted, answered during shutdown

SHARD_VARIABLE = "LLMCFSR_SHARD"  # I/N: the part of the catalogue that this server ranks; unset: all of it


def read_shard(text: str) -> tuple[int, int]:
    """I/N as numbers; InputError for anything else."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise InputError(f"--shard: expected I/N, part I of N, from 1/N to N/N, found {text!r}")
    return int(number), int(count)


class Unreadable(np.ndarray):
    """An empty array in place of one that cannot be decoded; `reason` says why."""

    reason = ""

    @classmethod
    def because(cls, reason: str) -> "Unreadable":
        array = np.empty(0, dtype=object).view(cls)
        array.reason = reason
        return array

    def reshape(self, *shape: Any, **_: Any) -> "Unreadable":
        return self


class _Flat(np.ndarray):
    """Elements in order, not yet in their shape."""

    def reshape(self, *shape: Any, **_: Any) -> np.ndarray:
        elements = self.view(np.ndarray)
        try:
            return elements.reshape(*shape)
        except (ValueError, OverflowError, TypeError, MemoryError):
            found = list(shape[0] if len(shape) == 1 else shape)
            return Unreadable.because(f"expected as many values as shape {found} has, found {len(elements)}")


def reader(deserialize: Callable) -> Callable:
    """`deserialize`, Triton's decoder from bytes to a flat array, without its exceptions."""

    def read(encoded: np.ndarray) -> np.ndarray:
        try:
            return deserialize(encoded).view(_Flat)
        except Exception:
            return Unreadable.because("expected values as long as their length prefixes, found others")

    return read
