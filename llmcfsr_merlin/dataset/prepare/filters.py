"""Filters of interactions: k-core to a fixed point, the papers' single pass, short histories.

A pass runs over the sorted buckets of shuffle.py (here) or in memory (in_memory.py). A
bucket holds whole users, so counts of users are local to it; counts of items are summed over the buckets.
"""

from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from llmcfsr_merlin.config.prepare_settings import PrepareConfig
from llmcfsr_merlin.dataset.prepare.arrays import load_array, save_array
from llmcfsr_merlin.runtime.device import Array
from llmcfsr_merlin.runtime.engine import Engine
from llmcfsr_merlin.runtime.errors import InputError


class Round(Protocol):
    """One pass over the whole log: drop items not kept, then users below min_user (counted before dropping if raw).

    title, rows: for the progress; number: 1, 2, ...; keep: bool [items] or None for all; train: count only interactions
    before validation, and keep users who have none. Returns int64 [items], the interactions left of each item, and how
    many fell with their item and with their user, before validation and after it.
    """

    def __call__(
        self, title: str, rows: int, *, number: int, keep: Array | None, min_user: int, raw: bool, train: bool
    ) -> tuple[Array, int, int]: ...


def apply_filters(drop: Round, counts: Array, settings: PrepareConfig, rows: int) -> tuple[Array, dict]:
    """Filter `rows` interactions by passes of `drop`.

    counts: int64 [items], interactions of each item before filtering, of the array library of `drop`. Returns the
    counts afterwards and a report {"filter": [{round, items, users}: interactions dropped], "min_sequence":
    interactions dropped}.

    k_core alternates until every user has min_user and every item min_item interactions (the largest such set, so the
    order of dropping does not matter). one_pass drops an interaction, once, if its user or its item has too few in the
    raw log. Then users with fewer than min_sequence are dropped, always. Unlike in the papers' code, which numbers
    items before that last step, items that nobody is left with do not count as items; and when min_sequence is above
    min_user an item may end below min_item. Raises InputError if nothing is left.

    settings.filters_train: who has enough is decided by the interactions before validation. Users and items that have
    some there but too few fall with all they have, later interactions too; who has none there, of whom nobody knew
    anything at the cut, stays. min_sequence, which asks for the future of a history, is not applied.
    """
    report: dict = {"filter": []}
    number, train, unseen = 0, settings.filters_train, None
    if train and settings.filter != "none":
        number = 1
        counts, _, _ = drop("count", rows, number=number, keep=None, min_user=0, raw=False, train=True)
        unseen = counts == 0
    while settings.filter != "none":
        number += 1
        keep = counts >= settings.min_item
        if unseen is not None:
            keep |= unseen
        raw, passes = settings.filter == "one_pass", len(report["filter"]) + 1
        counts, by_item, by_user = drop(
            f"filter, round {passes}", rows, number=number, keep=keep, min_user=settings.min_user, raw=raw, train=train
        )
        report["filter"].append({"round": passes, "items": by_item, "users": by_user})
        left = int(counts.sum())
        if left == 0:
            raise InputError(
                f"prepare.filter={settings.filter} left none of {rows:,} interactions (min_user {settings.min_user}, "
                f"min_item {settings.min_item}): lower prepare.min_item or prepare.min_user, or set prepare.filter=none"
            )
        # An item that lost all who had it before validation has later interactions, perhaps, and falls with them.
        open_to = counts > 0 if unseen is None else keep & ~unseen
        if settings.filter == "one_pass" or not (open_to & (counts < settings.min_item)).any():
            break
        rows = left
    before = int(counts.sum())
    shortest = 0 if train else settings.min_sequence
    counts, _, report["min_sequence"] = drop(
        "short histories", before, number=number + 1, keep=None, min_user=shortest, raw=False, train=False
    )
    if int(counts.sum()) == 0:
        raise InputError(
            f"prepare.min_sequence={settings.min_sequence} left none of {before:,} interactions: no user has so many; "
            "lower prepare.min_item or set prepare.filter=none so that more stay"
        )
    kept = int((counts > 0).sum())
    if kept < 2:
        raise InputError(
            f"expected at least 2 items to rank, found {kept} left of {len(counts):,}: there is nothing to recommend "
            "(check data.columns.item, and if the filters took the others, prepare.min_item and prepare.filter)"
        )
    return counts, report


