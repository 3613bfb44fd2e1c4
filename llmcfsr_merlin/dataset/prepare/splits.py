"""Cuts histories into training, validation and test: before each user's last two items, or at two times.

Every interaction belongs to a segment, its position in SPLITS, that never falls along a history. The rows of a split
follow from the segments, whichever way these were made and wherever the arrays are (numpy or cupy).
"""

from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import numpy as np

from llmcfsr_merlin.dataset.names import SPLITS
from llmcfsr_merlin.dataset.prepare.filters import count
from llmcfsr_merlin.dataset.prepare.time_cut import TimeCut, format_time
from llmcfsr_merlin.runtime.device import Array, to_host
from llmcfsr_merlin.runtime.errors import InputError


class Parts(NamedTuple):
    """What sequences/ says of a temporal split: int64 [users], interactions before each cut, and prepare.targets."""

    train_items: np.ndarray
    valid_items: np.ndarray
    targets: str

    @classmethod
    def of_segments(cls, xp: ModuleType, owner: Array, segment: Array, users: int, targets: str) -> "Parts":
        """Computed from the segments of interactions and their users, positions below `users`."""
        train, valid = (to_host(count(xp, owner[segment < number], users)).astype(np.int64) for number in (1, 2))
        return cls(train, valid, targets)

    def of(self, first: int, end: int) -> "Parts":
        return Parts(self.train_items[first:end], self.valid_items[first:end], self.targets)


class Rows(NamedTuple):
    """Rows of a split: owner, position of the user, ascending; start, stop: where its items are, the target last."""

    owner: Array
    start: Array
    stop: Array


def leave_one_out(xp: ModuleType, ends: Array, owner: Array) -> Array:
    """Segments (int8) where the last item of each user is for test and the one before for validation.

    ends: int64 [users], where their interactions end; owner: position of the user of each interaction.
    """
    after = ends[owner] - 1 - xp.arange(len(owner))  # interactions of the user that follow this one
    return (len(SPLITS) - 1 - xp.minimum(after, len(SPLITS) - 1)).astype("int8")


def split_rows(
    xp: ModuleType, split: str, first: Array, owner: Array, segment: Array, targets: str, max_length: int
) -> Rows:
    """The rows of a split, of the array library `xp`: each ends with its target, at most max_length items before it.

    first: int64 [users], where their interactions start; owner, segment: of each interaction, in order. targets: last,
    first or all of a user's interactions of valid or test. Before the target may stand earlier items of its own
    segment. Users without an item of an earlier segment have no row in valid or test; train has one row per user, which
    ends with the last training item, and none for users with fewer than two.
    """
    number = SPLITS.index(split)
    chosen = segment == number
    if not number or targets != "all":
        other = (owner[1:] != owner[:-1]) | (segment[1:] != segment[:-1])
        edge = xp.ones(len(segment), bool)
        if number and targets == "first":
            edge[1:] = other
        else:
            edge[:-1] = other
        chosen &= edge
    if number:
        chosen &= (segment[first] < number)[owner]
    at = xp.flatnonzero(chosen)
    if not number:
        at = at[at > first[owner[at]]]
    start = xp.maximum(first[owner[at]], at - max_length)
    return Rows(owner[at], start, at + 1)


def gather(xp: ModuleType, rows: Rows) -> tuple[Array, Array]:
    """Positions (int64) of all items of the rows, one row after the other, and the offsets of the rows among them."""
    sizes = rows.stop - rows.start
    offsets = xp.zeros(len(sizes) + 1, "int64")
    offsets[1:] = xp.cumsum(sizes)
    if not len(sizes):
        return xp.zeros(0, "int64"), offsets
    step = xp.ones(int(offsets[-1]), "int64")  # steps to add up, for cupy cannot repeat by an array
    step[offsets[:-1]] = xp.concatenate([rows.start[:1], rows.start[1:] - rows.stop[:-1] + 1])
    return xp.cumsum(step), offsets


@dataclass
class Written:
    """Counts of what a part, or all of them, holds.

    rows: of each split. train: int64, training interactions per encoded id; the last ids may be missing. cut: how many
    of these max_length leaves out of the rows of train. Of a temporal split only: targets, the same of the targets in
    valid and test; cold_users, users of valid and of test without an earlier interaction, who have no row there;
    interactions and users of each split.
    """

    users: int
    rows: dict[str, int]
    train: np.ndarray
    targets: dict[str, np.ndarray]
    cold_users: dict[str, int]
    interactions: dict[str, int]
    active: dict[str, int]
    cut: int = 0

    @classmethod
    def nothing(cls) -> "Written":
        return cls(0, {}, np.zeros(0, np.int64), {}, {}, {}, {})

    @classmethod
    def of(
        cls, xp: ModuleType, rows: dict[str, Rows], first: Array, segment: Array, codes: Array, parts: Parts | None
    ) -> "Written":
        """From the rows of each split, where users start, and the segments and encoded item ids of all interactions."""
        train = to_host(count(xp, codes[segment == 0], 1))
        counts = {name: len(at.owner) for name, at in rows.items()}
        cut = int((rows["train"].start - first[rows["train"].owner]).sum())
        found = cls(len(first), counts, train, {}, {}, {}, {}, cut)
        if parts is not None:
            begin = segment[first]
            ends = [parts.train_items, parts.valid_items, np.diff(np.r_[to_host(first), len(segment)])]
            sizes = [ends[0], ends[1] - ends[0], ends[2] - ends[1]]
            for number, name in enumerate(SPLITS):
                found.interactions[name] = int(sizes[number].sum())
                found.active[name] = int((sizes[number] > 0).sum())
                if number:
                    found.cold_users[name] = int((begin == number).sum())
                    found.targets[name] = to_host(count(xp, codes[rows[name].stop - 1], 1))
        return found

    @staticmethod
    def total(parts: list["Written"], size: int) -> "Written":
        """The sum over parts, counts as arrays of `size` codes."""

        def added(arrays: list[np.ndarray]) -> np.ndarray:
            result = np.zeros(size, np.int64)
            for array in arrays:
                result[: len(array)] += array
            return result

        def summed(name: str) -> dict[str, int]:
            keys = getattr(parts[0], name)
            return {key: sum(getattr(part, name)[key] for part in parts) for key in keys}

        parts = [part for part in parts if part.users]
        return Written(
            sum(part.users for part in parts), summed("rows"), added([part.train for part in parts]),
            {key: added([part.targets[key] for part in parts]) for key in parts[0].targets},
            summed("cold_users"), summed("interactions"), summed("active"), sum(part.cut for part in parts),
        )  # fmt: skip

    def report(self, cut: TimeCut) -> dict:
        """Manifest entries of a temporal split. InputError if validation or test has no user to evaluate."""
        for name in SPLITS[1:]:
            if not self.rows[name]:
                raise InputError(
                    f"prepare.split=temporal: expected users with an interaction before and in {name}, found none of "
                    f"{self.active[name]:,} with one in it (cut at {format_time(cut.valid_from)} and "
                    f"{format_time(cut.test_from)}): set prepare.valid_from and prepare.test_from, or other quantiles"
                )
        found: dict = {
            "valid_from": format_time(cut.valid_from),
            "test_from": format_time(cut.test_from),
            "targets": cut.targets,
            "train": {"interactions": self.interactions["train"], "users": self.active["train"]},
        }
        for name in SPLITS[1:]:
            found[name] = {
                "interactions": self.interactions[name], "users": self.active[name], "rows": self.rows[name],
                "cold_users": self.cold_users[name],
                "cold_targets": int(self.targets[name][self.train == 0].sum()),
            }  # fmt: skip
        return found
