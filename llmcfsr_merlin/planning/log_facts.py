"""A log in memory, as ingest read it: its sizes, times, ties, returns and lengths, and what filters and splits leave.

The filters, the order and the cuts are those of stage prepare, so the numbers are its numbers.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from llmcfsr_merlin.config.data_settings import DataConfig
from llmcfsr_merlin.config.prepare_settings import PrepareConfig
from llmcfsr_merlin.dataset.catalogue_order import catalogue_order
from llmcfsr_merlin.dataset.ingest_stage import generated_in
from llmcfsr_merlin.dataset.names import INTERACTIONS, SPLITS
from llmcfsr_merlin.dataset.prepare.filters import apply_filters, count, survivors
from llmcfsr_merlin.dataset.prepare.order import order_rows
from llmcfsr_merlin.dataset.prepare.partitions import Chunk, plan_chunks, read_partition, untimed
from llmcfsr_merlin.dataset.prepare.splits import Rows, leave_one_out, split_rows
from llmcfsr_merlin.dataset.prepare.ties import moments, tie_keys
from llmcfsr_merlin.dataset.prepare.time_cut import TimeCut, time_cut
from llmcfsr_merlin.dataset.raw.ingest import ingest

_DAY = 86_400


@dataclass(frozen=True)
class Log:
    """Interactions sorted by user and time. user, item: int32 [N], positions; moment: int32 [N], equal if user and time
    are; time: int64 [N], unix seconds. item_ids: raw ids by position. untimed: the times are positions in an order."""

    user: np.ndarray
    item: np.ndarray
    moment: np.ndarray
    time: np.ndarray
    users: int
    item_ids: pa.Array
    untimed: bool
    chunks: tuple[Chunk, ...]

    @classmethod
    def read(cls, interactions: Path, tie_seed: int | None = None) -> "Log":
        """Read the folder INTERACTIONS of stage ingest; memory is about 60 bytes an interaction for a while."""
        chunks, _ = plan_chunks(interactions, 1 << 62, 1)
        columns = read_partition(chunks[0], gpu=False)
        order = order_rows(np, columns.user, columns.time, columns.subsecond, tie_keys(np, columns.row, tie_seed))
        user, item, time = columns.user[order], columns.item[order], columns.time[order]
        subsecond = None if columns.subsecond is None else columns.subsecond[order]
        moment = moments(np, user, time, subsecond)
        return cls(user, item, moment, time, len(columns.user_ids), columns.item_ids, untimed(chunks), tuple(chunks))

    def filtered(self, settings: PrepareConfig) -> tuple["Log", dict]:
        """What the filters of stage prepare leave, and their report; InputError if that is nothing."""
        at = np.arange(len(self.item))
        cut = self.cut(settings) if settings.filters_train else None
        early = np.ones(len(at), bool) if cut is None else cut.segments(self.time) == 0

        def drop(
            title: str, rows: int, *, number: int, keep: np.ndarray | None, min_user: int, raw: bool, train: bool
        ) -> tuple[np.ndarray, int, int]:
            nonlocal at
            size, counted = len(at), early[at] if train else None
            of_item, both = survivors(np, self.user[at], self.item[at], self.users, keep, min_user, raw, counted)
            at = at[both]
            by_item = size - int(of_item.sum())
            items = self.item[at[early[at]] if train else at]
            return count(np, items, len(self.item_ids)), by_item, size - by_item - len(at)

        _, report = apply_filters(drop, count(np, self.item, len(self.item_ids)), settings, len(self.item))
        left = replace(self, user=self.user[at], item=self.item[at], moment=self.moment[at], time=self.time[at])
        return left, report

    def cut(self, settings: PrepareConfig) -> TimeCut | None:
        """The times of a temporal split; InputError if a part of it would be empty."""
        return time_cut(list(self.chunks), settings)

    @property
    def first(self) -> np.ndarray:
        """Where each user starts, int64."""
        return np.flatnonzero(np.r_[True, self.user[1:] != self.user[:-1]])


@contextmanager
def read_in(data: DataConfig, tie_seed: int | None = None) -> Iterator[tuple[Log, dict, Path]]:
    """The log that ingest reads by these settings, its counts, and the folder that it wrote, which is removed at the
    end. Its table of counts is not logged, its warnings are."""
    said = logging.getLogger(ingest.__module__.rpartition(".")[0]), logging.getLogger("llmcfsr_merlin.runtime.engine")
    before = [logger.level for logger in said]
    with tempfile.TemporaryDirectory(prefix="llmcfsr-") as work:
        for logger in said:
            logger.setLevel(logging.WARNING)
        try:
            counts = ingest(generated_in(Path(work) / ".generated", data), Path(work))
        finally:
            for logger, level in zip(said, before):
                logger.setLevel(level)
        yield Log.read(Path(work) / INTERACTIONS, tie_seed), counts, Path(work)


@dataclass(frozen=True)
class Facts:
    """first, last: unix seconds. tied: share of the steps of users between equal times; ascending: share of these
    that go up in the catalogue's order (about a half in an order that means something). returns: share of the
    interactions with an item that the user had at an earlier time; returning_last: the same of users' last ones."""

    interactions: int
    users: int
    items: int
    first: int
    last: int
    untimed: bool
    whole_days: bool
    tied: float
    ascending: float | None
    returns: float
    returning_last: float
    mean_length: float
    longest: int


