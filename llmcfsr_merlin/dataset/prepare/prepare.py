"""Interactions -> ids, sequences and splits (stage `prepare`).

NVTabular defines the result (nvtabular_adapter.py): Categorify assigns encoded ids, the sequence workflow defines the
schema and the rows; if it is not installed the result is the same (merlin_free.py). Its Categorify and Groupby
transform row by row in pandas (1.2 and 0.04 million rows/s per core), so each distinct id goes through the workflow
once and rows follow as integers: in a device's memory (in_memory.py), or through files (shuffle.py, filters.py,
sequences.py). Tests prove the result equal to the workflow's.
"""

import logging
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
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
    WORKFLOW,
)
from llmcfsr_merlin.dataset.prepare.adapters import adapter
from llmcfsr_merlin.dataset.prepare.arrays import save_array
from llmcfsr_merlin.dataset.prepare.filters import apply_filters, bucket_rounds
from llmcfsr_merlin.dataset.prepare.in_memory import InMemory, fits
from llmcfsr_merlin.dataset.prepare.partitions import Chunk, no_ids, plan_chunks, untimed
from llmcfsr_merlin.dataset.prepare.sequences import write_bucket
from llmcfsr_merlin.dataset.prepare.shuffle import merge_items, scatter, sort_bucket, user_boundaries
from llmcfsr_merlin.dataset.prepare.splits import Written
from llmcfsr_merlin.dataset.prepare.ties import tied_last_of, tied_report
from llmcfsr_merlin.dataset.prepare.time_cut import TimeCut, time_cut
from llmcfsr_merlin.runtime.device import open_device
from llmcfsr_merlin.runtime.engine import Engine, print_counts
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.stage import hash_json

_log = logging.getLogger(__name__)
_MUCH_CUT = 0.05  # of the training interactions: worth a warning


