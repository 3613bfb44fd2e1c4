"""prepare() against a pandas reference: the same rows for every partitioning, engine and order of the input."""

from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmcfsr_merlin.config.cluster_settings import ClusterConfig
from llmcfsr_merlin.config.prepare_settings import PrepareConfig
from llmcfsr_merlin.dataset.names import CODE, COUNT, ITEM, ROW, SPLITS, SUBSECOND, TIED, TIME, TRAIN_COUNT, USER
from llmcfsr_merlin.dataset.prepare import prepare as features
from llmcfsr_merlin.dataset.prepare.in_memory import InMemory, fits
from llmcfsr_merlin.dataset.prepare.partitions import plan_chunks, read_frame
from llmcfsr_merlin.dataset.prepare.prepare import prepare
from llmcfsr_merlin.runtime.engine import Engine, engine
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.free_memory import has_gpu

SMALL = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
SINGLE = Engine("single", False, 1, 1 << 30, 1 << 30)

# Ids whose order by bytes is not that of UTF-16, nor of a locale.
_LETTERS = ("", "a", "Z", "\u00e9", "\u65e5", "\uffee", "\U0001f600")
READ = "llmcfsr_merlin.dataset.prepare.shuffle.read_partition"


def mixed(row: int, seed: int) -> int:
    """splitmix64 of a row, in Python's integers."""
    last = (1 << 64) - 1
    x = row + (seed + 1) * 0x9E3779B97F4A7C15 & last
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & last
    x = (x ^ x >> 27) * 0x94D049BB133111EB & last
    return x ^ x >> 31


def reference(log: pd.DataFrame, config: PrepareConfig):
    """The ten lines: sequences {user: [raw items]}, items in code order, who ends in two and three equal times, and
    which of the sequences' items have the time of the one before."""
    log = log.dropna(subset=[USER, ITEM])
    raw = log
    while config.filter != "none":
        of = raw if config.filter == "one_pass" else log
        users, items = of[USER].value_counts(), of[ITEM].value_counts()
        kept = log[
            log[USER].isin(users[users >= config.min_user].index)
            & log[ITEM].isin(items[items >= config.min_item].index)
        ]
        if config.filter == "one_pass" or len(kept) == len(log):
            log = kept
            break
        log = kept
    if config.ties == "shuffle":
        log = log.assign(**{ROW: np.array([mixed(row, config.seed) for row in log[ROW]], np.uint64)})
    log = (
        log.groupby(USER)
        .filter(lambda rows: len(rows) >= config.min_sequence)
        .sort_values([name for name in (USER, TIME, SUBSECOND, ROW) if name in log])
    )
    times = log.groupby(USER)[[name for name in (TIME, SUBSECOND) if name in log]]
    tied = [sum(len(rows.tail(last).drop_duplicates()) == 1 for _, rows in times) for last in (2, 3)]
    counts = log[ITEM].value_counts()
    order = sorted(counts.index, key=lambda raw_id: (-counts[raw_id], raw_id))
    return log.groupby(USER)[ITEM].agg(list).to_dict(), order, counts, tied, marks(log)


def marks(log: pd.DataFrame) -> dict[str, list[bool]]:
    """Of a sorted log: whether each interaction of a user has the time of the one before it."""
    names = [name for name in (TIME, SUBSECOND) if name in log]
    users = ((user, rows[names].values.tolist()) for user, rows in log.groupby(USER))
    return {user: [False, *(one == other for one, other in pairwise(times))] for user, times in users}


def write_log(folder: Path, log: pd.DataFrame, parts: int) -> Path:
    """The log as `parts` Parquet files (some of them empty where there are fewer rows)."""
    folder.mkdir(parents=True)
    kinds = {USER: pa.string(), ITEM: pa.string(), TIME: pa.int64(), SUBSECOND: pa.float64(), ROW: pa.int64()}
    schema = pa.schema([(name, kind) for name, kind in kinds.items() if name in log])
    for number, at in enumerate(np.array_split(np.arange(len(log)), parts)):
        table = pa.Table.from_pandas(log.iloc[at], schema, preserve_index=False)
        pq.write_table(table, folder / f"part-{number:05d}.parquet")
    return folder