def facts_of(log: Log) -> Facts:
    """What a log, raw or filtered, holds."""
    same = log.user[1:] == log.user[:-1]
    tied = same & (log.moment[1:] == log.moment[:-1])
    step = np.diff(catalogue_order(log.item_ids.to_pylist())[log.item])[tied] if tied.any() else np.zeros(0)
    up, down = int((step > 0).sum()), int((step < 0).sum())
    again, first = returns(log), log.first
    ends = np.r_[first[1:], len(log.user)]
    lengths = ends - first
    return Facts(
        interactions=len(log.item),
        users=len(first),
        items=len(np.unique(log.item)),
        first=int(log.time.min()),
        last=int(log.time.max()),
        untimed=log.untimed,
        whole_days=not log.untimed and bool((log.time % _DAY == 0).all()),
        tied=float(tied.sum() / max(int(same.sum()), 1)),
        ascending=up / (up + down) if up + down else None,
        returns=float(again.mean()),
        returning_last=float(again[ends - 1].mean()),
        mean_length=float(lengths.mean()),
        longest=int(lengths.max()),
    )


def returns(log: Log) -> np.ndarray:
    """Whether the user had the item at an earlier time: bool [N]."""
    pair = log.user.astype(np.int64) * len(log.item_ids) + log.item
    order = np.argsort(pair, kind="stable")
    found = np.zeros(len(pair), bool)
    pair, moment = pair[order], log.moment[order]
    starts = np.flatnonzero(np.r_[True, pair[1:] != pair[:-1]])
    earliest = np.repeat(moment[starts], np.diff(np.r_[starts, len(pair)]))
    found[order] = moment > earliest
    return found


@dataclass(frozen=True)
class Sizes:
    """What stage prepare would write. rows: of each split. trained_on: interactions in the rows of train; cut: those
    before validation that max_length leaves out of them. tied_last: users whose last two interactions share a time.
    returning: share of the validation targets that are in their history. item_counts: training interactions of each
    item that is left, int64."""

    rows: dict[str, int]
    trained_on: int
    cut: int
    tied_last: int
    returning: float
    item_counts: np.ndarray

    @property
    def cut_share(self) -> float:
        return self.cut / max(self.cut + self.trained_on, 1)


def sizes_of(log: Log, settings: PrepareConfig, cut: TimeCut | None) -> Sizes:
    """The sizes of a filtered log's splits. cut: of Log.cut."""
    first = log.first
    ends = np.r_[first[1:], len(log.user)]
    owner = np.repeat(np.arange(len(first)), ends - first)
    segment = leave_one_out(np, ends, owner) if cut is None else cut.segments(log.time)
    targets = "last" if cut is None else cut.targets
    rows: dict[str, Rows] = {
        split: split_rows(np, split, first, owner, segment, targets, settings.max_length) for split in SPLITS
    }
    train = rows["train"]
    before = np.bincount(owner[segment == 0], minlength=len(first))
    trained_on = int((train.stop - train.start).sum())
    again = returns(log)[rows["valid"].stop - 1]
    counts = np.bincount(log.item[segment == 0], minlength=len(log.item_ids))[np.unique(log.item)]
    return Sizes(
        rows={split: len(found.owner) for split, found in rows.items()},
        trained_on=trained_on,
        cut=int(before[train.owner].sum()) - trained_on,
        tied_last=int((log.moment[ends - 1] == log.moment[np.maximum(ends - 2, 0)]).sum()),
        returning=float(again.mean()) if len(again) else 0.0,
        item_counts=counts,
    )