def prepare(interactions: Path, out: Path, settings: PrepareConfig, engine: Engine) -> dict:
    """Write the artefacts of stage `prepare` (dataset/names.py) into `out`; returns the counts for its manifest.

    interactions: folder of part-*.parquet with user_id, item_id (string), timestamp, row (int64). Rows without a user
    or an item are dropped and counted. The result does not depend on the input's partitioning or on the engine.
    Raises InputError for unreadable input and if a filter leaves nothing.
    """
    out, start = Path(out), time.perf_counter()
    folder = out / ".shuffle"
    out.mkdir(parents=True, exist_ok=True)
    chunks, size = plan_chunks(interactions, engine.partition_rows, engine.workers)
    rows = sum(chunk.rows for chunk in chunks)
    cut = time_cut(chunks, settings)
    cuts = user_boundaries(chunks, -(-rows // size), engine.workers)
    with ThreadPoolExecutor(1) as beside, ExitStack() as device:
        log: InMemory | _InFiles = _InFiles(chunks, cuts, engine, folder, cut, settings.tie_seed)
        repeats = settings.max_length + 1 if cut is not None and cut.targets == "all" else 0
        if fits(chunks, engine.device_memory, repeats):
            log = InMemory(chunks, cuts, engine, *device.enter_context(open_device(engine.device_memory)), cut=cut)
        beside.submit(adapter)  # importing Merlin takes seconds because it imports torch
        try:
            nulls, raw, counts, filtered = _filtered(log, settings)
        except (MemoryError, OverflowError):
            if isinstance(log, _InFiles):
                raise
            engine.say("the log does not fit into device memory after all: continuing with partitions on disk")
            log = _InFiles(chunks, cuts, engine, folder, cut, settings.tie_seed)
            device.close()
            nulls, raw, counts, filtered = _filtered(log, settings)
        disk = folder_size(folder)
        left = np.flatnonzero(counts)
        order = left[np.argsort(-counts[left], kind="stable")]  # ties by raw id, in which `raw` is sorted
        ids = raw.take(pa.array(order))
        code_of = np.zeros(len(raw), np.int64)
        code_of[order] = np.arange(FIRST_ITEM, FIRST_ITEM + len(order))
        proof = beside.submit(_categorify, ids, out / WORKFLOW)
        for name in (SEQUENCES, *SPLITS):  # parts of an interrupted run
            shutil.rmtree(out / name, ignore_errors=True)
        written = log.write(out, code_of, settings.max_length)
        proof.result()
    report = {"rows_in": rows, **nulls, **filtered, "partitions": len(chunks), "buckets": log.buckets}
    report["untimed"] = untimed(chunks)
    train = written.train[FIRST_ITEM:]
    report |= finish(out, ids, counts[order], train, written.users, written.rows["train"], settings)
    report["train_cut"] = written.cut
    if cut is not None:
        report["split"] = written.report(cut) | {"filter_by": settings.filter_by}
    if written.cut > _MUCH_CUT * train.sum():
        _log.warning(
            "prepare.max_length=%d leaves out %s of the training data, the oldest of long histories",
            settings.max_length, f"{written.cut / train.sum():.0%}",
        )  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    report |= {"shuffle_mb": disk >> 20, "output_mb": folder_size(out) >> 20}
    _print(report, settings, time.perf_counter() - start)
    return report


class _InFiles:
    """A log in partitions and buckets, files below `folder`: what InMemory does, for any size and on any engine."""

    def __init__(
        self, chunks: list[Chunk], cuts: pa.Array, engine: Engine, folder: Path, cut: TimeCut | None, seed: int | None
    ):
        self.chunks, self.cuts, self.engine, self.folder = chunks, cuts, engine, folder
        self.cut, self.seed = cut, seed

    @property
    def buckets(self) -> int:
        return len(self._buckets)

    def load(self) -> tuple[dict[str, int], pa.Array, np.ndarray]:
        nulls, raw, counts, self._buckets = shuffle(
            self.chunks, self.cuts, self.folder, self.engine, self.cut, self.seed
        )
        return nulls, raw, counts

    def filter(self, counts: np.ndarray, settings: PrepareConfig) -> tuple[np.ndarray, dict]:
        drop = bucket_rounds(self._buckets, len(counts), self.engine)
        counts, report = apply_filters(drop, counts, settings, int(counts.sum()))
        self._left = int(counts.sum())
        report |= tied_report(self.engine.map(tied_last_of, self._buckets, "ties", self._left))
        return counts, report

    def write(self, out: Path, code_of: np.ndarray, max_length: int) -> Written:
        codes = self.folder / "codes.npy"
        save_array(codes, code_of)
        write = partial(write_bucket, out=out, codes=codes, max_length=max_length, cut=self.cut)
        parts = self.engine.map(write, self._buckets, "write", self._left)
        return Written.total(parts, int(code_of.max()) + 1)


def _filtered(log: InMemory | _InFiles, settings: PrepareConfig) -> tuple[dict, pa.Array, np.ndarray, dict]:
    nulls, raw, counts = log.load()
    return nulls, raw, *log.filter(counts, settings)  # type: ignore[arg-type]  # each bucket goes back to its task


def _categorify(ids: pa.Array, save: Path) -> None:
    """Encode the items with NVTabular and save its workflow; raises if its ids are not those of the rows."""
    adapter().categorify(ids.to_pandas(), save)


def shuffle(
    chunks: list[Chunk],
    cuts: pa.Array,
    folder: Path,
    engine: Engine,
    cut: TimeCut | None = None,
    seed: int | None = None,
) -> tuple[dict[str, int], pa.Array, np.ndarray, list[Path]]:
    """Bring each user's interactions together, in time order, in one bucket of `folder`; users are cut at `cuts`.

    cut: the times of a temporal split, whose segments are kept beside the users and items. seed: of the order of equal
    times; None: that of the source. Returns the rows dropped for null ids, all raw item ids in order, their counts, and
    the buckets. A stopped run is continued if it used the same partitions and settings. Raises InputError if
    every id is null.
    """
    rows = sum(chunk.rows for chunk in chunks)
    times = cut and (cut.valid_from, cut.test_from)
    plan = hash_json([[chunk.pieces for chunk in chunks], cuts.to_pylist(), times, seed])
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
    engine.map(partial(sort_bucket, gpu=engine.gpu, cut=cut, seed=seed), buckets, "sort", rows)
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
    """Write vocabulary and schema; returns the counts of what came out. InputError if no row can be trained on."""
    if train_rows == 0:
        least = "4 interactions to train on (2 are held out)"
        if settings.split == "temporal":
            least = "2 interactions before validation to train on"
        raise InputError(
            f"expected a user with at least {least}, found none of {users:,}: lower prepare.min_item or read more data"
        )
    code = np.arange(FIRST_ITEM, FIRST_ITEM + len(ids))
    pq.write_table(pa.table({ITEM: ids, CODE: code, COUNT: counts, TRAIN_COUNT: train}), out / VOCABULARY)
    adapter().write_split_schema(len(ids), settings.max_length, out / SCHEMA)
    total = int(counts.sum())
    return {
        "users": users,
        "items": len(ids),
        "interactions": total,
        "mean_length": round(total / users, 3),
        "sparsity": round(1 - total / (users * len(ids)), 6),
        "train_rows": train_rows,
        "workflow": "saved" if (out / WORKFLOW).is_dir() else "left out: NVTabular is not installed",
        "vocabulary": hash_json(ids.to_pylist()),
    }


def folder_size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def _print(report: dict, settings: PrepareConfig, seconds: float) -> None:
    lines: list[tuple[str, object]] = [("interactions in", report["rows_in"])]
    lines += [(f"without {what} id", -report[f"null_{what}s"]) for what in ("user", "item") if report[f"null_{what}s"]]
    where = " before validation" if settings.filters_train else ""
    for entry in report["filter"]:
        title = f"{settings.filter}, round {entry['round']}"
        lines.append((f"{title}: item < {settings.min_item}{where}", -entry["items"]))
        lines.append((f"{title}: user < {settings.min_user}{where}", -entry["users"]))
    if not settings.filters_train:
        lines.append((f"history < {settings.min_sequence}", -report["min_sequence"]))
    lines.append(("interactions out", report["interactions"]))
    lines += [(name, report[name]) for name in ("users", "items", "mean_length", "sparsity", "train_rows", "workflow")]
    cut = f"{report['train_cut']:,} interactions" if report["train_cut"] else "nothing"
    lines.append((f"training data cut by max_length={settings.max_length}", cut))
    for name, part in report.get("split", {}).items():
        counts = part if isinstance(part, dict) else {"": part}
        lines += [(f"{name} {what}".replace("_", " ").strip(), count) for what, count in counts.items()]
    tied = " / ".join(f"{report[name]:,}" for name in ("tied_last_two", "tied_last_three"))
    lines.append(("users whose last two / three share one time", tied))
    if report["untimed"]:
        lines.append(("times", "none: positions in an order"))
    lines.append(("interactions in a second", int(report["rows_in"] / seconds)))
    lines.append(("disk, for a while / to stay", f"{report['shuffle_mb']:,} / {report['output_mb']:,} MiB"))
    print_counts("prepare", lines)