def read(out: Path, name: str) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(path) for path in sorted((out / name).glob("*.parquet"))], ignore_index=True)


def check(log: pd.DataFrame, config: PrepareConfig, tmp: Path, parts: int, rows: int, on: Engine = SINGLE) -> dict:
    """Run prepare with partitions of `rows` interactions and compare everything it wrote with the reference."""
    expected, order, counts, tied, same = reference(log, config)
    source = write_log(tmp / "in", log, parts)
    on.partition = rows * 160
    if len(order) < 2 or not any(len(items) > 3 for items in expected.values()):
        with pytest.raises(InputError):
            prepare(source, tmp / "out", config, on)
        return {}
    report = prepare(source, tmp / "out", config, on)
    vocabulary = pd.read_parquet(tmp / "out" / "vocabulary.parquet")
    assert vocabulary[ITEM].tolist() == order
    assert vocabulary[CODE].tolist() == list(range(3, 3 + len(order)))
    assert vocabulary[COUNT].tolist() == counts[order].tolist()
    train = pd.Series([item for items in expected.values() for item in items[:-2]]).value_counts()
    assert vocabulary[TRAIN_COUNT].tolist() == [train.get(item, 0) for item in order]
    code = dict(zip(order, range(3, 3 + len(order))))
    rows_of = [(user, [code[item] for item in items]) for user, items in sorted(expected.items())]
    sequences = read(tmp / "out", "sequences")
    assert list(zip(sequences[USER], sequences[ITEM].map(list))) == rows_of
    assert sequences[TIED].map(list).tolist() == [same[user] for user, _ in rows_of]
    longest = config.max_length + 1
    assert read(tmp / "out", "train")[TIED].map(list).tolist() == [
        [False, *same[user][:-2][-longest:][1:]] for user, items in rows_of if len(items) > 3
    ]
    for split, held_out in zip(SPLITS, (2, 1, 0)):
        cut = [(user, items[: len(items) - held_out][-longest:]) for user, items in rows_of]
        found = read(tmp / "out", split)
        assert list(zip(found[USER], found[ITEM].map(list))) == [
            row for row in cut if split != "train" or len(row[1]) > 1
        ]
    assert report["interactions"] == sum(map(len, expected.values())) and report["users"] == len(expected)
    assert [report["tied_last_two"], report["tied_last_three"]] == tied
    assert report["untimed"] == bool(log[TIME].max() < 631_152_000)
    dropped = report["null_users"] + report["null_items"] + report["min_sequence"]
    dropped += sum(entry["items"] + entry["users"] for entry in report["filter"])
    assert report["rows_in"] - dropped == report["interactions"]
    return report


@st.composite
def logs(draw):
    """Few users and items (so that filters bite), many equal timestamps, duplicates and nulls; rows in file order."""
    seed = draw(st.integers(0, 10**6))
    random = np.random.default_rng(seed)
    count = draw(st.integers(1, 120))
    users, items = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    log = pd.DataFrame({
        USER: [_LETTERS[x % 7] + f"u{x}" for x in (random.pareto(1, count)).astype(int) % users],
        ITEM: [f"i{x}" + _LETTERS[x % 7] for x in (random.pareto(0.7, count)).astype(int) % items],
        TIME: random.integers(-5, draw(st.sampled_from([1, 6, 2**40])), count),
        ROW: np.arange(count),
    })  # fmt: skip
    if draw(st.booleans()):  # in some partitions only, perhaps
        log[SUBSECOND] = random.choice([0.0, 0.25, 1e-9, 0.999], count) * (np.arange(count) > draw(st.integers(0, 60)))
    if draw(st.booleans()):
        log.loc[random.random(count) < 0.1, USER] = None
        log.loc[random.random(count) < 0.1, ITEM] = None
    return log