def survivors(
    xp: ModuleType,
    user: Array,
    item: Array,
    users: int,
    keep: Array | None,
    min_user: int,
    raw: bool,
    train: Array | None = None,
) -> tuple[Array, Array]:
    """Masks (bool, of the array library `xp`) over interactions: whose item is kept, and who are left of those.

    user, item: positions, users of them below `users`; keep, min_user, raw as in Round; train: bool, the interactions
    that are counted, None for all.
    """
    of_item = xp.ones(len(item), bool) if keep is None else keep[item]
    counted = of_item
    if train is not None:
        counted = train if raw else train & of_item
    enough = count(xp, user if raw and train is None else user[counted], users) >= min_user
    if train is not None:
        enough |= count(xp, user[train], users) == 0
    return of_item, of_item & enough[user]


def count(xp: ModuleType, positions: Array, size: int) -> Array:
    """How often each of 0 .. size - 1 is among `positions`, int64."""
    return xp.bincount(positions, minlength=size) if len(positions) else xp.zeros(size, "int64")


def bucket_rounds(buckets: list[Path], items: int, engine: Engine) -> Round:
    """Passes over buckets: what round n left of one stands in kept-<n>.npy beside the whole arrays."""
    for bucket in buckets:  # from an interrupted run
        for path in bucket.glob("kept-*.npy"):
            path.unlink()

    def drop(title: str, rows: int, **how: Any) -> tuple[np.ndarray, int, int]:
        return _sum(engine.map(partial(_round, **how), buckets, title, rows), items)

    return drop


def _round(
    bucket: Path, *, number: int, keep: np.ndarray | None, min_user: int, raw: bool, train: bool
) -> tuple[np.ndarray, int, int]:
    """One pass over a bucket.

    It reads what earlier rounds left and never changes that: dask runs a task again when the worker that holds its
    result dies, and the second answer must be the first one.
    """
    earlier = _rounds(bucket, number)
    user, item, *more = _load(bucket, earlier)
    counted = more[1] == 0 if train else None  # segments
    of_item, both = survivors(np, user, item, int(user[-1]) + 1 if len(user) else 1, keep, min_user, raw, counted)
    if not both.all():
        save_array(bucket / f"kept-{number:04d}.npy", np.stack([kept[both] for kept in (user, item, *more)]))
    for path in earlier[:-1]:
        path.unlink(missing_ok=True)
    dropped = int((~of_item).sum())
    left = np.bincount(item[both if counted is None else both & counted])
    return left, dropped, len(item) - dropped - int(both.sum())


def load_kept(bucket: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """What the filters applied so far left of a bucket, sorted by user and time: its users and items (int32 positions),
    the moments of ties.moments (int32), and segments (splits.py), None if the log is not cut in time.
    """
    user, item, moment, *segment = _load(bucket, _rounds(bucket, 10_000))
    return user, item, moment, segment[0] if segment else None


def _rounds(bucket: Path, number: int) -> list[Path]:
    """What rounds before `number` left of a bucket, if they dropped anything, oldest first."""
    return [path for path in sorted(bucket.glob("kept-*.npy")) if path.name < f"kept-{number:04d}"]


def _load(bucket: Path, rounds: list[Path]) -> list[np.ndarray]:
    """Users, items, moments and, if the log is cut in time, segments."""
    if rounds:
        return list(load_array(rounds[-1]))
    paths = (bucket / f"{name}.npy" for name in ("user", "item", "moment", "segment"))
    return [load_array(path) for path in paths if path.is_file()]


def _sum(results: list[tuple[np.ndarray, int, int]], items: int) -> tuple[np.ndarray, int, int]:
    counts = np.zeros(items, np.int64)
    for left, _, _ in results:
        counts[: len(left)] += left
    return counts, sum(result[1] for result in results), sum(result[2] for result in results)
