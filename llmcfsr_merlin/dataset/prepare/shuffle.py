"""Interactions of any partitioning -> buckets of whole users, sorted by user, time and row.

The shuffle uses files: memory stays at one partition per worker however long the log is, and a finished piece is
not computed again. Numbers live on the device (numpy or cupy); the distinct ids of a partition live in Arrow.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather as feather
import pyarrow.parquet as pq

from llmcfsr_merlin.dataset.names import COUNT, ITEM, ROW, SUBSECOND, TIME, USER
from llmcfsr_merlin.dataset.prepare.arrays import load_array, save_array
from llmcfsr_merlin.dataset.prepare.order import order_rows
from llmcfsr_merlin.dataset.prepare.partitions import Chunk, read_partition
from llmcfsr_merlin.dataset.prepare.ties import moments, tie_keys
from llmcfsr_merlin.dataset.prepare.time_cut import TimeCut
from llmcfsr_merlin.runtime.device import libraries, to_host
from llmcfsr_merlin.runtime.files import whole


def user_boundaries(chunks: list[Chunk], buckets: int, threads: int = 1) -> pa.Array:
    """At most buckets - 1 user ids that cut the users, in id order, into buckets of about equal interactions.

    From a sample of the log: the cuts affect file sizes, never the rows or their order.
    """
    if buckets == 1:
        return pa.array([], pa.string())
    step = max(1, len(chunks) // 16)
    with ThreadPoolExecutor(threads) as pool:
        sample = list(pool.map(_users, [chunk.pieces[0] for chunk in chunks[::step]]))
    ids = pa.chunked_array([piece for column in sample for piece in column.cast(pa.string()).chunks], pa.string())
    ids = ids.drop_null().take(pa.array(np.arange(0, len(ids) - ids.null_count, max(1, len(ids) // 100_000))))
    if len(ids) == 0:
        return pa.array([], pa.string())
    ids = ids.take(pc.sort_indices(ids)).combine_chunks()
    cuts = ids.take(pa.array(np.unique(np.arange(1, buckets) * len(ids) // buckets)))
    return cuts.unique()


def _users(piece: tuple[str, int]) -> pa.ChunkedArray:
    path, group = piece
    return pq.ParquetFile(path).read_row_group(group, columns=[USER])[USER]


def scatter(chunk: Chunk, *, folder: Path, boundaries: pa.Array, gpu: bool) -> dict:
    """Write a partition's rows into one file per bucket; returns what the global item table needs.

    Files: folder/<bucket>/<chunk>.rows (user, item: positions among this partition's ids; time; row; subsecond if
    any is not 0) and .users, then
    folder/<chunk>.items (the partition's distinct items and their counts), which says that the chunk is done.
    Returns null_users, null_items: rows left out.
    """
    done = Path(folder) / f"{chunk.index:05d}.items"
    if done.is_file():
        return {name.decode(): int(value) for name, value in feather.read_table(str(done)).schema.metadata.items()}
    columns = read_partition(chunk, gpu)
    users, items = columns.user_ids, columns.item_ids
    null_user, null_item = columns.user < 0, columns.item < 0
    keep = ~(null_user | null_item)
    bucket_of = np.zeros(len(users), np.uint16)
    few = len(boundaries) < 48  # Arrow's loop is the faster one up to there, and leaves other threads the interpreter
    for boundary in boundaries if few else ():
        bucket_of += pc.greater_equal(users, boundary).to_numpy(zero_copy_only=False)
    if not few:
        cuts, names = (ids.to_numpy(zero_copy_only=False) for ids in (boundaries, users))
        bucket_of = np.searchsorted(cuts, names, "right").astype(np.uint16)
    xp = columns.xp
    user, item, time, row = (
        values[keep] if not bool(keep.all()) else values
        for values in (columns.user, columns.item, columns.time, columns.row)
    )
    bucket = xp.asarray(bucket_of)[user]
    # numpy's stable sort of small integers is its fastest; cupy has one sort and in older versions no such argument.
    kind = {"kind": "stable"} if xp is np else {}
    order = xp.argsort(bucket, **kind) if len(boundaries) else slice(None)
    ends = xp.cumsum(xp.bincount(bucket, minlength=len(boundaries) + 1)).tolist()
    place = np.empty(len(users), np.int32)  # position of a user among its bucket's users
    user, item, time, row = (to_host(values[order]) for values in (user, item, time, row))
    subsecond = None if columns.subsecond is None else to_host(columns.subsecond[keep][order])
    start = 0
    for number, end in enumerate(ends):
        if end > start:
            here = np.flatnonzero(bucket_of == number)
            place[here] = np.arange(len(here), dtype=np.int32)
            target = Path(folder) / f"{number:05d}"
            target.mkdir(parents=True, exist_ok=True)
            rows = {USER: place[user[start:end]], ITEM: item[start:end], TIME: time[start:end], ROW: row[start:end]}
            if subsecond is not None:
                rows[SUBSECOND] = subsecond[start:end]
            table = pa.table(rows)
            feather.write_feather(table, str(target / f"{chunk.index:05d}.rows"), compression="lz4")
            feather.write_feather(
                pa.table({USER: users.take(pa.array(here))}),
                str(target / f"{chunk.index:05d}.users"),
                compression="lz4",
            )
        start = end
    counts = np.bincount(item, minlength=len(items)).astype(np.int64)
    dropped = {"null_users": int(null_user.sum()), "null_items": int((null_item & ~null_user).sum())}
    table = pa.table({ITEM: items, COUNT: counts})
    table = table.replace_schema_metadata({name: str(value) for name, value in dropped.items()})
    with whole(done) as temporary:
        feather.write_feather(table, str(temporary), compression="lz4")
    return dropped


def merge_items(folder: Path, chunks: list[Chunk]) -> tuple[pa.Array, np.ndarray]:
    """All items of the log, sorted by raw id, and their interactions (int64).

    Writes folder/<chunk>.map.npy: int32, a partition's item positions -> positions in the result.
    """
    tables = [feather.read_table(str(Path(folder) / f"{chunk.index:05d}.items")) for chunk in chunks]
    column = pa.concat_tables(tables)
    encoded = pa.concat_arrays(column[ITEM].cast(pa.string()).chunks).dictionary_encode()
    order = pc.sort_indices(encoded.dictionary)
    places = _rank(order)[encoded.indices.to_numpy()]
    counts = np.zeros(len(order), np.int64)
    np.add.at(counts, places, column[COUNT].to_numpy())
    start = 0
    for chunk, table in zip(chunks, tables):
        save_array(Path(folder) / f"{chunk.index:05d}.map.npy", places[start : start + len(table)])
        start += len(table)
    return encoded.dictionary.take(order), counts


def _rank(order: pa.Array) -> np.ndarray:
    """Inverse of a permutation, int32."""
    rank = np.empty(len(order), np.int32)
    rank[order.to_numpy()] = np.arange(len(order), dtype=np.int32)
    return rank


def sort_bucket(bucket: Path, *, gpu: bool, cut: TimeCut | None = None, seed: int | None = None) -> None:
    """Join a bucket's pieces, sort by (user, time, subsecond, row) and keep what the filters and the writer need.

    Writes user.npy (int32, position among users.arrow, which is sorted by id), moment.npy (int32, ties.moments), if
    the log is cut in time segment.npy (int8, as TimeCut.segments), and item.npy (int32, position in the result of
    merge_items). seed: of the order of equal times; None: by row.
    """
    bucket = Path(bucket)
    if (bucket / "item.npy").is_file():
        return
    pieces = sorted(bucket.glob("*.rows"))
    tables = [feather.read_table(str(path), memory_map=False) for path in pieces]
    names = [feather.read_table(str(path.with_suffix(".users")))[USER].cast(pa.string()) for path in pieces]
    encoded = pa.concat_arrays([piece for column in names for piece in column.chunks]).dictionary_encode()
    order = pc.sort_indices(encoded.dictionary)
    places = _rank(order)[encoded.indices.to_numpy()]
    feather.write_feather(
        pa.table({USER: encoded.dictionary.take(order)}), str(bucket / "users.arrow"), compression="lz4"
    )
    user, item, start = [], [], 0
    for path, table, column in zip(pieces, tables, names):
        user.append(places[start : start + len(column)][table[USER].to_numpy()])
        item.append(load_array(bucket.parent / f"{path.stem}.map.npy")[table[ITEM].to_numpy()])
        start += len(column)
    user, item = np.concatenate(user), np.concatenate(item)
    time, row = (np.concatenate([table[name].to_numpy() for table in tables]) for name in (TIME, ROW))
    subsecond = None
    if any(SUBSECOND in table.column_names for table in tables):
        subsecond = np.concatenate([
            table[SUBSECOND].to_numpy() if SUBSECOND in table.column_names else np.zeros(len(table)) for table in tables
        ])  # fmt: skip
    if gpu:
        _, cupy = libraries()
        users, times, parts = (None if keys is None else cupy.asarray(keys) for keys in (user, time, subsecond))
        by_time = to_host(order_rows(cupy, users, times, parts, tie_keys(cupy, cupy.asarray(row), seed)))
    else:
        by_time = order_rows(np, user, time, subsecond, tie_keys(np, row, seed))
    user = user[by_time]
    save_array(bucket / "user.npy", user)
    moment = moments(np, user, time[by_time], None if subsecond is None else subsecond[by_time])
    save_array(bucket / "moment.npy", moment)
    if cut is not None:
        save_array(bucket / "segment.npy", cut.segments(time[by_time]))
    save_array(bucket / "item.npy", item[by_time])  # written last: marks the bucket as sorted
    for path in pieces:
        path.unlink()
        path.with_suffix(".users").unlink()