configs = st.builds(
    PrepareConfig, filter=st.sampled_from(["k_core", "one_pass", "none"]), min_user=st.integers(1, 5),
    min_item=st.integers(1, 5), min_sequence=st.integers(3, 5), max_length=st.integers(1, 6),
    ties=st.sampled_from(["source", "shuffle"]), seed=st.sampled_from([0, 42, 2**63]),
)  # fmt: skip


@SMALL
@given(
    log=logs(), config=configs, parts=st.sampled_from([1, 3, 50]), rows=st.sampled_from([1, 7, 10**6]),
    workers=st.sampled_from([1, 4]),
)  # fmt: skip
def test_equals_reference(tmp_path_factory, log, config, parts, rows, workers):
    on = Engine("single", False, workers, 1 << 30, 1 << 30)
    check(log, config, tmp_path_factory.mktemp("prepare"), parts, rows, on)


class Pandas:
    """pandas with the one call of cudf that it has not: row groups of several files."""

    @staticmethod
    def read_parquet(paths, columns, row_groups, use_pandas_metadata):
        files = zip(map(pq.ParquetFile, paths), row_groups)
        return pd.concat([file.read_row_groups(groups, columns).to_pandas() for file, groups in files])

    Series, concat = pd.Series, staticmethod(pd.concat)


class Hashed(pd.Series):
    """A series with cudf's hash_values, of fewer than `hashes` different ones: few of them collide."""

    hashes = 1 << 64

    @property
    def _constructor(self):
        return Hashed

    def hash_values(self, method: str) -> pd.Series:
        assert method == "xxhash64"
        return pd.Series(pd.util.hash_array(self.to_numpy(object)) % np.uint64(self.hashes - 1))


class PandasWithHashes(Pandas):
    class Frame(pd.DataFrame):
        _constructor_sliced = Hashed

    @staticmethod
    def read_parquet(*arguments, **settings):
        return PandasWithHashes.Frame(Pandas.read_parquet(*arguments, **settings))


@contextmanager
def in_memory(text: int, frames=Pandas):
    """prepare() as on a GPU whose memory holds the log, on pandas and numpy; ids of `text` bytes are read at once."""

    def device(free):
        return nullcontext((frames, np))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "open_device", device)
        patch.setattr(features, "InMemory", partial(InMemory, text=text))
        patch.setattr(features, "shuffle", lambda *_: 1 / 0)
        yield


def content(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*")) if path.is_file() and "workflow" not in path.parts
    }  # fmt: skip


@SMALL
@given(
    log=logs(), config=configs, parts=st.sampled_from([1, 3, 50]), rows=st.sampled_from([1, 7, 10**6]),
    workers=st.sampled_from([1, 4]), text=st.sampled_from([1, 300, 10**6]), hashes=st.sampled_from([0, 4, 1 << 64]),
)  # fmt: skip
def test_in_memory_writes_the_same_bytes(tmp_path_factory, log, config, parts, rows, workers, text, hashes):
    """The whole program of a GPU, on pandas and numpy. No proof for cudf and cupy themselves."""
    tmp = tmp_path_factory.mktemp("memory")
    with in_memory(text, PandasWithHashes if hashes else Pandas), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hashed, "hashes", hashes)
        on = Engine("single", False, workers, 1 << 30, 1 << 30, device_memory=1 << 40)
        report = check(log, config, tmp / "a", parts, rows, on)
    if report:
        on = Engine("single", False, workers, 1 << 30, rows * 160)
        files = prepare(tmp / "a" / "in", tmp / "b", config, on)
        assert content(tmp / "a" / "out") == content(tmp / "b")
        sizes = ("shuffle_mb", "output_mb")
        assert [(k, v) for k, v in report.items() if k not in sizes] == [
            (k, v) for k, v in files.items() if k not in sizes
        ]


