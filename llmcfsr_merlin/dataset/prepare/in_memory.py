"""Stage prepare for a log that fits the memory of one device: array operations, no shuffle through files.

Ids become integers once (cudf), everything after that is arithmetic of whole arrays (cupy); only the finished columns
come back, for the same Parquet writer as everywhere, in threads. Written in what cudf and pandas, cupy and numpy share,
so that the same code is tested without a GPU. The output equals that of the path through files.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmcfsr_merlin.config.prepare_settings import PrepareConfig
from llmcfsr_merlin.dataset.names import ITEM, SEQUENCES, SPLITS, USER
from llmcfsr_merlin.dataset.prepare.filters import apply_filters, count, survivors
from llmcfsr_merlin.dataset.prepare.numbering import Numbering
from llmcfsr_merlin.dataset.prepare.order import order_rows
from llmcfsr_merlin.dataset.prepare.partitions import Chunk, load_frame, no_ids, times
from llmcfsr_merlin.dataset.prepare.sequences import write_rows
from llmcfsr_merlin.dataset.prepare.splits import Parts, Written, gather, leave_one_out, split_rows
from llmcfsr_merlin.dataset.prepare.ties import moments, tie_keys, tied, tied_last, tied_report
from llmcfsr_merlin.dataset.prepare.time_cut import TimeCut
from llmcfsr_merlin.runtime.device import Array, to_host
from llmcfsr_merlin.runtime.engine import Engine

# Peak bytes of device memory per interaction, excluding id strings: positions, time,
# row, and the join that makes positions of ids, or the keys and buffers of the sort.
_BYTES_PER_ROW = 128
_BYTES_PER_REPEAT = 24
# Ids of one column read at once: older cudf holds at most 2 GiB of text in a column.
_TEXT = 1_500_000_000
# cudf counts rows in 32 bits.
_MOST_ROWS = 2_000_000_000


def fits(chunks: list[Chunk], free: int, repeats: int = 0) -> bool:
    """Whether a log fits `free` bytes of device memory, by its rows and the width of some of its ids.

    repeats: how often an interaction may stand in the rows of one split, if a user has several.
    """
    rows = sum(chunk.rows for chunk in chunks)
    if not free or rows > _MOST_ROWS:
        return False
    ids = sum(2 * (width + 8) for width in _widths(chunks).values())
    return rows * (_BYTES_PER_ROW + _BYTES_PER_REPEAT * repeats + ids) < 0.85 * free


def _widths(chunks: list[Chunk]) -> dict[str, float]:
    """Bytes of text of an id in each column, by the first rows of a few partitions."""
    found = {USER: 1.0, ITEM: 1.0}
    for chunk in chunks[:: max(1, len(chunks) // 4)]:
        path, group = chunk.pieces[0]
        sample = next(pq.ParquetFile(path).iter_batches(10_000, row_groups=[group], columns=[USER, ITEM]))
        for name in found:
            texts = sample[sample.schema.get_field_index(name)].cast(pa.string())
            found[name] = max(found[name], (pc.sum(pc.binary_length(texts)).as_py() or 0) / len(texts))
    return found


class InMemory:
    """A log in device memory: load, then filter, then write.

    frames, xp: a dataframe library and the array library of its columns. users, items, in `self` after load: int32
    positions in the sorted ids. cut: the times of a temporal split. text: bytes of ids of one column that are read at
    once.
    """

    def __init__(
        self,
        chunks: list[Chunk],
        cuts: pa.Array,
        engine: Engine,
        frames: ModuleType,
        xp: ModuleType,
        *,
        cut: TimeCut | None = None,
        text: int = _TEXT,
    ):
        self.chunks, self.cuts, self.engine, self.frames, self.xp, self.text = chunks, cuts, engine, frames, xp, text
        self.cut = cut
        self.rows = sum(chunk.rows for chunk in chunks)

    def load(self) -> tuple[dict[str, int], pa.Array, object]:
        """Read and number the log; the rows dropped for null ids, all raw item ids in order, and their counts (of xp).

        Raises InputError if every id is null.
        """
        nulls = {"null_users": 0, "null_items": 0}
        ids = {name: Numbering(self.frames, self.xp) for name in (USER, ITEM)}
        clocks = []
        for chunk in self._reads():
            with self._step("read", chunk.rows):
                frame = load_frame(chunk, self.frames)
                clock = list(times(frame, self.xp))
            with self._step("number ids", chunk.rows):
                codes = {}
                for name in (USER, ITEM):
                    codes[name] = ids[name].add(frame.pop(name))
                null_user, null_item = codes[USER] < 0, codes[ITEM] < 0
                keep = ~(null_user | null_item)
                nulls["null_users"] += int(null_user.sum())
                nulls["null_items"] += int((null_item & ~null_user).sum())
                if not bool(keep.all()):
                    codes = {name: values[keep] for name, values in codes.items()}
                    clock = [values if values is None else values[keep] for values in clock]
                for name in (USER, ITEM):
                    ids[name].codes.append(codes[name])
                clocks.append(clock)
                del frame, codes, null_user, null_item, keep
        if sum(nulls.values()) == self.rows:
            raise no_ids(self.rows)
        left = self.rows - sum(nulls.values())
        with self._step("sort ids", left):
            (self.users, self.user_ids), (self.items, raw) = (ids[name].settle() for name in (USER, ITEM))
            time, subsecond, row = zip(*clocks)
            del clocks
            if any(values is not None for values in subsecond):
                pieces = zip(subsecond, time)
                whole = [self.xp.zeros(len(at), "float64") if part is None else part for part, at in pieces]
                self.subsecond = self._joined(whole) + 0.0  # minus zero is zero
            else:
                self.subsecond = None
            self.time, self.row = self._joined(time), self._joined(row)
            self.distinct_items = len(raw)
            self._cut_users()
            counts = count(self.xp, self.items, len(raw))
        return nulls, raw, counts

    def _cut_users(self) -> None:
        """Where the users of each part start, among the sorted ids; how many parts have an interaction."""
        everyone = len(self.user_ids)
        at = (bisect_left(range(everyone), cut, key=self._user) for cut in self.cuts.to_pylist())
        self.edges = np.array([0, *at, everyone])
        seen = self.xp.cumsum(count(self.xp, self.users, everyone))
        before = self.xp.concatenate([self.xp.zeros(1, "int64"), seen])
        self.buckets = int((np.diff(to_host(before[self.xp.asarray(self.edges)])) > 0).sum())

    def _user(self, place: int) -> str:
        return self.user_ids[place].as_py()

    def filter(self, counts: Array, settings: PrepareConfig) -> tuple[Array, dict]:
        """Filter, then sort; the counts of items afterwards, and the reports of apply_filters and ties."""
        self.at = None
        counts, report = apply_filters(self._drop, counts, settings, len(self.users))
        with self._step("sort", len(self.users)):
            time, subsecond, row = (
                values if values is None or self.at is None else values[self.at]
                for values in (self.time, self.subsecond, self.row)
            )
            del self.time, self.subsecond, self.row, self.at
            order = order_rows(self.xp, self.users, time, subsecond, tie_keys(self.xp, row, settings.tie_seed))
            self.users, self.items = self.users[order], self.items[order]
            time, subsecond = (None if values is None else values[order] for values in (time, subsecond))
            self.segment = None if self.cut is None else self.cut.segments(time)
            moment = moments(self.xp, self.users, time, subsecond)
            self.tied = tied(self.xp, moment)
            report |= tied_report([tied_last(self.xp, self.users, moment)])
        return to_host(counts), report

    def write(self, out: Path, code_of: np.ndarray, max_length: int) -> Written:
        """Write sequences and splits into `out`. code_of: int64, item position -> encoded id."""
        left = len(self.items)
        with self._step("cut", left):
            people, tables, parts, written = self._cut(code_of, max_length)
        tasks = []
        places = np.searchsorted(people, self.edges)
        for number, (first, end) in enumerate(pairwise(places)):
            for name, (rows, offsets, values, ties) in tables.items():
                a, b = (first, end) if rows is None else np.searchsorted(rows, (first, end))
                if b > a:
                    whose = people[a:b] if rows is None else people[rows[a:b]]
                    path = out / name / f"part-{number:05d}.parquet"
                    cuts = parts.of(a, b) if parts is not None and rows is None else None
                    here = slice(offsets[a], offsets[b])
                    some = None if ties is None else ties[here]
                    tasks.append((path, whose, offsets[a : b + 1], values[here], cuts, some))
        self.engine.map(partial(_write, ids=self.user_ids), tasks, "write", left)
        return Written.total([written], int(code_of.max()) + 1)

    def _cut(self, code_of: np.ndarray, max_length: int) -> tuple[np.ndarray, dict[str, tuple], Parts | None, Written]:
        """The rows of all users at once, on the device, then their columns on the host.

        Returns the users (positions in user_ids, ascending); for sequences and each split whose its rows are (None for
        one of each), int64 offsets, int32 codes and, for sequences and train, which are tied (bool); the parts of the
        users' sequences; and the counts.
        """
        xp, total = self.xp, len(self.items)
        codes = xp.asarray(code_of.astype(np.int32))[self.items]
        starts = xp.zeros(total, "int32")
        starts[1:] = self.users[1:] != self.users[:-1]
        first = xp.concatenate([xp.zeros(1, "int64"), xp.flatnonzero(starts)])
        ends = xp.concatenate([first[1:], xp.full(1, total, "int64")])
        people = to_host(self.users[first])
        owner = xp.cumsum(starts)
        segment, targets, parts = self.segment, "last", None
        if segment is None:
            segment = leave_one_out(xp, ends, owner)
        if self.cut is not None:
            targets = self.cut.targets
            parts = Parts.of_segments(xp, owner, segment, len(first), targets)
        tables: dict[str, tuple] = {
            SEQUENCES: (
                None, np.concatenate([to_host(first), np.full(1, total)]), to_host(codes), to_host(self.tied),
            )
        }  # fmt: skip
        rows = {}
        for split in SPLITS:
            found = rows[split] = split_rows(xp, split, first, owner, segment, targets, max_length)
            where, offsets = gather(xp, found)
            ties = to_host(self.tied[where]) if split == SPLITS[0] else None
            tables[split] = to_host(found.owner), to_host(offsets), to_host(codes[where]), ties
        del self.users, self.items, self.segment, self.tied
        return people, tables, parts, Written.of(xp, rows, first, segment, codes, parts)

    def _drop(
        self, title: str, rows: int, *, number: int, keep: Array | None, min_user: int, raw: bool, train: bool
    ) -> tuple[Array, int, int]:
        """A Round of filters.py over the whole arrays; self.at: the rows that are left, None for all."""
        with self._step(title, rows):
            size, counted = len(self.users), None
            if train and self.cut is not None:
                counted = self.cut.segments(self.time if self.at is None else self.time[self.at]) == 0
            of_item, both = survivors(self.xp, self.users, self.items, len(self.user_ids), keep, min_user, raw, counted)
            by_item = size - int(of_item.sum())
            left = int(both.sum())
            if left < size:
                self.at = self.xp.flatnonzero(both) if self.at is None else self.at[both]
                self.users, self.items = self.users[both], self.items[both]
            items = self.items if counted is None else self.items[counted[both]]
            return count(self.xp, items, self.distinct_items), by_item, size - by_item - left

    def _reads(self) -> list[Chunk]:
        """The partitions joined, as far as the ids of one column stay below the limit of a column."""
        most = int(self.text / max(_widths(self.chunks).values()))
        reads: list[Chunk] = []
        for chunk in self.chunks:
            if reads and reads[-1].rows + chunk.rows <= most:
                last = reads.pop()
                chunk = Chunk(last.index, last.pieces + chunk.pieces, last.rows + chunk.rows)
            reads.append(chunk)
        return reads

    def _joined(self, arrays: Sequence[Array]) -> Array:
        return arrays[0] if len(arrays) == 1 else self.xp.concatenate(arrays)

    @contextmanager
    def _step(self, title: str, rows: int) -> Iterator[None]:
        with self.engine.step(title, rows):
            yield
            if self.xp is not np:
                self.xp.cuda.get_current_stream().synchronize()  # or the next step would be charged for this one


def _write(task: tuple, *, ids: pa.Array) -> None:
    path, whose, offsets, codes, parts, ties = task
    write_rows(path, ids.take(pa.array(whose)), offsets - offsets[0], codes.astype(np.int64), parts, ties)
