"""Interactions -> ids, sequences, splits and Merlin schemas, by NVTabular.

NVTabular decides what the result is: Categorify gives the codes, and the sequence workflow (Groupby, ListSlice) the
schema and the rows. Its Categorify and Groupby transform row by row in pandas (1.5 and 0.1 million rows/s a core), so
each distinct id goes through the workflow once and rows follow as integers (data/shuffle.py, data/sequences.py); tests
prove the result equal to the workflow's.
"""

import shutil
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from llmcfsr_merlin.cluster import Engine, print_counts
from llmcfsr_merlin.config import PrepareConfig
from llmcfsr_merlin.contract import (
    CODE,
    COUNT,
    FIRST_ITEM,
    ITEM,
    RATING,
    ROW,
    SCHEMA,
    SEQUENCES,
    SPLITS,
    TIME,
    TRAIN_COUNT,
    USER,
    VOCABULARY,
)  # fmt: skip
from llmcfsr_merlin.data.arrays import save_array
from llmcfsr_merlin.data.filters import apply_filters
from llmcfsr_merlin.data.partitions import Chunk, plan_chunks
from llmcfsr_merlin.data.sequences import write_bucket
from llmcfsr_merlin.data.shuffle import merge_items, scatter, sort_bucket, user_boundaries
from llmcfsr_merlin.errors import InputError
from llmcfsr_merlin.stage import hash_json

with warnings.catch_warnings():  # that TensorFlow is not here
    warnings.simplefilter("ignore")
    import nvtabular as nvt
    from merlin.io import Dataset
    from merlin.schema import ColumnSchema, Schema, Tags
    from merlin.schema.io.tensorflow_metadata import TensorflowMetadata