def test_a_log_that_does_not_fit_after_all_goes_through_files(tmp_path, monkeypatch, capfd):
    def full(*_):
        raise MemoryError("std::bad_alloc: out_of_memory")

    monkeypatch.setattr(features, "open_device", lambda free: nullcontext((Pandas, np)))
    monkeypatch.setattr("llmcfsr_merlin.dataset.prepare.in_memory.order_rows", full)
    on = Engine("single", False, 1, 1 << 30, 1 << 30, device_memory=1 << 40)
    check(skewed(1000, 60), PrepareConfig(), tmp_path, 3, 400, on)
    assert "does not fit into device memory after all" in capfd.readouterr().err


def test_what_fits_the_device(tmp_path):
    source = write_log(tmp_path / "in", skewed(1000, 60), 3)
    chunks, _ = plan_chunks(source, 10**6, 1)
    assert fits(chunks, 1 << 20) and not fits(chunks, 150_000) and not fits(chunks, 0)
    assert not fits(chunks, 1 << 20, repeats=51)


@SMALL
@given(log=logs(), config=configs, rows=st.sampled_from([1, 7, 10**6]))
def test_dataframe_path_equals_reference(tmp_path_factory, log, config, rows):
    """The code that reads with cudf on a GPU, on pandas: what it calls is what both have. No proof for cudf itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(READ, lambda chunk, gpu: read_frame(chunk, Pandas, np))
        check(log, config, tmp_path_factory.mktemp("frame"), 3, rows)


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="needs cudf, cupy and a CUDA device")
@pytest.mark.parametrize("free", [None, 0], ids=["in memory", "through files"])
def test_gpu_equals_reference(tmp_path, free):
    log, config = skewed(20_000, 500), PrepareConfig(min_user=5, min_item=4, max_length=10, ties="shuffle")
    log[SUBSECOND] = np.random.default_rng(0).choice([0.0, 0.25, 0.999], len(log))
    with engine(ClusterConfig(kind="cuda")) as on:
        if free is not None:
            on.device_memory = free
        for parts, rows in ((1, 10**6), (3, 4000), (50, 300)):
            check(log, config, tmp_path / str(parts), parts, rows, on)
            prepare(tmp_path / str(parts) / "in", tmp_path / "files", config, Engine("single", False, 4, 0, rows * 160))
            assert content(tmp_path / str(parts) / "out") == content(tmp_path / "files")


@settings(SMALL, max_examples=12)
@given(log=logs(), seed=st.integers(0, 1000))
def test_order_of_rows_does_not_matter(tmp_path_factory, log, seed):
    log[TIME] = np.random.default_rng(seed).permutation(len(log))
    shuffled = log.sample(frac=1, random_state=seed)
    shuffled[ROW] = np.arange(len(log))
    config = PrepareConfig(filter="none")
    tmp = tmp_path_factory.mktemp("permuted")
    if check(log, config, tmp / "a", 2, 10):
        check(shuffled, config, tmp / "b", 3, 13)
        for name in ("sequences", *SPLITS):
            pd.testing.assert_frame_equal(read(tmp / "a" / "out", name), read(tmp / "b" / "out", name))


@pytest.fixture(scope="module", params=[1, 4], ids=["1 worker", "4 workers"])
def cluster(request):
    with engine(ClusterConfig(kind="local", workers=request.param, memory_limit="1GB")) as chosen:
        yield chosen


def skewed(rows: int, users: int) -> pd.DataFrame:
    """A giant user, Zipf items, many equal timestamps, rows that repeat (user, item, time), rows without ids."""
    random = np.random.default_rng(rows)
    log = pd.DataFrame({
        USER: [f"u{x}" for x in random.integers(0, users, rows)],
        ITEM: [f"i{x}" for x in random.zipf(1.5, rows) % (users + 30)],
        TIME: random.integers(0, 30, rows),
    })  # fmt: skip
    log.loc[: int(0.4 * rows), USER] = "giant"
    log.loc[rows // 2 : rows // 2 + 9, USER], log.loc[rows // 3 : rows // 3 + 9, ITEM] = None, None
    log = pd.concat([log, log.sample(frac=0.1, random_state=0)], ignore_index=True)
    return log.assign(row=np.arange(len(log)))


@pytest.mark.parametrize("parts, rows", [(1, 10**6), (3, 400), (50, 5)])
def test_local_cluster_equals_reference(cluster, tmp_path, parts, rows):
    log = skewed(1000, 60)
    assert log.duplicated([USER, ITEM, TIME]).sum() > 50
    check(log, PrepareConfig(min_user=5, min_item=4, max_length=10, ties="shuffle"), tmp_path, parts, rows, cluster)


def test_local_cluster_with_fewer_users_than_partitions(cluster, tmp_path):
    log = skewed(200, 3)
    report = check(log, PrepareConfig(filter="none"), tmp_path, 50, 3, cluster)
    assert report["partitions"] >= 50 and report["users"] == 4


def test_shuffled_ties_are_in_no_order_of_the_file(tmp_path):
    """A day of 40 items, sorted by id as in public files: neither the file's order nor that of another seed."""
    items = [f"i{x:02d}" for x in range(40)]
    log = pd.DataFrame({USER: np.repeat(["a", "b"], 40), ITEM: items * 2, TIME: 7, ROW: np.arange(80)})
    found = []
    for seed in (1, 2):
        config = PrepareConfig(filter="none", ties="shuffle", seed=seed)
        check(log, config, tmp_path / str(seed), 3, 7)
        sequences = read(tmp_path / str(seed) / "out", "sequences")[ITEM].map(list)
        found += sequences.tolist()
        assert all(sorted(sequence) == list(range(3, 43)) for sequence in sequences)
    for sequence in found:  # items are numbered by id here
        assert 10 < sum(one < other for one, other in pairwise(sequence)) < 30
    assert len(set(map(tuple, found))) == 4


