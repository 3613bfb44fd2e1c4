"""Ties, interactions of one user at one time: their order, and how many histories end in them."""

from pathlib import Path
from types import ModuleType

import numpy as np

from llmcfsr_merlin.dataset.prepare.filters import load_kept
from llmcfsr_merlin.runtime.device import Array


def tie_keys(xp: ModuleType, row: Array, seed: int | None) -> Array:
    """Sort key of equal times: `row`, the position in the source (int64), or with a seed a hash of both (uint64).

    The hash (the finaliser of splitmix64) is one-to-one, so that no two rows tie, and depends only on seed and row:
    partitions and engine do not change the order.
    """
    if seed is None:
        return row
    mixed = row.astype("uint64") + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % (1 << 64))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def moments(xp: ModuleType, user: Array, time: Array, subsecond: Array | None) -> Array:
    """Number of the (user, time) of each row, int32: equal if rows share one, also after others are dropped.

    Arrays of `xp`, sorted; subsecond: None if all are 0.
    """
    new = xp.zeros(len(user), "int32")
    for values in (user, time, subsecond):
        if values is not None:
            new[1:] |= values[1:] != values[:-1]
    return xp.cumsum(new, dtype="int32")


def tied(xp: ModuleType, moment: Array) -> Array:
    """Whether an interaction has the user and time of the one before it, bool, from the moments of sorted rows."""
    found = xp.zeros(len(moment), bool)
    found[1:] = moment[1:] == moment[:-1]
    return found


def tied_last(xp: ModuleType, user: Array, moment: Array) -> tuple[int, int]:
    """Users whose last two, and whose last three, interactions share one time."""
    last = xp.concatenate([xp.flatnonzero(user[1:] != user[:-1]), xp.full(1, len(user) - 1, "int64")])
    # The first user may have fewer; what is before any other one is of another moment.
    before, earlier = (xp.maximum(last - step, 0) for step in (1, 2))
    two = (before < last) & (moment[last] == moment[before])
    three = two & (earlier < before) & (moment[last] == moment[earlier])
    return int(two.sum()), int(three.sum())


def tied_last_of(bucket: Path) -> tuple[int, int]:
    """The same for a filtered bucket."""
    user, _, moment, _ = load_kept(bucket)
    return tied_last(np, user, moment) if len(user) else (0, 0)


def tied_report(found: list[tuple[int, int]]) -> dict[str, int]:
    """Manifest entries, from the parts of a log."""
    return {"tied_last_two": sum(two for two, _ in found), "tied_last_three": sum(three for _, three in found)}
