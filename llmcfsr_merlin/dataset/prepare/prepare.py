"""Interactions -> ids, sequences and splits (stage `prepare`).

NVTabular decides what the result is (nvtabular_adapter.py): Categorify gives the codes, and the sequence workflow the
schema and the rows. Its Categorify and Groupby transform row by row in pandas (1.2 and 0.04 million rows/s a core), so
each distinct id goes through the workflow once and rows follow as integers: in a device's memory (in_memory.py), or
through files (shuffle.py, filters.py, sequences.py). Tests prove the result equal to the workflow's.
"""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmcfsr_merlin.config.prepare_settings import PrepareConfig
from llmcfsr_merlin.dataset.names import (
    CODE,
    COUNT,
    FIRST_ITEM,
    ITEM,
    SCHEMA,
    SEQUENCES,
    SPLITS,
    TRAIN_COUNT,
    VOCABULARY,
)
from llmcfsr_merlin.dataset.prepare.arrays import save_array
from llmcfsr_merlin.dataset.prepare.filters import apply_filters, bucket_rounds
from llmcfsr_merlin.dataset.prepare.in_memory import InMemory, fits
from llmcfsr_merlin.dataset.prepare.partitions import Chunk, no_ids, plan_chunks, untimed
from llmcfsr_merlin.dataset.prepare.sequences import write_bucket
from llmcfsr_merlin.dataset.prepare.shuffle import merge_items, scatter, sort_bucket, user_boundaries
from llmcfsr_merlin.dataset.prepare.ties import tied_last_of, tied_report
from llmcfsr_merlin.runtime.device import open_device
from llmcfsr_merlin.runtime.engine import Engine, print_counts
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.stage import hash_json

_ADAPTER = "llmcfsr_merlin.dataset.prepare.nvtabular_adapter"