def test_repeated_rows_are_all_kept(tmp_path):
    """Whether they should be is ingest's question (data.duplicates): purchases do repeat."""
    log = pd.DataFrame({USER: ["a"] * 6, ITEM: ["x", "x", "y", "x", "x", "y"], TIME: 7, ROW: np.arange(6)})
    report = check(log, PrepareConfig(filter="none"), tmp_path, 2, 1)
    assert report["interactions"] == 6


def test_more_partitions_than_users_and_one_giant_user(tmp_path):
    items = [f"i{x}" for x in range(10)] * 30
    log = pd.DataFrame({USER: "only", ITEM: items, TIME: 0, ROW: np.arange(300)})
    report = check(log, PrepareConfig(), tmp_path, 50, 3)
    assert report["users"] == 1 and report["partitions"] >= 50


def test_k_core_needs_rounds(tmp_path):
    """A chain that falls item by item, beside a block that stands."""
    rows = [(f"u{a}", f"i{b}") for a in range(4) for b in range(4)]
    rows += [(f"c{step}", f"j{step + shift}") for step in range(12) for shift in (0, 1)]
    log = pd.DataFrame(rows, columns=[USER, ITEM])
    log[TIME] = log[ROW] = np.arange(len(log))
    report = check(log, PrepareConfig(min_user=2, min_item=2), tmp_path, 3, 5)
    assert len(report["filter"]) > 3 and report["users"] == 4


def test_stopped_run_continues(tmp_path, monkeypatch):
    log = pd.DataFrame({USER: [f"u{x % 7}" for x in range(200)], ITEM: [f"i{x % 11}" for x in range(200)], TIME: 0})
    log[ROW] = np.arange(200)
    source, on = write_log(tmp_path / "in", log, 4), Engine("single", False, 1, 1 << 30, 50 * 160)
    with monkeypatch.context() as patch:
        patch.setattr(features, "write_bucket", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(source, tmp_path / "out", PrepareConfig(), on)
        patch.undo()
        patch.setattr(READ, lambda *_: 1 / 0)  # nothing is read again
        prepare(source, tmp_path / "out", PrepareConfig(), on)
    expected, *_ = reference(log, PrepareConfig())
    assert read(tmp_path / "out", "sequences")[ITEM].map(len).tolist() == [len(x) for _, x in sorted(expected.items())]
