"""The split of an update: all that is known is trained on, but what some of the day's users did on the day.

Half of these users make the split `valid` and half the split `test`. Beside them stands what yesterday's model is asked
before anything of the day is trained on: each interaction of the day, after all that is before it.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmcfsr_merlin.dataset.names import (
    CODE,
    COUNT,
    DAY,
    FIRST_ITEM,
    ITEM,
    LAST_SEEN,
    RECENT,
    SEQUENCES,
    SPLITS,
    TIME,
    TRAIN_COUNT,
    VOCABULARY,
)
from llmcfsr_merlin.dataset.prepare.sequences import write_part, write_rows
from llmcfsr_merlin.dataset.prepare.splits import Parts, Written, gather, split_rows
from llmcfsr_merlin.dataset.prepare.time_cut import TimeCut
from llmcfsr_merlin.runtime.errors import InputError

_CUT = TimeCut(0, 0, "all")  # segments are given, its times are not read
DAY_COUNTS = ["day_users", "day_targets", "valid_rows", "test_rows"]


class Day(NamedTuple):
    """held_out: share of the day's users whose day is held out. seed: of their choice, which changes daily.
    min_item, catalogue: which unknown items become known, by their interactions and by raw id."""

    held_out: float
    seed: str
    min_item: int = 1
    catalogue: Sequence[str] = ()


def write_day(
    out: Path,
    part: str,
    names: pa.Array,
    offsets: np.ndarray,
    values: np.ndarray,
    grown: np.ndarray,
    max_length: int,
    day: Day,
    ties: np.ndarray | None = None,
) -> tuple[Written, dict[str, int]]:
    """Write one part as write_part does, and of DAY and RECENT; returns what was written and DAY_COUNTS.

    grown: int64 [users], how many of each user's last interactions are of the day. ties: as for write_part.
    """
    lengths = np.diff(offsets)
    owner = np.repeat(np.arange(len(names)), lengths)
    segment = np.zeros(len(values), np.int8)
    # A user's first interaction ever has no history that it could be told from.
    before = np.maximum(lengths - grown, 1)
    drawn = np.array([_draw(name, day.seed) for name in names.to_pylist()]).reshape(-1)
    chosen = (grown > 0) & (lengths > before) & (drawn < day.held_out)
    of_day = np.arange(len(values)) - offsets[:-1][owner] >= before[owner]
    segment[of_day & chosen[owner]] = np.where(drawn < day.held_out / 2, 1, 2)[owner][of_day & chosen[owner]]
    written = write_part(out, part, names, offsets, values, max_length, _CUT, segment, ties)
    asked = np.flatnonzero((grown > 0) & (lengths > before))
    if len(asked):
        some = np.isin(owner, asked)
        ends = np.r_[0, np.cumsum(lengths[asked])]
        parts = Parts(before[asked], before[asked], "all")
        write_rows(out / DAY / SEQUENCES / part, names.take(pa.array(asked)), ends, values[some], parts)
    rows = split_rows(np, SPLITS[0], offsets[:-1], owner, segment, "last", max_length)
    recent = ((grown > 0) & ~chosen)[rows.owner]
    rows = type(rows)(rows.owner[recent], rows.start[recent], rows.stop[recent])
    if len(rows.owner):
        where, starts = gather(np, rows)
        write_rows(out / RECENT / part, names.take(pa.array(rows.owner)), starts, values[where])
    counts = {
        "day_users": int((grown > 0).sum()), "day_targets": int((lengths - before)[asked].sum()),
        "valid_rows": written.rows["valid"], "test_rows": written.rows["test"],
    }  # fmt: skip
    return written, counts


def _draw(user: str, seed: str) -> float:
    """A number in [0, 1) that depends on the user and the day alone."""
    digest = hashlib.blake2b(user.encode(), digest_size=8, key=seed.encode()[:64]).digest()
    return int.from_bytes(digest, "little") / 2**64


def check_day(report: dict) -> None:
    """InputError if the day has nothing to validate or to test on."""
    if not report["valid_rows"] or not report["test_rows"]:
        raise InputError(
            f"expected enough users of the day to hold out some for validation and some for test, found "
            f"{report['day_users']:,} users, of whom {report['valid_rows']} and {report['test_rows']} are held out: "
            "collect a longer day, or raise update.held_out"
        )


def write_vocabulary_before(out: Path, ids: pa.Array, counts: np.ndarray, known: pa.Table) -> None:
    """Write the vocabulary of DAY: all items, with the counts of before the day, zero for new ones."""
    more = np.zeros(len(ids) - len(known), np.int64)
    columns = {name: np.r_[known[name].to_numpy(), more] for name in (COUNT, TRAIN_COUNT)}
    code = np.arange(FIRST_ITEM, FIRST_ITEM + len(ids))
    pq.write_table(pa.table({ITEM: ids, CODE: code, **columns}), out / DAY / VOCABULARY)


def last_seen(prepared: Path, ingested: Path) -> pa.Table:
    """ITEM (raw) and TIME (unix seconds) of each item's last interaction in a run: as an update wrote them, else from
    the run's own log. `prepared`, `ingested`: its folders `prepare` and `ingest/interactions`."""
    if (Path(prepared) / LAST_SEEN).is_file():
        return pq.read_table(Path(prepared) / LAST_SEEN)
    parts = [pq.read_table(path, columns=[ITEM, TIME]) for path in sorted(Path(ingested).glob("part-*.parquet"))]
    return _latest(parts)


def write_last_seen(previous: pa.Table, interactions: Path, out: Path) -> None:
    """Write LAST_SEEN into `out`: that of yesterday, and the day's log."""
    parts = [pq.read_table(path, columns=[ITEM, TIME]) for path in sorted(Path(interactions).glob("part-*.parquet"))]
    pq.write_table(_latest([previous, *parts]), out / LAST_SEEN)


def _latest(parts: Sequence[pa.Table]) -> pa.Table:
    kinds = pa.schema([(ITEM, pa.string()), (TIME, pa.int64())])
    every = pa.concat_tables([part.select([ITEM, TIME]).cast(kinds) for part in parts])
    latest = every.group_by(ITEM).aggregate([(TIME, "max")])
    return pa.table({ITEM: latest[ITEM], TIME: latest[f"{TIME}_max"]})


def retired_items(
    ids: Sequence[str], seen: pa.Table, *, catalogue: Sequence[str] | None = None, days: int | None = None
) -> np.ndarray:
    """Encoded ids (int64, ascending) of the items that left: not in `catalogue` (raw ids; None: all stay), or not seen
    for `days` before the newest interaction. seen: as of last_seen()."""
    every = pa.array(ids, pa.string())
    gone = np.zeros(len(ids), bool)
    if catalogue is not None:
        gone |= ~pc.is_in(every, value_set=pa.array(catalogue, pa.string())).to_numpy(zero_copy_only=False)
    if days is not None:
        place = pc.index_in(every, value_set=seen[ITEM].combine_chunks())
        times = seen[TIME].to_numpy()
        found = place.is_valid().to_numpy(zero_copy_only=False)
        # An item that nobody had yet is new, not old.
        last = np.where(found, times[place.fill_null(0).to_numpy()], times.max())
        gone |= last < times.max() - days * 86_400
    return np.flatnonzero(gone) + FIRST_ITEM
