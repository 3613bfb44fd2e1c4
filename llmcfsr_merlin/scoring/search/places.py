"""The places of large numbers in a row of a whole catalogue, compiled by Numba.

Importing this module compiles it, if nobody has yet: it is imported where it is used.
"""

import numpy as np

from llmcfsr_merlin.runtime.machine_code import loop

_BLOCK = 256
_LEAST = float(np.finfo(np.float32).min)


@loop("int64[::1](float32[::1], float32)")
def at_least(values: np.ndarray, least: float) -> np.ndarray:
    """The places of all values float32 [V] that are at least `least` and not -inf: int64 [N], ascending."""
    lowest, found, count = np.float32(max(least, _LEAST)), np.empty(len(values), np.int64), 0
    for start in range(0, len(values), _BLOCK):
        block, some = values[start : start + _BLOCK], 0
        for place in range(len(block)):  # a count of a block takes no branch, so eight are compared at a time
            some += block[place] >= lowest
        if some:
            for place in range(len(block)):
                if block[place] >= lowest:
                    found[count] = start + place
                    count += 1
    return found[:count].copy()