def prepare(interactions: Path, out: Path, settings: PrepareConfig, engine: Engine) -> dict:
    """Write the artefacts of stage `prepare` (dataset/names.py) into `out`; returns the counts for its manifest.

    interactions: folder of part-*.parquet with user_id, item_id (string), timestamp, row (int64). Rows without a user
    or an item are dropped and counted. The result does not depend on the input's partitioning or on the engine.
    Raises InputError for unreadable input and where a filter leaves nothing.
    """
    out, start = Path(out), time.perf_counter()
    folder = out / ".shuffle"
    out.mkdir(parents=True, exist_ok=True)
    chunks, size = plan_chunks(interactions, engine.partition_rows, engine.workers)
    rows = sum(chunk.rows for chunk in chunks)
    cuts = user_boundaries(chunks, -(-rows // size), engine.workers)
    with ThreadPoolExecutor(1) as beside, ExitStack() as device:
        log: InMemory | _InFiles = _InFiles(chunks, cuts, engine, folder, settings.tie_seed)
        if fits(chunks, engine.device_memory):
            log = InMemory(chunks, cuts, engine, *device.enter_context(open_device(engine.device_memory)))
        beside.submit(import_module, _ADAPTER)  # Merlin takes seconds to import, for it brings torch
        try:
            nulls, raw, counts, filtered = _filtered(log, settings)
        except (MemoryError, OverflowError):
            if isinstance(log, _InFiles):
                raise
            engine.say("the log does not fit the device after all: through files, in partitions")
            log = _InFiles(chunks, cuts, engine, folder, settings.tie_seed)
            device.close()
            nulls, raw, counts, filtered = _filtered(log, settings)
        disk = folder_size(folder)
        left = np.flatnonzero(counts)
        order = left[np.argsort(-counts[left], kind="stable")]  # ties by raw id, in which `raw` is sorted
        ids = raw.take(pa.array(order))
        code_of = np.zeros(len(raw), np.int64)
        code_of[order] = np.arange(FIRST_ITEM, FIRST_ITEM + len(order))
        proof = beside.submit(_categorify, ids, out / "workflow")
        for name in (SEQUENCES, *SPLITS):  # parts of a stopped run
            shutil.rmtree(out / name, ignore_errors=True)
        users, train_rows, train = log.write(out, code_of, settings.max_length)
        proof.result()
    report = {"rows_in": rows, **nulls, **filtered, "partitions": len(chunks), "buckets": log.buckets}
    report["untimed"] = untimed(chunks)
    report |= finish(out, ids, counts[order], train[FIRST_ITEM:], users, train_rows, settings)
    shutil.rmtree(folder, ignore_errors=True)
    report |= {"shuffle_mb": disk >> 20, "output_mb": folder_size(out) >> 20}
    _print(report, settings, time.perf_counter() - start)
    return report


class _InFiles:
    """A log in partitions and buckets, files below `folder`: what InMemory does, for any size and on any engine."""

    def __init__(self, chunks: list[Chunk], cuts: pa.Array, engine: Engine, folder: Path, seed: int | None):
        self.chunks, self.cuts, self.engine, self.folder, self.seed = chunks, cuts, engine, folder, seed

    @property
    def buckets(self) -> int:
        return len(self._buckets)

    def load(self) -> tuple[dict[str, int], pa.Array, np.ndarray]:
        nulls, raw, counts, self._buckets = shuffle(self.chunks, self.cuts, self.folder, self.engine, self.seed)
        return nulls, raw, counts

    def filter(self, counts: np.ndarray, settings: PrepareConfig) -> tuple[np.ndarray, dict]:
        drop = bucket_rounds(self._buckets, len(counts), self.engine)
        counts, report = apply_filters(drop, counts, settings, int(counts.sum()))
        self._left = int(counts.sum())
        report |= tied_report(self.engine.map(tied_last_of, self._buckets, "ties", self._left))
        return counts, report

    def write(self, out: Path, code_of: np.ndarray, max_length: int) -> tuple[int, int, np.ndarray]:
        codes = self.folder / "codes.npy"
        save_array(codes, code_of)
        write = partial(write_bucket, out=out, codes=codes, max_length=max_length)
        parts = self.engine.map(write, self._buckets, "write", self._left)
        train = np.zeros(int(code_of.max()) + 1, np.int64)
        for _, _, seen in parts:
            train[: len(seen)] += seen
        users, train_rows = (sum(part[position] for part in parts) for position in (0, 1))
        return users, train_rows, train


def _filtered(log: InMemory | _InFiles, settings: PrepareConfig) -> tuple[dict, pa.Array, np.ndarray, dict]:
    nulls, raw, counts = log.load()
    return nulls, raw, *log.filter(counts, settings)


def _categorify(ids: pa.Array, save: Path) -> None:
    """Have NVTabular number the items, and save its workflow: it raises where its codes are not those of the rows."""
    import_module(_ADAPTER).categorify(ids.to_pandas(), save)


def shuffle(
    chunks: list[Chunk], cuts: pa.Array, folder: Path, engine: Engine, seed: int | None = None
) -> tuple[dict[str, int], pa.Array, np.ndarray, list[Path]]:
    """Bring each user's interactions together, in time order, in one bucket of `folder`; users are cut at `cuts`.

    seed: of the order of equal times; None: that of the source. Returns the rows dropped for null ids, all raw item
    ids in order, their counts, and the buckets. A stopped run is continued where it used the same partitions and seed.
    Raises InputError where every id is null.
    """
    rows = sum(chunk.rows for chunk in chunks)
    plan = hash_json([[chunk.pieces for chunk in chunks], cuts.to_pylist(), seed])
    if not (folder / plan).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / plan).touch()
    dropped = engine.map(partial(scatter, folder=folder, boundaries=cuts, gpu=engine.gpu), chunks, "shuffle", rows)
    nulls = {name: sum(part[name] for part in dropped) for name in ("null_users", "null_items")}
    if sum(nulls.values()) == rows:
        raise no_ids(rows)
    raw, counts = merge_items(folder, chunks)
    buckets = sorted(path for path in folder.iterdir() if path.is_dir())
    engine.map(partial(sort_bucket, gpu=engine.gpu, seed=seed), buckets, "sort", rows)
    return nulls, raw, counts, buckets


def finish(
    out: Path,
    ids: pa.Array,
    counts: np.ndarray,
    train: np.ndarray,
    users: int,
    train_rows: int,
    settings: PrepareConfig,
) -> dict:
    """Write vocabulary and schema; returns the counts of what came out. InputError where no row can be trained on."""
    from llmcfsr_merlin.dataset.prepare.nvtabular_adapter import split_schema, write_schema

    if train_rows == 0:
        raise InputError(
            f"expected a user with at least 4 interactions to train on (2 are held out), found none of {users:,}: "
            "lower prepare.min_item or read more data"
        )
    code = np.arange(FIRST_ITEM, FIRST_ITEM + len(ids))
    pq.write_table(pa.table({ITEM: ids, CODE: code, COUNT: counts, TRAIN_COUNT: train}), out / VOCABULARY)
    write_schema(split_schema(len(ids), settings.max_length), out / SCHEMA)
    total = int(counts.sum())
    return {
        "users": users,
        "items": len(ids),
        "interactions": total,
        "mean_length": round(total / users, 3),
        "sparsity": round(1 - total / (users * len(ids)), 6),
        "train_rows": train_rows,
        "vocabulary": hash_json(ids.to_pylist()),
    }


def folder_size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def _print(report: dict, settings: PrepareConfig, seconds: float) -> None:
    lines: list[tuple[str, object]] = [("interactions in", report["rows_in"])]
    lines += [(f"without {what} id", -report[f"null_{what}s"]) for what in ("user", "item") if report[f"null_{what}s"]]
    for entry in report["filter"]:
        lines.append((f"{settings.filter}, round {entry['round']}: item < {settings.min_item}", -entry["items"]))
        lines.append((f"{settings.filter}, round {entry['round']}: user < {settings.min_user}", -entry["users"]))
    lines.append((f"history < {settings.min_sequence}", -report["min_sequence"]))
    lines.append(("interactions out", report["interactions"]))
    lines += [(name, report[name]) for name in ("users", "items", "mean_length", "sparsity", "train_rows")]
    tied = " / ".join(f"{report[name]:,}" for name in ("tied_last_two", "tied_last_three"))
    lines.append(("users whose last two / three share one time", tied))
    if report["untimed"]:
        lines.append(("times", "none: positions in an order"))
    lines.append(("interactions in a second", int(report["rows_in"] / seconds)))
    lines.append(("disk, for a while / to stay", f"{report['shuffle_mb']:,} / {report['output_mb']:,} MiB"))
    print_counts("prepare", lines)