def prepare(interactions: Path, out: Path, settings: PrepareConfig, engine: Engine) -> dict:
    """Write the artefacts of stage `prepare` (contract.py) into `out`; returns the counts for its manifest.

    interactions: folder of part-*.parquet with user_id, item_id (string), timestamp, row (int64). Rows without a user
    or an item are dropped and counted. The result does not depend on the input's partitioning or on the engine.
    Raises InputError for unreadable input and where a filter leaves nothing.
    """
    out, start = Path(out), time.perf_counter()
    folder = out / ".shuffle"
    chunks, size = plan_chunks(interactions, engine.partition_rows, engine.workers)
    rows = sum(chunk.rows for chunk in chunks)
    cuts = user_boundaries(chunks, -(-rows // size))
    nulls, raw, counts, buckets = shuffle(chunks, cuts, folder, engine)
    counts, filtered = apply_filters(buckets, counts, settings, engine, rows - sum(nulls.values()))
    disk = folder_size(folder)

    left = np.flatnonzero(counts)
    order = left[np.argsort(-counts[left], kind="stable")]  # ties by raw id, in which `raw` is sorted
    ids = raw.take(pa.array(order))
    code_of = np.zeros(len(raw), np.int64)
    code_of[order] = categorify(ids.to_pandas(), out / "workflow")
    save_array(folder / "codes.npy", code_of)
    for name in (SEQUENCES, *SPLITS):  # parts of a stopped run
        shutil.rmtree(out / name, ignore_errors=True)
    write = partial(write_bucket, out=out, codes=folder / "codes.npy", max_length=settings.max_length)
    parts = engine.map(write, buckets, "write", int(counts.sum()))
    train = np.zeros(FIRST_ITEM + len(ids), np.int64)
    for _, _, seen in parts:
        train[: len(seen)] += seen
    users, train_rows = (sum(part[position] for part in parts) for position in (0, 1))
    report = {"rows_in": rows, **nulls, **filtered, "partitions": len(chunks), "buckets": len(buckets)}
    report |= finish(out, ids, counts[order], train[FIRST_ITEM:], users, train_rows, settings)
    shutil.rmtree(folder)
    report |= {"shuffle_mb": disk >> 20, "output_mb": folder_size(out) >> 20}
    _print(report, settings, time.perf_counter() - start)
    return report


def shuffle(
    chunks: list[Chunk], cuts: pa.Array, folder: Path, engine: Engine
) -> tuple[dict[str, int], pa.Array, np.ndarray, list[Path]]:
    """Bring each user's interactions together, in time order, in one bucket of `folder`; users are cut at `cuts`.

    Returns the rows dropped for null ids, all raw item ids in order, their counts, and the buckets. A stopped run is
    continued where it used the same partitions. Raises InputError where every id is null.
    """
    rows = sum(chunk.rows for chunk in chunks)
    plan = hash_json([[chunk.pieces for chunk in chunks], cuts.to_pylist()])
    if not (folder / plan).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / plan).touch()
    dropped = engine.map(partial(scatter, folder=folder, boundaries=cuts, gpu=engine.gpu), chunks, "shuffle", rows)
    nulls = {name: sum(part[name] for part in dropped) for name in ("null_users", "null_items")}
    if sum(nulls.values()) == rows:
        raise InputError(f"expected user and item ids, found none in {rows:,} interactions: check data.columns")
    raw, counts = merge_items(folder, chunks)
    buckets = sorted(path for path in folder.iterdir() if path.is_dir())
    engine.map(partial(sort_bucket, gpu=engine.gpu), buckets, "sort", rows)
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
    if train_rows == 0:
        raise InputError(
            f"expected a user with at least 4 interactions to train on (2 are held out), found none of {users:,}: "
            "lower prepare.min_item or read more data"
        )
    code = np.arange(FIRST_ITEM, FIRST_ITEM + len(ids))
    pq.write_table(pa.table({ITEM: ids, CODE: code, COUNT: counts, TRAIN_COUNT: train}), out / VOCABULARY)
    schema = split_schema(len(ids), settings.max_length)
    TensorflowMetadata.from_merlin_schema(schema).to_proto_text_file(str(out), SCHEMA)
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


def categorify(ids: pd.Series, save: Path | None = None) -> np.ndarray:
    """Codes (int64) that NVTabular's Categorify gives to raw ids listed from the most frequent one on.

    The list is handed over because Categorify's own order of equally frequent items depends on the partitioning. The
    workflow is saved to `save` for users of merlin-systems; this project never loads it.
    """
    frame = pd.DataFrame({ITEM: ids.to_numpy()})
    with tempfile.TemporaryDirectory() as storage, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "CPU mode is experimental", at every Dataset
        workflow = nvt.Workflow([ITEM] >> nvt.ops.Categorify(vocabs={ITEM: frame[ITEM]}, out_path=storage))
        codes = workflow.fit_transform(Dataset(frame, cpu=True)).compute()[ITEM].to_numpy().astype(np.int64)
        if save is not None:
            workflow.save(str(save))
    if not np.array_equal(codes, np.arange(FIRST_ITEM, FIRST_ITEM + len(codes))):
        raise RuntimeError("this NVTabular numbers items differently from contract.FIRST_ITEM")
    return codes


def sequence_workflow(max_length: int) -> nvt.Workflow:
    """Encoded interactions (user_id, item_id code, timestamp, row) of ONE partition -> rows of the split `test`.

    The definition of the splits: prepare() writes the same rows (sequences.py) and takes its schema from here. Groupby
    works per partition and must not follow a filter: give it whole users, with a fresh index.
    """
    grouped = [USER, ITEM, TIME, ROW] >> nvt.ops.Groupby(
        groupby_cols=[USER], sort_cols=[TIME, ROW], aggs={ITEM: ["list"]}, name_sep="."
    )
    items = grouped[f"{ITEM}.list"] >> nvt.ops.Rename(name=ITEM) >> nvt.ops.ListSlice(-(max_length + 1))
    return nvt.Workflow(
        (grouped[USER] >> nvt.ops.AddTags([Tags.USER_ID]))
        + (items >> nvt.ops.AddTags([Tags.ITEM_ID, Tags.ITEM, Tags.LIST, Tags.CATEGORICAL]))
    )


def interaction_schema() -> Schema:
    """Merlin schema of ingest/interactions."""
    return Schema([
        ColumnSchema(USER, dtype="string", tags=[Tags.USER_ID, Tags.USER]),
        ColumnSchema(ITEM, dtype="string", tags=[Tags.ITEM_ID, Tags.ITEM]),
        ColumnSchema(TIME, dtype="int64", tags=[Tags.TIME]),
        ColumnSchema(ROW, dtype="int64"),
        ColumnSchema(RATING, dtype="float32", tags=[Tags.CONTINUOUS]),
    ])  # fmt: skip


def split_schema(items: int, max_length: int) -> Schema:
    """Merlin schema of train/, valid/ and test/: `items` real items, at most max_length + 1 of them in a row."""
    encoded = interaction_schema().select_by_name([USER, TIME, ROW]) + Schema([ColumnSchema(ITEM, dtype="int64")])
    schema = sequence_workflow(max_length).fit_schema(encoded).output_schema
    column = schema[ITEM]
    cardinality = items + FIRST_ITEM
    properties = {
        "domain": {"min": 0, "max": cardinality - 1, "name": ITEM},
        "value_count": {"min": 1, "max": max_length + 1},
    }
    # A new column rather than the old one changed: Categorify's properties would carry paths of this machine.
    return Schema([
        ColumnSchema(USER, dtype="string", tags=schema[USER].tags),
        ColumnSchema(ITEM, dtype="int64", tags=column.tags, properties=properties, is_list=True, is_ragged=True),
    ])  # fmt: skip


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
    lines.append(("interactions in a second", int(report["rows_in"] / seconds)))
    lines.append(("disk, for a while / to stay", f"{report['shuffle_mb']:,} / {report['output_mb']:,} MiB"))
    print_counts("prepare", lines)
