"""Extends a prepared run by a new day: encoded ids stay, new items are appended, only touched parts are rewritten."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather as feather
import pyarrow.parquet as pq

from llmcfsr_merlin.config.prepare_settings import PrepareConfig
from llmcfsr_merlin.dataset.names import (
    COUNT,
    DAY,
    FIRST_ITEM,
    ITEM,
    RECENT,
    SCHEMA,
    SEQUENCES,
    SPLITS,
    TIED,
    TRAIN_COUNT,
    TRAIN_ITEMS,
    USER,
    VOCABULARY,
    WORKFLOW,
)
from llmcfsr_merlin.dataset.prepare.adapters import adapter
from llmcfsr_merlin.dataset.prepare.arrays import load_array, save_array
from llmcfsr_merlin.dataset.prepare.day import DAY_COUNTS, Day, check_day, write_day, write_vocabulary_before
from llmcfsr_merlin.dataset.prepare.partitions import plan_chunks
from llmcfsr_merlin.dataset.prepare.prepare import finish, shuffle
from llmcfsr_merlin.dataset.prepare.sequences import train_counts, write_part
from llmcfsr_merlin.dataset.prepare.ties import tied
from llmcfsr_merlin.runtime.engine import Engine, print_counts
from llmcfsr_merlin.runtime.errors import InputError


def extend(
    previous: Path,
    interactions: Path,
    out: Path,
    settings: PrepareConfig,
    engine: Engine,
    day: Day | None = None,
) -> dict:
    """Extend the sequences of `previous` (a finished `prepare` directory) by the log in `interactions`; returns counts.

    day: split as for an update (day.py), whichever way `previous` was split, instead of leave-one-out; users of one
    interaction and all items of day.catalogue are kept, an item of the log needs day.min_item.

    Items of `previous` keep their encoded ids; a new item gets the next one if the new log has it min_item times (more
    frequent first, then by raw id), else its rows are dropped. A new user needs min_sequence interactions in the new
    log. The new log is taken to be later than the old one. Parts without a touched user are copied as they are.
    Raises InputError if `previous` is not a prepared run or its max_length differs.
    """
    previous, out = Path(previous), Path(out)
    parts = sorted((previous / SEQUENCES).glob("part-*.parquet"))
    if not parts or not (previous / VOCABULARY).is_file():
        raise InputError(f"prepare.extend: expected a finished prepare directory, found none in {previous}")
    if day is None and TRAIN_ITEMS in pq.read_schema(parts[0]).names:
        raise InputError(
            f"prepare.extend continues a leave-one-out run, found {previous} split in time: prepare the whole log again"
        )
    merlin = adapter()
    longest = merlin.longest_row(previous / SCHEMA)
    if longest != settings.max_length + 1:
        raise InputError(
            f"prepare.extend: expected max_length {longest - 1} as in {previous}, found "
            f"{settings.max_length}: set prepare.max_length to it, or prepare the whole log again"
        )
    known = pq.read_table(previous / VOCABULARY)
    firsts = [pq.ParquetFile(path).read_row_group(0, columns=[USER])[USER][0].as_py() for path in parts]
    chunks, _ = plan_chunks(interactions, engine.partition_rows, engine.workers)
    folder = out / ".shuffle"
    cuts = pa.array(firsts[1:], pa.string())
    nulls, raw, seen, buckets = shuffle(chunks, cuts, folder, engine, seed=settings.tie_seed)

    old_ids = known[ITEM].combine_chunks().cast(pa.string())
    at = pc.index_in(raw, value_set=old_ids).fill_null(-1).to_numpy().astype(np.int64)
    least = day.min_item if day is not None else 1 if settings.filter == "none" else settings.min_item
    offered = None if day is None else pa.array(day.catalogue, pa.string())
    wanted = seen >= least
    if offered is not None:
        wanted |= pc.is_in(raw, value_set=offered).to_numpy(zero_copy_only=False)
    fresh = np.flatnonzero((at < 0) & wanted)
    fresh = fresh[np.argsort(-seen[fresh], kind="stable")]
    ids = pa.concat_arrays([old_ids, raw.take(pa.array(fresh))])
    if offered is not None:  # without an interaction so far: recommended by their text
        ids = pa.concat_arrays([ids, offered.filter(pc.invert(pc.is_in(offered, value_set=ids)))])
    code_of = np.where(at >= 0, at + FIRST_ITEM, 0)
    code_of[fresh] = np.arange(len(old_ids), len(old_ids) + len(fresh)) + FIRST_ITEM
    merlin.categorify(ids.to_pandas(), out / WORKFLOW)
    save_array(folder / "codes.npy", code_of)

    for name in (SEQUENCES, *SPLITS, *(() if day is None else (DAY, RECENT))):
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).mkdir()
    touched = {int(bucket.name): bucket for bucket in buckets}
    tasks = [(path, touched.get(number), out) for number, path in enumerate(parts)]
    work = partial(_merge, codes=folder / "codes.npy", size=FIRST_ITEM + len(ids), settings=settings, day=day)
    results = engine.map(work, tasks, "extend", int(seen.sum()))
    counts, train = (np.zeros(len(ids), np.int64) for _ in range(2))
    counts[: len(old_ids)] = known[COUNT].to_numpy()
    if day is None:  # else those of every part are counted anew
        train[: len(old_ids)] = known[TRAIN_COUNT].to_numpy()
    for result in results:
        counts += result["counts"][FIRST_ITEM:]
        train += result["train"][FIRST_ITEM:]
    numbers = ["users", "train_rows", "new_users", "touched_users", "dropped_items", "dropped_users"]
    numbers += [] if day is None else DAY_COUNTS
    sums = {name: sum(result[name] for result in results) for name in numbers}
    rows = sum(chunk.rows for chunk in chunks)
    report = {"rows_in": rows, **nulls, **sums, "new_items": len(ids) - len(old_ids), "rewritten_parts": len(touched)}
    report |= finish(out, ids, counts, train, sums["users"], sums["train_rows"], settings)
    if day is not None:
        check_day(report)
        write_vocabulary_before(out, ids, counts, known)
    shutil.rmtree(folder)
    print_counts("prepare, extended", list(report.items())[:-1])
    return report


def _merge(task: tuple, *, codes: Path, size: int, settings: PrepareConfig, day: Day | None) -> dict:
    """One part: old histories, each followed by its user's new interactions, and new users in their place."""
    path, bucket, out = task
    none = np.zeros(size, np.int64)
    if bucket is None and day is None:
        for name in (SEQUENCES, *SPLITS):
            source = path.parent.parent / name / path.name
            if source.is_file():
                shutil.copyfile(source, out / name / path.name)
        train = path.parent.parent / "train" / path.name
        return {
            "users": pq.read_metadata(path).num_rows,
            "train_rows": pq.read_metadata(train).num_rows if train.is_file() else 0,
            "new_users": 0, "touched_users": 0, "dropped_items": 0, "dropped_users": 0, "counts": none, "train": none,
        }  # fmt: skip
    table = pq.read_table(path).combine_chunks()
    old_users, lists = table[USER].chunk(0).cast(pa.string()), table[ITEM].chunk(0)
    old_offsets = np.r_[0, np.cumsum(lists.value_lengths().to_numpy())].astype(np.int64)
    old_values = lists.flatten().to_numpy()
    if bucket is None:
        user, values, moment = (np.zeros(0, np.int64) for _ in range(3))
        names = pa.array([], pa.string())
    else:
        moment = load_array(bucket / "moment.npy")
        user, values = load_array(bucket / "user.npy"), load_array(codes)[load_array(bucket / "item.npy")]
        names = feather.read_table(str(bucket / "users.arrow"))[USER].combine_chunks().cast(pa.string())
    known = pc.index_in(names, value_set=old_users).is_valid().to_numpy(zero_copy_only=False)
    real = values >= FIRST_ITEM
    least = settings.min_sequence if day is None else 1
    long_enough = known | (np.bincount(user[real], minlength=len(names)) >= least)
    kept = real & long_enough[user]
    every = pc.unique(pa.concat_arrays([old_users, names.filter(pa.array(long_enough))]))
    every = every.take(pc.sort_indices(every))
    old_place = pc.index_in(old_users, value_set=every).to_numpy()
    new_place = pc.index_in(names, value_set=every).fill_null(-1).to_numpy()[user[kept]]
    owner = np.concatenate([np.repeat(old_place, np.diff(old_offsets)), new_place])
    order = np.argsort(owner, kind="stable")
    merged, ties = np.concatenate([old_values, values[kept]])[order], None
    if TIED in table.schema.names:  # or the earlier run knew nothing of ties; a new day is later than all before it
        old_ties = table[TIED].chunk(0).flatten().to_numpy(zero_copy_only=False)
        ties = np.concatenate([old_ties, tied(np, moment[kept])])[order]
    offsets = np.r_[0, np.cumsum(np.bincount(owner, minlength=len(every)))]
    result = none.copy()
    of_day: dict[str, int] = {}
    if day is None:
        written = write_part(out, path.name, every, offsets, merged, settings.max_length, ties=ties)
        before = train_counts(old_offsets, old_values)
        result[: len(before)] -= before
    else:
        grown = np.bincount(new_place, minlength=len(every))
        written, of_day = write_day(out, path.name, every, offsets, merged, grown, settings.max_length, day, ties)
    result[: len(written.train)] += written.train
    return {
        "users": written.users, "train_rows": written.rows["train"], "new_users": written.users - len(old_users),
        "touched_users": int(known[np.unique(user[kept])].sum()), "dropped_items": int((~real).sum()),
        "dropped_users": int(real.sum() - kept.sum()), "counts": np.bincount(values[kept], minlength=size),
        "train": result, **of_day,
    }  # fmt: skip
